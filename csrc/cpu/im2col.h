// Reads an image under the taps of a convolution, a vector of output pixels at a time.
#pragma once

#include "conv_axis.h"
#include "isa.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {

// One position of the kernel along one axis: output position i reads input position i * stride + offset; `index` is its place
// in the weight.
struct Tap {
  int64_t offset, index;
};

// Which lanes of a vector to read: what the instruction set masks loads with.
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <class T>
using Lanes = uint32_t;
template <class T>
inline Lanes<T> lanes_of(uint32_t bits) {
  return bits;
}
inline __attribute__((always_inline)) Vec<float> load_lanes(const float* p, uint32_t which) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(which), p);
}
inline __attribute__((always_inline)) Vec<double> load_lanes(const double* p, uint32_t which) {
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8(which), p);
}
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
template <class T>
using Lanes = Mask<T>;
template <class T>
inline Lanes<T> lanes_of(uint32_t bits) {
  Mask<T> bit;
  for (int i = 0; i < lanes<T>; ++i) bit[i] = 1 << i;
  return ((Mask<T>{} + int32_t(bits)) & bit) != 0;
}
inline __attribute__((always_inline)) Vec<float> load_lanes(const float* p, Mask<float> which) {
  return (Vec<float>)_mm256_maskload_ps(p, (__m256i)which);
}
inline __attribute__((always_inline)) Vec<double> load_lanes(const double* p, Mask<double> which) {
  return (Vec<double>)_mm256_maskload_pd(p, (__m256i)which);
}
#else
template <class T>
using Lanes = uint32_t;
template <class T>
inline Lanes<T> lanes_of(uint32_t bits) {
  return bits;
}
template <class T>
inline __attribute__((always_inline)) Vec<T> load_lanes(const T* p, uint32_t which) {
  Vec<T> v{};
  for (int i = 0; i < lanes<T>; ++i)
    if (which >> i & 1) v[i] = p[i];
  return v;
}
#endif

// The grid of output pixels of a sub-convolution and the planes it reads.
struct PixelGrid {
  int64_t rows, columns;                // output pixels of one image; pixels are numbered over the batch, image by image
  int64_t stride_h, stride_w;           // between the input positions of neighbouring output pixels
  int64_t height, width;                // of an input plane
  int64_t image, channel, row, column;  // elements from one image, channel, row, column of the input to the next
  const Tap *row_taps, *column_taps;
  int64_t row_tap_count, column_tap_count;

  int64_t taps() const { return row_tap_count * column_tap_count; }
  // Whether output pixels are input pixels: of a 1x1 kernel without stride or padding.
  bool pointwise() const {
    return taps() == 1 && stride_h == 1 && stride_w == 1 && rows == height && columns == width && row_taps[0].offset == 0 &&
           column_taps[0].offset == 0;
  }
};

// A vector of consecutive output pixels, cut where a row of the grid ends.
template <class T>
struct PixelVector {
  struct Piece {
    int64_t n, row, column;
    int lane, length;
  };
  Piece pieces[lanes<T>];
  int count = 0;

  // Pixels first, first + 1, …; those from `end` on are left out.
  PixelVector(const PixelGrid& grid, int64_t first, int64_t end) {
    int64_t column = first % grid.columns, row = first / grid.columns % grid.rows, n = first / grid.columns / grid.rows;
    const int total = int(minimum<int64_t>(end - first, lanes<T>));
    for (int lane = 0; lane < total;) {
      const int length = int(minimum<int64_t>(total - lane, grid.columns - column));
      pieces[count++] = {n, row, column, lane, length};
      lane += length;
      column = 0;
      if (++row == grid.rows) row = 0, ++n;
    }
  }
};

// Of an NCHW image, for every e = channel * taps + tap in [begin, end): the vector of input values that the pixels read in that
// channel under that tap, zero outside the image, to dst + (e - begin) * dst_step.
template <class T>
inline void read_taps(const PixelGrid& grid, const PixelVector<T>& pixels, const T* x, int64_t begin, int64_t end, T* dst,
                      int64_t dst_step) {
  const int64_t taps = grid.taps();
  // A run: lanes whose input lies at base + lane * stride_w. Rows that follow each other in memory share one.
  struct Run {
    int64_t base;
    uint32_t which;
  };
  Run runs[lanes<T>];
  for (int64_t r = 0; r < grid.row_tap_count; ++r)
    for (int64_t s = 0; s < grid.column_tap_count; ++s) {
      const int64_t tap = r * grid.column_tap_count + s;
      int64_t channel = begin > tap ? (begin - tap + taps - 1) / taps : 0;
      if (channel * taps + tap >= end) continue;
      int count = 0;
      for (int i = 0; i < pixels.count; ++i) {
        const auto& piece = pixels.pieces[i];
        const int64_t h = piece.row * grid.stride_h + grid.row_taps[r].offset;
        if (h < 0 || h >= grid.height) continue;
        const int64_t w = piece.column * grid.stride_w + grid.column_taps[s].offset;
        int64_t from = -w, to = grid.width - w;
        if (grid.stride_w != 1) {
          from = (maximum<int64_t>(from, 0) + grid.stride_w - 1) / grid.stride_w;
          to = (maximum<int64_t>(to, 0) + grid.stride_w - 1) / grid.stride_w;
        }
        from = maximum<int64_t>(from, 0);
        to = minimum<int64_t>(to, piece.length);
        if (from >= to) continue;
        const uint32_t which = ((1u << (to - from)) - 1) << (piece.lane + from);
        const int64_t base = piece.n * grid.image + h * grid.width + w - piece.lane * grid.stride_w;
        if (count && runs[count - 1].base == base)
          runs[count - 1].which |= which;
        else
          runs[count++] = {base, which};
      }
      T* out = dst + (channel * taps + tap - begin) * dst_step;
      T* const out_end = dst + (end - begin) * dst_step;
      const int64_t step = taps * dst_step;
      const T* in = x + channel * grid.channel;
      constexpr uint32_t all = uint32_t((uint64_t(1) << lanes<T>)-1);
      if (count == 0) {
        for (; out < out_end; out += step) store(out, Vec<T>{});
      } else if (grid.stride_w == 1) {
        if (count == 1 && runs[0].which == all) {
          for (in += runs[0].base; out < out_end; out += step, in += grid.channel) store(out, load(in));
        } else if (count == 1) {
          const Lanes<T> which = lanes_of<T>(runs[0].which);
          for (in += runs[0].base; out < out_end; out += step, in += grid.channel) store(out, load_lanes(in, which));
        } else {
          for (; out < out_end; out += step, in += grid.channel) {
            Mask<T> v{};
            for (int i = 0; i < count; ++i) v |= (Mask<T>)load_lanes(in + runs[i].base, lanes_of<T>(runs[i].which));
            store(out, (Vec<T>)v);
          }
        }
      } else if (grid.stride_w == 2) {
        Lanes<T> low[lanes<T>], high[lanes<T>];
        for (int i = 0; i < count; ++i) {
          uint32_t spread[2] = {0, 0};
          for (int lane = 0; lane < lanes<T>; ++lane)
            if (runs[i].which >> lane & 1) spread[2 * lane / lanes<T>] |= 1u << (2 * lane % lanes<T>);
          low[i] = lanes_of<T>(spread[0]), high[i] = lanes_of<T>(spread[1]);
        }
        for (; out < out_end; out += step, in += grid.channel) {
          Mask<T> a{}, b{};
          for (int i = 0; i < count; ++i) {
            a |= (Mask<T>)load_lanes(in + runs[i].base, low[i]);
            b |= (Mask<T>)load_lanes(in + runs[i].base + lanes<T>, high[i]);
          }
          store(out, even_lanes<T>((Vec<T>)a, (Vec<T>)b));
        }
      } else {
        for (; out < out_end; out += step, in += grid.channel) {
          store(out, Vec<T>{});
          for (int i = 0; i < count; ++i)
            for (int lane = 0; lane < lanes<T>; ++lane)
              if (runs[i].which >> lane & 1) out[lane] = in[runs[i].base + lane * grid.stride_w];
        }
      }
    }
}

// The rows of an image that a block of output pixels reads, copied with their padding, channel by channel, and with columns
// apart by their residue modulo the stride: under every tap, consecutive pixels of a row then read consecutive elements. Pays
// where few channels are read under many taps. For what slides over x: a forward convolution or a weight gradient.
template <class T>
class PaddedRows {
 public:
  // Whether it pays, for blocks of at most `pixels` pixels.
  static bool worth(const ConvProblem& p, int64_t pixels) {
    constexpr int64_t most_elements = 1 << 17;
    const int64_t channels = p.c / p.groups;
    if (channels > 8 || p.r * p.s == 1 || maximum(p.h, p.w) > 1 << 20 || !worth_padding(p, Primitive::forward)) return false;
    return PaddedRows(p).size(pixels) <= most_elements;
  }

  // The unused object.
  PaddedRows() = default;
  PaddedRows(const ConvProblem& p, int64_t pixels, Workspace& space) : PaddedRows(p) {
    plane_ = (size(pixels) - 2 * lanes<T>) / channels_;
    offsets_ = space.take<int64_t>(p.r * p.s);
    rows_ = space.take<T>(size(pixels));
    if (!offsets_) return;
    rows_ += lanes<T>;
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t column = s * p.dilation_w;
        offsets_[r * p.s + s] = r * p.dilation_h * row_ + column % step_ * pitch_ + column / step_;
      }
  }

  bool used() const { return rows_ != nullptr; }

  // Copies what the pixels first to end - 1 read of the channels of one group.
  void fill(const PixelGrid& grid, const T* x, int64_t first, int64_t end) {
    top_ = virtual_row(grid, first);
    T* to = rows_;
    for (int64_t row = top_; row <= virtual_row(grid, end - 1) + span_; ++row, to += row_) {
      const int64_t h = row % image_rows_ + grid.row_taps[0].offset;
      const bool inside = h >= 0 && h < grid.height;
      const T* from = x + row / image_rows_ * grid.image + (inside ? h * grid.row : 0);
      const int64_t length = inside ? (grid.width - 1) * grid.column + 1 : 0;  // of a row of one channel
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t i = 0; i < step_; ++i)
          copy_padded(from + c * grid.channel, length, (grid.column_taps[0].offset + i) * grid.column, step_ * grid.column,
                      to + c * plane_ + i * pitch_, pitch_);
    }
  }

  // As read_taps, but lanes without a pixel hold anything.
  void read(const PixelGrid& grid, const PixelVector<T>& pixels, int64_t begin, int64_t end, T* dst, int64_t dst_step) const {
    if (begin >= end) return;
    const T* from[lanes<T>];
    Mask<T> later[lanes<T>];  // the lanes of this piece and of those after it
    Mask<T> lane;
    for (int i = 0; i < lanes<T>; ++i) lane[i] = i;
    for (int i = 0; i < pixels.count; ++i) {
      const auto& piece = pixels.pieces[i];
      from[i] = rows_ + (piece.n * image_rows_ + piece.row * grid.stride_h - top_) * row_ + piece.column - piece.lane;
      later[i] = lane >= piece.lane;
    }
    const int64_t taps = grid.taps();
    int64_t plane = begin / taps * plane_;
    for (int64_t tap = begin % taps, e = begin; e < end; ++e, dst += dst_step) {
      const int64_t offset = plane + offsets_[tap];
      Vec<T> v{};
      if (pixels.count) v = load(from[0] + offset);
      for (int i = 1; i < pixels.count; ++i) v = later[i] ? load(from[i] + offset) : v;
      store(dst, v);
      if (++tap == taps) tap = 0, plane += plane_;
    }
  }

 private:
  explicit PaddedRows(const ConvProblem& p)
      : channels_(p.c / p.groups),
        step_(p.stride_w),
        span_((p.r - 1) * p.dilation_h),
        image_rows_((p.p - 1) * p.stride_h + span_ + 1),
        pitch_(p.q + (p.s - 1) * p.dilation_w / step_ + 1),
        row_(step_ * pitch_),
        columns_(p.q),
        image_pixels_(p.p * p.q),
        stride_h_(p.stride_h) {}

  // Rows of all images one after the other, each with its padding: where the first tap of a pixel reads.
  int64_t virtual_row(const PixelGrid& grid, int64_t pixel) const {
    return pixel / image_pixels_ * image_rows_ + pixel % image_pixels_ / grid.columns * grid.stride_h;
  }

  // Elements for blocks of so many pixels: between two of their rows lies a stride, or the end of an image.
  int64_t size(int64_t pixels) const {
    const int64_t steps = (pixels - 2) / columns_ + 1, images = minimum(steps, (pixels - 2) / image_pixels_ + 1);
    const int64_t rows = span_ + 1 + (steps - images) * stride_h_ + images * maximum(stride_h_, span_ + 1);
    return channels_ * (rows * row_ + lanes<T>)+2 * lanes<T>;
  }

  int64_t channels_, step_, span_, image_rows_, pitch_, row_, columns_, image_pixels_, stride_h_;
  int64_t plane_ = 0, top_ = 0;
  int64_t* offsets_ = nullptr;  // of the taps
  T* rows_ = nullptr;           // [channel][row][residue of the column][column]
};

}  // namespace fastconv::cpu::FASTCONV_ISA
