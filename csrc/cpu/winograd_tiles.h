// Where the tiles of Winograd's convolution lie in images, and moving their windows between memory and vectors.
//
// The outputs of all images are cut into tiles of 4x4 (for kernels of 5x5: of 2x2), numbered row by row; a tile reads a window
// of 6x6 inputs:
//
//        inputs            outputs
//      +---+-----          +-----+-----+--
//      | +-|---+---        |  0  |  1  |
//      | | |   |           +-----+-----+--
//      +-|-+   |           |  2  |  3  |        windows overlap by two (four); what leaves the image counts as zero,
//        +-----+           +-----+-----+--      and outputs that leave it are dropped
//
// A convolution with dilation d is d * d ones without on sub-images, each of every d-th row and column: their tiles follow one
// another, and a window's neighbours are d apart.
#pragma once

#include "kernels.h"
#include "vectors.h"
#include "winograd_transforms.h"

namespace fastconv::cpu::FASTCONV_ISA::winograd {

// A square of pixels: `offset` is its corner's distance from the first image's first pixel in floats, which may lie outside the
// image; rows [top, bottom) and columns [left, right) lie inside. Without a tile it is empty.
struct Window {
  int64_t offset;
  int top, bottom, left, right;
  bool is_whole(int size) const { return top == 0 && left == 0 && bottom == size && right == size; }
};

// The images that windows lie in. Distances in memory are in floats.
struct Images {
  int64_t height, width;
  int64_t image, channel, row, column;  // distances in memory
  int64_t pad_top, pad_left;
  int64_t dilation_h, dilation_w;  // distances of neighbours in a window, in pixels

  int64_t row_step() const { return row * dilation_h; }
  int64_t column_step() const { return column * dilation_w; }

  Window window(int size, int64_t n, int64_t first_row, int64_t first_column) const {
    const int64_t y = first_row - pad_top, x = first_column - pad_left;
    return {n * image + y * row + x * column, first_inside(y, dilation_h, size), end_inside(y, dilation_h, height, size),
            first_inside(x, dilation_w, size), end_inside(x, dilation_w, width, size)};
  }

 private:
  // Of the positions begin, begin + step, ...: the first that is not negative, and the first beyond the extent.
  static int first_inside(int64_t begin, int64_t step, int size) {
    return begin >= 0 ? 0 : int(minimum<int64_t>((-begin + step - 1) / step, size));
  }
  static int end_inside(int64_t begin, int64_t step, int64_t extent, int size) {
    return begin >= extent ? 0 : int(minimum<int64_t>((extent - begin + step - 1) / step, size));
  }
};

// Named after the outputs of a tile along an axis.
template <int taps>
constexpr const char* winograd_name = taps == 3 ? "winograd_f4" : "winograd_f2";

template <int taps>
bool winograd_applies(const ConvProblem& p) {
  // Beyond any memory, sizes of transforms might not fit in 64 bits.
  constexpr double most = 1e15;
  const bool sizes = double(p.n) * p.c * p.h * p.w < most && double(p.n) * p.k * p.p * p.q < most && double(p.c) * p.k < most &&
                     double(p.n) * p.p * p.q * (double(p.c) + p.k) < most &&
                     double(p.n) * p.h * p.w * (double(p.c) + p.k) < most;
  return p.allow_winograd && p.dtype == Dtype::float32 && p.r == taps && p.s == taps && p.stride_h == 1 && p.stride_w == 1 &&
         sizes;
}

// Whether transforms are few beside the products, as docs/cpu-kernels.md measures it.
inline bool enough_channels(const ConvProblem& p) {
  const int64_t least = p.dilation_h > 1 || p.dilation_w > 1 ? 32 : 16, c = p.c / p.groups, k = p.k / p.groups;
  return c >= least && k >= least && (p.groups == 1 || c > 16 || k > 16);
}

// x or y of a problem, without padding.
inline Images images_of(const ConvProblem& p, bool of_x) {
  const int64_t channels = of_x ? p.c : p.k, height = of_x ? p.h : p.p, width = of_x ? p.w : p.q;
  const bool last = p.layout == Layout::channels_last;
  Images images{};
  images.height = height, images.width = width;
  images.image = channels * height * width;
  images.channel = last ? 1 : height * width;
  images.row = last ? width * channels : width;
  images.column = last ? channels : 1;
  images.dilation_h = p.dilation_h, images.dilation_w = p.dilation_w;
  return images;
}

// The tiles of all images: in each, `phases` sub-images of rows * columns tiles.
struct Tiles {
  int64_t outputs;  // of a tile along an axis
  int64_t rows, columns, phases_h, phases_w, dilation_h, dilation_w, of_image, count;

  Tiles(int64_t outputs, int64_t n, int64_t out_h, int64_t out_w, int64_t dilation_h, int64_t dilation_w)
      : outputs(outputs),
        rows(tiles_along(out_h, dilation_h)),
        columns(tiles_along(out_w, dilation_w)),
        phases_h(minimum(dilation_h, out_h)),
        phases_w(minimum(dilation_w, out_w)),
        dilation_h(dilation_h),
        dilation_w(dilation_w),
        of_image(rows * columns * phases_h * phases_w),
        count(n * of_image) {}

  int64_t image(int64_t tile) const { return tile / of_image; }

  // The window that a tile reads from, or writes to, the images.
  Window window(const Images& images, int size, int64_t tile) const {
    if (tile >= count) return {};
    const int64_t column = tile % columns, row = tile / columns % rows, phase = tile / (columns * rows);
    return images.window(size, image(tile), outputs * row * dilation_h + phase / phases_w % phases_h,
                         outputs * column * dilation_w + phase % phases_w);
  }

 private:
  int64_t tiles_along(int64_t out, int64_t dilation) const {
    const int64_t of_phase = (out + dilation - 1) / dilation;
    return (of_phase + outputs - 1) / outputs;
  }
};

// ---- NCHW: a lane is a tile. Columns of L windows are read as runs of four or two floats and transposed.

struct LowHalves {
  static constexpr int lane(int i) { return i / 4 * 4 + i % 4 / 2 + (i % 2 ? lanes<float> : 0); }
};
struct HighHalves {
  static constexpr int lane(int i) { return LowHalves::lane(i) + 2; }
};
struct LowPairs {
  static constexpr int lane(int i) { return i % 4 < 2 ? i : i - 2 + lanes<float>; }
};
struct HighPairs {
  static constexpr int lane(int i) { return i % 4 < 2 ? i + 2 : i + lanes<float>; }
};

// Transposes the 4x4 matrices whose rows are the runs of four lanes of r.
FASTCONV_INLINE void transpose_quads(V (&r)[4]) {
  const V low_01 = shuffle_lanes<LowHalves, float>(r[0], r[1]), high_01 = shuffle_lanes<HighHalves, float>(r[0], r[1]);
  const V low_23 = shuffle_lanes<LowHalves, float>(r[2], r[3]), high_23 = shuffle_lanes<HighHalves, float>(r[2], r[3]);
  r[0] = shuffle_lanes<LowPairs, float>(low_01, low_23), r[1] = shuffle_lanes<HighPairs, float>(low_01, low_23);
  r[2] = shuffle_lanes<LowPairs, float>(high_01, high_23), r[3] = shuffle_lanes<HighPairs, float>(high_01, high_23);
}

// Vectors of runs of four floats: run i of the result is at rows[4 * i] + offset.
FASTCONV_INLINE V load_quads(const float* const* rows, int64_t offset) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + offset));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[4] + offset), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[8] + offset), 2);
  return (V)_mm512_insertf32x4(v, _mm_loadu_ps(rows[12] + offset), 3);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (V)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0] + offset)), _mm_loadu_ps(rows[4] + offset), 1);
#else
  V v;
  for (int i = 0; i < lanes<float> / 4; ++i) std::memcpy(reinterpret_cast<float*>(&v) + 4 * i, rows[4 * i] + offset, 16);
  return v;
#endif
}
FASTCONV_INLINE void store_quads(float* const* rows, V v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm_storeu_ps(rows[0], _mm512_extractf32x4_ps((__m512)v, 0));
  _mm_storeu_ps(rows[4], _mm512_extractf32x4_ps((__m512)v, 1));
  _mm_storeu_ps(rows[8], _mm512_extractf32x4_ps((__m512)v, 2));
  _mm_storeu_ps(rows[12], _mm512_extractf32x4_ps((__m512)v, 3));
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  _mm_storeu_ps(rows[0], _mm256_castps256_ps128((__m256)v));
  _mm_storeu_ps(rows[4], _mm256_extractf128_ps((__m256)v, 1));
#else
  for (int i = 0; i < lanes<float> / 4; ++i) std::memcpy(rows[4 * i], reinterpret_cast<const float*>(&v) + 4 * i, 16);
#endif
}

// The columns of runs of two floats, run i at rows[i]; and the reverse.
template <int... I>
FASTCONV_INLINE V load_pairs(const float* const* rows, std::integer_sequence<int, I...>) {
  const auto pair = [&](int i) {
    double bits;
    std::memcpy(&bits, rows[i], 8);
    return bits;
  };
  return (V)Vec<double>{pair(I)...};
}
FASTCONV_INLINE void load_pairs(const float* const* rows, V (&columns)[2]) {
  constexpr auto half = std::make_integer_sequence<int, lanes<double>>{};
  const V low = load_pairs(rows, half), high = load_pairs(rows + lanes<double>, half);
  columns[0] = even_lanes<float>(low, high), columns[1] = odd_lanes<float>(low, high);
}
FASTCONV_INLINE void store_pairs(float* const* rows, const V (&columns)[2]) {
  const Vec<double> pairs[2] = {(Vec<double>)interleaved_low<float>(columns[0], columns[1]),
                                (Vec<double>)interleaved_high<float>(columns[0], columns[1])};
  for (int i = 0; i < lanes<float>; ++i) {
    const double bits = pairs[i / lanes<double>][i % lanes<double>];
    std::memcpy(rows[i], &bits, 8);
  }
}

// The first `end` lanes but the first `begin`, zeros elsewhere; nothing else is touched.
FASTCONV_INLINE V load_between(const float* p, int begin, int end) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (V)_mm512_maskz_loadu_ps(__mmask16((1u << end) - (1u << begin)), p);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  const __m256i before_end = _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - end));
  const __m256i before_begin = _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - begin));
  return (V)_mm256_maskload_ps(p, _mm256_andnot_si256(before_begin, before_end));
#else
  V v{};
  for (int i = begin; i < end; ++i) v[i] = p[i];
  return v;
#endif
}

// The windows of as many tiles as a vector has lanes, in one channel after another. Those that leave the image, or whose
// columns are not adjacent, are copied to patches first.
template <int size>
class TileReader {
 public:
  TileReader(const Tiles& tiles, const Images& images, int64_t first)
      : row_step_(images.row_step()), column_step_(images.column_step()) {
    for (int i = 0; i < lanes<float>; ++i) {
      windows_[i] = tiles.window(images, size, first + i);
      if (windows_[i].is_whole(size) && column_step_ == 1) {
        direct_[direct_count_++] = i;
        step_[i] = row_step_;
        continue;
      }
      patched_[patched_count_++] = i;
      step_[i] = pitch;
      at_[i] = patches_[i];
      std::memset(patches_[i], 0, sizeof(patches_[i]));
    }
  }

  // Moves on to a channel.
  FASTCONV_INLINE void open(const float* channel) {
    for (int d = 0; d < direct_count_; ++d) at_[direct_[d]] = channel + windows_[direct_[d]].offset;
    for (int p = 0; p < patched_count_; ++p) copy(patched_[p], channel);
  }

  // Column j of row r of all windows in row[j].
  FASTCONV_INLINE void operator()(int r, V (&row)[size]) const {
    const float* rows[lanes<float>];
    for (int i = 0; i < lanes<float>; ++i) rows[i] = at_[i] + r * step_[i];
    if constexpr (size == 2) return load_pairs(rows, row);
    V quads[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) quads[q] = load_quads(rows + q, 0);
    transpose_quads(quads);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) row[j] = quads[j];
    if constexpr (size == 6) {  // columns 4 and 5 from the runs of columns 2 to 5
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) quads[q] = load_quads(rows + q, 2);
      const V high_01 = shuffle_lanes<HighHalves, float>(quads[0], quads[1]),
              high_23 = shuffle_lanes<HighHalves, float>(quads[2], quads[3]);
      row[4] = shuffle_lanes<LowPairs, float>(high_01, high_23), row[5] = shuffle_lanes<HighPairs, float>(high_01, high_23);
    }
  }

 private:
  static constexpr int pitch = 8;  // floats of a patch's row

  void copy(int i, const float* channel) {
    const Window& w = windows_[i];
    for (int r = w.top; r < w.bottom; ++r) {
      const float* from = channel + w.offset + r * row_step_;
      float* to = patches_[i] + r * pitch;
      if (column_step_ != 1)
        for (int c = w.left; c < w.right; ++c) to[c] = from[c * column_step_];
      else  // what is written beyond the window's columns lies before the next row is written
        for (int c = 0; c < size; c += lanes<float>)
          store(to + c, load_between(from + c, maximum(w.left - c, 0),
                                     maximum(minimum(w.right - c, lanes<float>), maximum(w.left - c, 0))));
    }
  }

  int64_t row_step_, column_step_;
  int direct_count_ = 0, direct_[lanes<float>], patched_count_ = 0, patched_[lanes<float>];
  Window windows_[lanes<float>];
  const float* at_[lanes<float>];
  int64_t step_[lanes<float>];
  alignas(64) float patches_[lanes<float>][size * pitch + lanes<float>];
};

// The same for the tiles of outputs.
template <int outputs>
class TileWriter {
 public:
  TileWriter(const Tiles& tiles, const Images& images, int64_t first)
      : row_step_(images.row_step()), column_step_(images.column_step()) {
    for (int i = 0; i < lanes<float>; ++i) {
      windows_[i] = tiles.window(images, outputs, first + i);
      if (windows_[i].is_whole(outputs) && column_step_ == 1) {
        direct_[direct_count_++] = i;
        step_[i] = row_step_;
        continue;
      }
      patched_[patched_count_++] = i;
      step_[i] = outputs;
      at_[i] = patches_[i];
    }
  }

  FASTCONV_INLINE void open(float* channel) {
    for (int d = 0; d < direct_count_; ++d) at_[direct_[d]] = channel + windows_[direct_[d]].offset;
  }

  FASTCONV_INLINE void operator()(int r, const V (&row)[outputs]) const {
    float* rows[lanes<float>];
    for (int i = 0; i < lanes<float>; ++i) rows[i] = at_[i] + r * step_[i];
    if constexpr (outputs == 2) {
      store_pairs(rows, row);
    } else {
      V quads[4] = {row[0], row[1], row[2], row[3]};
      transpose_quads(quads);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) store_quads(rows + q, quads[q]);
    }
  }

  // Ends a channel.
  FASTCONV_INLINE void close(float* channel) const {
    for (int p = 0; p < patched_count_; ++p) {
      const Window& w = windows_[patched_[p]];
      const float* from = patches_[patched_[p]];
      for (int r = 0; r < w.bottom; ++r, from += outputs) {
        float* to = channel + w.offset + r * row_step_;
        if (column_step_ != 1) {
          for (int c = 0; c < w.right; ++c) to[c * column_step_] = from[c];
        } else if (w.right == 4) {
          std::memcpy(to, from, 16);
        } else {
          if (w.right & 2) std::memcpy(to, from, 8);
          if (w.right & 1) to[w.right - 1] = from[w.right - 1];
        }
      }
    }
  }

 private:
  int64_t row_step_, column_step_;
  int direct_count_ = 0, direct_[lanes<float>], patched_count_ = 0, patched_[lanes<float>];
  Window windows_[lanes<float>];
  float* at_[lanes<float>];
  int64_t step_[lanes<float>];
  alignas(64) float patches_[lanes<float>][outputs * outputs];
};

// ---- NHWC: a lane is a channel.

// One window in one vector of channels.
template <int size>
struct ChannelReader {
  const float* at;
  int64_t row_step, column_step;
  Window window;
  int count;  // of channels

  FASTCONV_INLINE void operator()(int r, V (&row)[size]) const {
    const float* from = at + r * row_step;
#pragma GCC unroll 6
    for (int j = 0; j < size; ++j) {
      const bool inside = r >= window.top && r < window.bottom && j >= window.left && j < window.right;
      row[j] = inside ? load_part(from + j * column_step, count) : V{};
    }
  }
};

// The transforms of one window, 36 of each channel, `product` floats apart; every second vector of channels lies `pair` floats
// after the second last.
template <class Transform>
inline void transform_channels(const Images& images, const Window& window, const float* pixels, int64_t channels, float* to,
                               int64_t pair, int64_t product) {
  ChannelReader<Transform::in> reader{pixels + window.offset, images.row_step(), images.column_step(), window, lanes<float>};
  ChannelReader<Transform::in> whole = reader;
  whole.window = {0, 0, Transform::in, 0, Transform::in};
  const bool is_whole = window.is_whole(Transform::in);
  for (int64_t v = 0; v * lanes<float> < channels; ++v) {
    const int64_t c = v * lanes<float>;
    const StoreProducts store_products{to + v / 2 * pair + v % 2 * lanes<float>, product};
    if (is_whole && c + lanes<float> <= channels) {
      whole.at = pixels + window.offset + c;
      transform_square<Transform>(whole, store_products);
    } else {
      reader.at = pixels + window.offset + c;
      reader.count = int(minimum<int64_t>(channels - c, lanes<float>));
      transform_square<Transform>(reader, store_products);
    }
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA::winograd
