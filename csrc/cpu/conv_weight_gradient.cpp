// The weight gradient as a matrix product over pixels: gw[k][e] = the sum over output pixels of gy[pixel][k] * x[pixel][e],
// where e counts channels times taps and x[pixel][e] is what the forward convolution reads. The bias gradient is one more e,
// whose x is 1.
//
// Pixels are taken in chunks that are summed in registers; chunk after chunk is added to sums in memory. Where these are small,
// the pixels are also cut into slices, so that many threads find work; slices depend on the problem alone, and their sums are
// added in order.
#include "conv.h"
#include "gemm_tile.h"
#include "im2col.h"
#include "parallel.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr bool wide = FASTCONV_VECTOR_BYTES == 64;  // 32 registers instead of 16
constexpr int chunk = 256;                          // pixels
constexpr int64_t most_slices = 16;
constexpr int64_t sums_to_slice = 1 << 18;  // below so many sums in all slices, slice
constexpr int vectors = 2;                  // of output channels in a tile
constexpr int rows = wide ? 12 : 6;         // of e in a tile
constexpr int block_panels = 192 / rows;    // of e packed at a time

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Sizes are per group. e = tap * channels + channel where the channels of a pixel are copied as they lie in NHWC, else
// channel * taps + tap.
template <class T>
struct WeightGradient {
  static constexpr int width = vectors * lanes<T>;  // output channels of a tile

  bool channels_last, weight_channels_last;
  bool padded_rows, channels_inner;  // how x is read
  const T *x, *gy;
  T *gw, *gb;
  int64_t groups, c, k, taps, pixels, out_pixels;  // out_pixels: of one image
  PixelGrid grid;
  int64_t x_group, gy_image, gy_group;  // strides
  int64_t slices, k_panels, e_panels;
  T *sums, *zeros;  // sums: [slice][group][panel of e][panel of k][rows][width]
  char* scratch;
  int64_t scratch_bytes, bytes;

  struct Scratch {
    T *x, *gy, *under_taps;
    const T** pointers;
    PaddedRows<T> padded;
    Scratch(Workspace& space, const ConvProblem& problem)
        : x(space.take<T>(block_panels * rows * chunk)),
          gy(space.take<T>(width * chunk)),
          under_taps(space.take<T>(block_panels * rows * lanes<T>)),
          pointers(space.take<const T*>(chunk)) {
      if (PaddedRows<T>::worth(problem, chunk)) padded = PaddedRows<T>(problem, chunk, space);
    }
  };

  WeightGradient(const ConvProblem& p, const ConvArgs& args)
      : channels_last(p.layout == Layout::channels_last),
        weight_channels_last(p.weight_layout == Layout::channels_last),
        padded_rows(PaddedRows<T>::worth(p, chunk)),
        channels_inner(channels_last && !padded_rows),
        x(static_cast<const T*>(args.x)),
        gy(static_cast<const T*>(args.gy)),
        gw(static_cast<T*>(args.gw)),
        gb(static_cast<T*>(args.gb)),
        groups(p.groups),
        c(p.c / p.groups),
        k(p.k / p.groups),
        taps(p.r * p.s),
        pixels(p.n * p.p * p.q),
        out_pixels(p.p * p.q) {
    Workspace space(args.workspace);
    Tap* row_taps = space.take<Tap>(p.r);
    Tap* column_taps = space.take<Tap>(p.s);
    if (row_taps) {
      for (int64_t r = 0; r < p.r; ++r) row_taps[r] = {r * p.dilation_h - p.pad_top, r};
      for (int64_t s = 0; s < p.s; ++s) column_taps[s] = {s * p.dilation_w - p.pad_left, s};
    }
    grid = {p.p, p.q, p.stride_h, p.stride_w, p.h, p.w, p.c * p.h * p.w, 0, 0, 0, row_taps, column_taps, p.r, p.s};
    if (channels_last)
      grid.channel = 1, grid.row = p.w * p.c, grid.column = p.c;
    else
      grid.channel = p.h * p.w, grid.row = p.w, grid.column = 1;
    x_group = c * grid.channel;
    gy_image = p.k * out_pixels;
    gy_group = channels_last ? k : k * out_pixels;
    k_panels = ceil_div(k, width);
    e_panels = ceil_div(c * taps + 1, rows);
    const int64_t tiles = groups * k_panels * e_panels, all = tiles * rows * width;
    slices = minimum(minimum(ceil_div(pixels, chunk), most_slices), maximum<int64_t>(1, sums_to_slice / all));
    sums = space.take<T>(slices * all);
    zeros = space.take<T>(c);
    Workspace one(nullptr);
    (void)Scratch(one, p);
    scratch_bytes = one.bytes();
    scratch = space.take<char>(scratch_bytes * args.threads);
    bytes = space.bytes();
  }

  int64_t reduction() const { return c * taps; }

  // gy of the output channels of one panel, transposed to [pixel][width] where it lies channel by channel.
  void pack_gy(int64_t group, int64_t panel, int64_t first, int64_t end, T* dst) const {
    const int64_t channels = minimum<int64_t>(k - panel * width, width);
    if (channels_last) {
      const int64_t pitch = k * groups;
      const T* in = gy + group * gy_group + panel * width + first * pitch;
      for (int64_t i = first; i < end; ++i, in += pitch, dst += width) {
        if (channels == width)
          std::memcpy(dst, in, width * sizeof(T));
        else
          for (int j = 0; j < width; ++j) dst[j] = j < channels ? in[j] : T(0);
      }
      return;
    }
    while (first < end) {
      const int64_t within = first % out_pixels;
      const int64_t count = minimum(end - first, out_pixels - within);
      const T* in = gy + first / out_pixels * gy_image + group * gy_group + panel * width * out_pixels + within;
      for (int64_t i = 0; i < count; i += lanes<T>) {
        const int valid = int(minimum<int64_t>(count - i, lanes<T>));
        for (int part = 0; part < vectors; ++part) {
          Vec<T> block[lanes<T>];
#pragma GCC unroll 16
          for (int j = 0; j < lanes<T>; ++j) {
            const int64_t channel = part * lanes<T> + j;
            const T* from = in + channel * out_pixels + i;
            block[j] = channel >= channels ? Vec<T>{} : valid == lanes<T> ? load(from) : load_first(from, valid);
          }
          transpose<T>(block);
          for (int j = 0; j < valid; ++j) store(dst + (i + j) * width + part * lanes<T>, block[j]);
        }
      }
      dst += count * width;
      first += count;
    }
  }

  // x[pixel][e] for panels of e as [panel][pixel][rows]: gathered by vectors of pixels and transposed.
  void pack_pixels(int64_t group, int64_t first_panel, int64_t end_panel, int64_t first, int64_t end,
                   const Scratch& scratch) const {
    const int64_t begin_e = first_panel * rows, end_e = minimum(end_panel * rows, reduction());
    const int64_t all = (end_panel - first_panel) * rows;
    for (int64_t i = 0; i < end - first; i += lanes<T>) {
      T* rows_of_e = scratch.under_taps;
      const int64_t gathered = maximum<int64_t>(end_e - begin_e, 0);
      const PixelVector<T> read(grid, first + i, end);
      if (padded_rows)
        scratch.padded.read(grid, read, begin_e, end_e, rows_of_e, lanes<T>);
      else if (gathered)
        read_taps(grid, read, x + group * x_group, begin_e, end_e, rows_of_e, lanes<T>);
      for (int64_t e = gathered; e < all; ++e) store(rows_of_e + e * lanes<T>, splat(T(begin_e + e == reduction())));
      for (int64_t panel = 0; panel < end_panel - first_panel; ++panel)
        transpose_panel<0>(rows_of_e + panel * rows * lanes<T>, scratch.x + (panel * chunk + i) * rows);
    }
  }

  template <int from>
  static void transpose_panel(const T* in, T* dst) {
    if constexpr (from < rows) {
      constexpr int count = rows - from < lanes<T> ? rows - from : lanes<T>;
      Vec<T> block[lanes<T>];
#pragma GCC unroll 16
      for (int j = 0; j < lanes<T>; ++j) block[j] = j < count ? load(in + (from + j) * lanes<T>) : Vec<T>{};
      transpose<T>(block);
#pragma GCC unroll 16
      for (int j = 0; j < lanes<T>; ++j) std::memcpy(dst + j * rows + from, &block[j], count * sizeof(T));
      transpose_panel<from + lanes<T>>(in, dst);
    }
  }

  // The same from NHWC, where the channels of a pixel lie together.
  void pack_channels(int64_t group, int64_t first_panel, int64_t end_panel, int64_t first, int64_t end,
                     const Scratch& scratch) const {
    int64_t pointed = -1;
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      T* dst = scratch.x + (panel - first_panel) * chunk * rows;
      for (int64_t i = 0, length; i < rows; i += length) {
        const int64_t e = panel * rows + i, tap = e / c, channel = e % c;
        if (e >= reduction()) {
          length = 1;
          for (int64_t pixel = 0; pixel < end - first; ++pixel) dst[pixel * rows + i] = T(e == reduction());
          continue;
        }
        if (tap != pointed) point(group, pointed = tap, first, end, scratch.pointers);
        length = minimum<int64_t>(rows - i, c - channel);
        if (length == rows) {
          for (int64_t pixel = 0; pixel < end - first; ++pixel)
            std::memcpy(dst + pixel * rows, scratch.pointers[pixel] + channel, rows * sizeof(T));
        } else {
          for (int64_t pixel = 0; pixel < end - first; ++pixel)
            for (int64_t j = 0; j < length; ++j) dst[pixel * rows + i + j] = scratch.pointers[pixel][channel + j];
        }
      }
    }
  }

  // What the pixels read under a tap: their first channel in x, or zeros.
  void point(int64_t group, int64_t tap, int64_t first, int64_t end, const T** pointers) const {
    const int64_t dh = grid.row_taps[tap / grid.column_tap_count].offset,
                  dw = grid.column_taps[tap % grid.column_tap_count].offset;
    int64_t column = first % grid.columns, row = first / grid.columns % grid.rows, n = first / out_pixels;
    for (int64_t i = 0; i < end - first; ++i) {
      const int64_t h = row * grid.stride_h + dh, w = column * grid.stride_w + dw;
      const bool inside = h >= 0 && h < grid.height && w >= 0 && w < grid.width;
      pointers[i] = inside ? x + n * grid.image + group * x_group + h * grid.row + w * grid.column : zeros;
      if (++column == grid.columns) {
        column = 0;
        if (++row == grid.rows) row = 0, ++n;
      }
    }
  }

  T* tile_sums(int64_t slice, int64_t group, int64_t e_panel, int64_t k_panel) const {
    return sums + (((slice * groups + group) * e_panels + e_panel) * k_panels + k_panel) * rows * width;
  }

  static void tile(int64_t count, const T* x, const T* gy, T* sums, bool first) {
    Vec<T> acc[rows][vectors];
    multiply_tile<T, rows, vectors>(count, x, gy, acc);
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) {
        T* to = sums + i * width + v * lanes<T>;
        store(to, first ? acc[i][v] : load(to) + acc[i][v]);
      }
  }

  void sum_slice(int64_t slice, int64_t group, Range panels, Scratch& scratch) const {
    const Range chunks = share(ceil_div(pixels, chunk), int(slice), int(slices));
    for (int64_t i = chunks.begin; i < chunks.end; ++i) {
      const int64_t first = i * chunk, end = minimum(first + chunk, pixels);
      if (padded_rows) scratch.padded.fill(grid, x + group * x_group, first, end);
      for (int64_t block = panels.begin; block < panels.end; block += block_panels) {
        const int64_t block_end = minimum(block + block_panels, panels.end);
        if (channels_inner)
          pack_channels(group, block, block_end, first, end, scratch);
        else
          pack_pixels(group, block, block_end, first, end, scratch);
        for (int64_t kp = 0; kp < k_panels; ++kp) {
          pack_gy(group, kp, first, end, scratch.gy);
          for (int64_t ep = block; ep < block_end; ++ep)
            tile(end - first, scratch.x + (ep - block) * chunk * rows, scratch.gy, tile_sums(slice, group, ep, kp),
                 i == chunks.begin);
        }
      }
    }
  }

  // Adds the slices of one panel of e and writes it.
  void finish(int64_t group, int64_t ep) const {
    const int64_t e_count = minimum<int64_t>(rows, reduction() + 1 - ep * rows);
    int64_t offset[rows];
    for (int64_t i = 0; i < e_count; ++i) {
      const int64_t e = ep * rows + i;
      const int64_t tap = channels_inner ? e / c : e % taps, channel = channels_inner ? e % c : e / taps;
      offset[i] = weight_channels_last ? tap * c + channel : channel * taps + tap;
    }
    for (int64_t kp = 0; kp < k_panels; ++kp) {
      T* tile = tile_sums(0, group, ep, kp);
      for (int64_t slice = 1; slice < slices; ++slice) {
        const T* more = tile_sums(slice, group, ep, kp);
        for (int i = 0; i < rows * width; i += lanes<T>) store(tile + i, load(tile + i) + load(more + i));
      }
      for (int64_t j = 0; j < minimum<int64_t>(width, k - kp * width); ++j) {
        const int64_t channel = group * k + kp * width + j;
        for (int64_t i = 0; i < e_count; ++i) {
          if (ep * rows + i < reduction())
            gw[channel * reduction() + offset[i]] = tile[i * width + j];
          else if (gb)
            gb[channel] = tile[i * width + j];
        }
      }
    }
  }

  void run(const ConvProblem& problem, int threads) const {
    for (int64_t i = 0; i < c; ++i) zeros[i] = T(0);
    parallel(threads, [&](int id, int parts) {
      Workspace space(scratch + id * scratch_bytes);
      Scratch mine(space, problem);
      // Panels of e are split only as far as threads need it: every part packs the same gy.
      const int64_t units = groups * slices, splits = units % parts ? minimum<int64_t>(parts, e_panels) : 1;
      const Range work = share(units * splits, id, parts);
      for (int64_t i = work.begin; i < work.end; ++i)
        sum_slice(i / splits % slices, i / splits / slices, share(e_panels, int(i % splits), int(splits)), mine);
      if (parts > 1) barrier();
      const Range written = share(groups * e_panels, id, parts);
      for (int64_t i = written.begin; i < written.end; ++i) finish(i / e_panels, i % e_panels);
    });
  }
};

void run(const ConvProblem& problem, const ConvArgs& args) {
  if (problem.dtype == Dtype::float64)
    WeightGradient<double>(problem, args).run(problem, args.threads);
  else
    WeightGradient<float>(problem, args).run(problem, args.threads);
}

int64_t workspace_bytes(const ConvProblem& problem, int threads) {
  ConvArgs args{};
  args.threads = threads;
  return problem.dtype == Dtype::float64 ? WeightGradient<double>(problem, args).bytes
                                         : WeightGradient<float>(problem, args).bytes;
}

bool always(const ConvProblem&) { return true; }

}  // namespace

const ConvAlgorithm implicit_gemm_weight_gradient = {
    "implicit_gemm", Primitive::weight_gradient, always, always, workspace_bytes, run};

}  // namespace fastconv::cpu::FASTCONV_ISA
