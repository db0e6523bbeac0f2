// Convolution and its input gradient as a matrix product that is never laid out in memory: tiles of the input are gathered into
// cache while the product is formed.
//
// Both are sums over taps: output position first + i * step of an axis reads input position i * stride + offset(tap). A forward
// convolution has one phase (step 1). The input gradient has one phase for every residue of the position modulo the stride,
// each a dense convolution (stride 1) with those taps that reach it.
//
// The reduction is cut into fixed chunks whose sums are added in order, so rounding errors stay small, panels stay in the
// first-level cache, and an output's bits depend on nothing but its own inputs.
#include "conv.h"
#include "gemm_tile.h"
#include "im2col.h"
#include "parallel.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr bool wide = FASTCONV_VECTOR_BYTES == 64;  // 32 registers instead of 16
constexpr int64_t chunk_target = 256;               // steps of the reduction that are summed in registers

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The taps of one axis, sorted by the phase they belong to.
struct TapAxis {
  int64_t out, in;  // sizes
  int64_t step, stride;
  int64_t phases;
  int64_t* begin;  // the taps of phase f are taps[begin[f]] to taps[begin[f + 1]]
  Tap* taps;

  int64_t first(int64_t phase) const { return phase; }
  int64_t positions(int64_t phase) const { return ceil_div(out - phase, step); }
  int64_t tap_count(int64_t phase) const { return begin[phase + 1] - begin[phase]; }
};

TapAxis forward_axis(Workspace& space, int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  TapAxis axis = {out, in, 1, stride, 1, space.take<int64_t>(2), space.take<Tap>(kernel)};
  if (axis.taps) {
    axis.begin[0] = 0, axis.begin[1] = kernel;
    for (int64_t r = 0; r < kernel; ++r) axis.taps[r] = {r * dilation - pad, r};
  }
  return axis;
}

TapAxis gradient_axis(Workspace& space, int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad,
                      int64_t dilation) {
  const int64_t phases = minimum(stride, out);
  TapAxis axis = {out, in, stride, 1, phases, space.take<int64_t>(phases + 1), space.take<Tap>(kernel)};
  if (!axis.taps) return axis;
  auto phase_of = [&](int64_t r) { return ((r * dilation - pad) % stride + stride) % stride; };
  for (int64_t f = 0; f <= phases; ++f) axis.begin[f] = 0;
  for (int64_t r = 0; r < kernel; ++r)
    if (phase_of(r) < phases) ++axis.begin[phase_of(r) + 1];
  for (int64_t f = 0; f < phases; ++f) axis.begin[f + 1] += axis.begin[f];
  const int64_t total = axis.begin[phases];
  // Filling every phase from its end leaves the beginning of phase f in begin[f + 1].
  for (int64_t r = kernel - 1; r >= 0; --r) {
    const int64_t f = phase_of(r);
    if (f < phases) axis.taps[--axis.begin[f + 1]] = {(f + pad - r * dilation) / stride, r};
  }
  for (int64_t f = 0; f < phases; ++f) axis.begin[f] = axis.begin[f + 1];
  axis.begin[phases] = total;
  return axis;
}

struct Strides {
  int64_t image, channel, row, column;
};

Strides strides_of(Layout layout, int64_t channels, int64_t height, int64_t width) {
  const int64_t image = channels * height * width;
  return layout == Layout::channels_last ? Strides{image, 1, width * channels, channels}
                                         : Strides{image, height * width, width, 1};
}

// Either primitive, as a sum over taps. Channels are counted per group.
template <class T>
struct Correlation {
  const T *in, *weight, *bias;  // bias may be null
  T* out;
  int64_t n, groups, in_channels, out_channels, kernel_columns;
  Strides in_strides, out_strides;
  int64_t weight_group, weight_out, weight_in, weight_row, weight_column;  // strides of the weight
  TapAxis rows, columns;

  int64_t reduction(int64_t row_phase, int64_t column_phase) const {
    return in_channels * rows.tap_count(row_phase) * columns.tap_count(column_phase);
  }
  // Number of taps in all phases before this one.
  int64_t taps_before(int64_t row_phase, int64_t column_phase) const {
    return rows.begin[row_phase] * columns.begin[columns.phases] + rows.tap_count(row_phase) * columns.begin[column_phase];
  }
  PixelGrid grid(int64_t row_phase, int64_t column_phase) const {
    return {rows.positions(row_phase),
            columns.positions(column_phase),
            rows.stride,
            columns.stride,
            rows.in,
            columns.in,
            in_strides.image,
            in_strides.channel,
            in_strides.row,
            in_strides.column,
            rows.taps + rows.begin[row_phase],
            columns.taps + columns.begin[column_phase],
            rows.tap_count(row_phase),
            columns.tap_count(column_phase)};
  }
};

template <class T>
Correlation<T> correlation(const ConvProblem& p, Primitive primitive, const ConvArgs& args, Workspace& space) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const Strides x = strides_of(p.layout, p.c, p.h, p.w), y = strides_of(p.layout, p.k, p.p, p.q);
  const Strides w = strides_of(p.weight_layout, c, p.r, p.s);
  auto constant = [](const void* address) { return static_cast<const T*>(address); };
  if (primitive == Primitive::forward)
    return {constant(args.x),
            constant(args.w),
            constant(args.b),
            static_cast<T*>(args.y),
            p.n,
            p.groups,
            c,
            k,
            p.s,
            x,
            y,
            k * w.image,
            w.image,
            w.channel,
            w.row,
            w.column,
            forward_axis(space, p.p, p.h, p.r, p.stride_h, p.pad_top, p.dilation_h),
            forward_axis(space, p.q, p.w, p.s, p.stride_w, p.pad_left, p.dilation_w)};
  return {constant(args.gy),
          constant(args.w),
          constant(args.b),
          static_cast<T*>(args.gx),
          p.n,
          p.groups,
          k,
          c,
          p.s,
          y,
          x,
          k * w.image,
          w.channel,
          w.image,
          w.row,
          w.column,
          gradient_axis(space, p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h),
          gradient_axis(space, p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w)};
}

// How the output channels of a group are cut into panels of the weight, and the reduction into chunks.
struct Chunks {
  int64_t count, length;
  explicit Chunks(int64_t reduction)
      : count(maximum<int64_t>(1, ceil_div(reduction, chunk_target))), length(ceil_div(reduction, count)) {}
};

// How the work of one phase is cut: blocks of pixels times blocks of panels times groups.
struct Units {
  int64_t pixel_blocks, block_pixels, panel_blocks, block_panels, count;

  Units(int64_t pixels, int64_t pixel_step, int64_t most_pixels, int64_t panels, int64_t most_panels, int64_t groups,
        int threads) {
    panel_blocks = ceil_div(panels, most_panels);
    block_panels = ceil_div(panels, panel_blocks);
    const int64_t steps = ceil_div(pixels, pixel_step), others = panel_blocks * groups;
    int64_t blocks = ceil_div(pixels, most_pixels);
    if (threads > 1) {
      // Several units a thread, and as many for every thread where that is possible.
      blocks = maximum(blocks, ceil_div(int64_t(threads) * 4, others));
      if (others % threads) blocks = ceil_div(blocks, threads) * threads;
      blocks = minimum(blocks, steps);
    }
    block_pixels = ceil_div(steps, blocks) * pixel_step;
    pixel_blocks = ceil_div(pixels, block_pixels);
    count = pixel_blocks * others;
  }
};

// Copies rows of the weight, one for each output channel of a panel, to [reduction][width], zeros after the last channel.
template <class T>
void pack_panel(const Correlation<T>& q, const PixelGrid& grid, bool channels_last, const T* weight, int64_t valid,
                int64_t width, T* dst) {
  const int64_t taps = grid.taps();
  for (int64_t r = 0; r < grid.row_tap_count; ++r)
    for (int64_t s = 0; s < grid.column_tap_count; ++s) {
      const int64_t tap = r * grid.column_tap_count + s;
      const T* in = weight + grid.row_taps[r].index * q.weight_row + grid.column_taps[s].index * q.weight_column;
      T* out = dst + (channels_last ? tap * q.in_channels : tap) * width;
      const int64_t step = (channels_last ? 1 : taps) * width;
      for (int64_t c = 0; c < q.in_channels; ++c, in += q.weight_in, out += step) {
        for (int64_t i = 0; i < valid; ++i) out[i] = in[i * q.weight_out];
        for (int64_t i = valid; i < width; ++i) out[i] = T(0);
      }
    }
}

// Where the pixels of one block lie in the output, relative to the block's channel.
template <class T, int most>
struct OutputPixels {
  int64_t offset[most];
  int64_t count;

  OutputPixels(const Correlation<T>& q, const PixelGrid& grid, int64_t row_phase, int64_t column_phase, int64_t first,
               int64_t end)
      : count(end - first) {
    int64_t column = first % grid.columns, row = first / grid.columns % grid.rows, n = first / grid.columns / grid.rows;
    for (int64_t i = 0; i < count; ++i) {
      offset[i] = n * q.out_strides.image + (row_phase + row * q.rows.step) * q.out_strides.row +
                  (column_phase + column * q.columns.step) * q.out_strides.column;
      if (++column == grid.columns) {
        column = 0;
        if (++row == grid.rows) row = 0, ++n;
      }
    }
  }
};

// NCHW: vectors of pixels, the weight broadcast.
template <class T>
struct ChannelsFirst {
  static constexpr int rows = wide ? 8 : 6, vectors = wide ? 3 : 2, width = vectors * lanes<T>;
  static constexpr int most_pixels = 192, most_panels = 192 / rows;
  static constexpr bool channels_last = false;
  static constexpr int pixel_step = width, panel_width = rows;

  using Output = OutputPixels<T, most_pixels + width>;

  struct Scratch {
    T *pixels, *partial;
    PaddedRows<T> padded;
    Scratch(Workspace& space, const ConvProblem& problem, Primitive primitive, const Correlation<T>&)
        : pixels(space.take<T>(chunk_target * (most_pixels + width))),
          partial(space.take<T>(int64_t(most_panels) * rows * (most_pixels + width))) {
      if (primitive == Primitive::forward && PaddedRows<T>::worth(problem, most_pixels + width))
        padded = PaddedRows<T>(problem, most_pixels + width, space);
    }
  };

  static void finish(const Output& output, int64_t first, T* out, Vec<T> v) {
    const int64_t* offset = output.offset + first;
    const int64_t valid = output.count - first;
    if (valid >= lanes<T> && offset[lanes<T> - 1] - offset[0] == lanes<T> - 1) {
      store(out + offset[0], v);
    } else {
      for (int i = 0; i < minimum<int64_t>(valid, lanes<T>); ++i) out[offset[i]] = v[i];
    }
  }

  // One tile over one chunk: its sum goes to (first) or onto `partial`, and after the last chunk, with the bias, to the output.
  static void tile(int64_t count, const T* weight, const T* pixels, T* partial, bool first, bool last, const T* bias,
                   int64_t channels, const Output& output, int64_t pixel, T* out, int64_t out_channel) {
    Vec<T> acc[rows][vectors];
    multiply_tile<T, rows, vectors>(count, weight, pixels, acc);
    if (!first)
      for (int i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) acc[i][v] = load(partial + i * width + v * lanes<T>) + acc[i][v];
    if (!last) {
      for (int i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) store(partial + i * width + v * lanes<T>, acc[i][v]);
      return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      if (i >= channels) break;
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v)
        finish(output, pixel + v * lanes<T>, out + i * out_channel, bias ? acc[i][v] + splat(bias[i]) : acc[i][v]);
    }
  }

  static void unit(const Correlation<T>& q, const PixelGrid& grid, Scratch& scratch, const T*, const T* packed,
                   const Output& output, int64_t group, int64_t first_pixel, int64_t end_pixel, int64_t first_panel,
                   int64_t end_panel) {
    const int64_t reduction = q.in_channels * grid.taps(), pixel_panels = ceil_div(end_pixel - first_pixel, width);
    const Chunks chunks(reduction);
    const T* in = q.in + group * q.in_channels * q.in_strides.channel;
    if (scratch.padded.used()) scratch.padded.fill(grid, in, first_pixel, end_pixel);
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t begin = chunk * chunks.length, end = minimum(begin + chunks.length, reduction), count = end - begin;
      for (int64_t panel = 0; panel < pixel_panels; ++panel)
        for (int v = 0; v < vectors; ++v) {
          const PixelVector<T> read(grid, first_pixel + panel * width + v * lanes<T>, end_pixel);
          T* to = scratch.pixels + panel * width * count + v * lanes<T>;
          if (scratch.padded.used())
            scratch.padded.read(grid, read, begin, end, to, width);
          else
            read_taps(grid, read, in, begin, end, to, width);
        }
      for (int64_t panel = 0; panel < pixel_panels; ++panel)
        for (int64_t k = first_panel; k < end_panel; ++k) {
          const int64_t channel = group * q.out_channels + k * rows;
          tile(count, packed + (k * reduction + begin) * rows, scratch.pixels + panel * width * count,
               scratch.partial + ((k - first_panel) * pixel_panels + panel) * rows * width, chunk == 0,
               chunk == chunks.count - 1, q.bias ? q.bias + channel : nullptr, q.out_channels - k * rows, output, panel * width,
               q.out + channel * q.out_strides.channel, q.out_strides.channel);
        }
    }
  }
};

// NHWC: vectors of output channels, the pixels broadcast from where they lie in the input.
template <class T>
struct ChannelsLast {
  static constexpr int rows = 6, vectors = wide ? 4 : 2, width = vectors * lanes<T>;
  static constexpr int most_pixels = 96, most_panels = 384 / width < 1 ? 1 : 384 / width;
  static constexpr bool channels_last = true;
  static constexpr int pixel_step = rows, panel_width = width;

  using Output = OutputPixels<T, most_pixels + rows>;

  // The reduction as runs of consecutive elements of the input: the channels under one tap or, where these are few, under all
  // taps of a row of the kernel.
  struct Runs {
    int64_t taps, length, across;  // taps of one run, its elements, and how many make up a row of the kernel

    static bool merged(const Correlation<T>& q) { return q.in_channels <= 8 && q.groups == 1; }
    // Elements of the longest run of any phase.
    static int64_t longest(const Correlation<T>& q) { return merged(q) ? q.in_channels * q.kernel_columns : q.in_channels; }

    Runs(const Correlation<T>& q, const PixelGrid& grid) {
      const int64_t count = grid.column_tap_count;
      taps = merged(q) && count > 1 && grid.column_taps[1].offset - grid.column_taps[0].offset == 1 ? count : 1;
      length = taps * q.in_channels, across = count / taps;
    }
  };

  struct Scratch {
    const T** pixels;  // [tile][run][rows]
    T* edges;          // runs that lie partly in the padding
    Scratch(Workspace& space, const ConvProblem&, Primitive, const Correlation<T>& q)
        : pixels(space.take<const T*>((most_pixels + rows) * (chunk_target + 1))),
          edges(space.take<T>(Runs::merged(q) ? (most_pixels + rows) * (chunk_target + 2 * Runs::longest(q)) : 0)) {}
  };

  // One tile over one chunk, which begins at element `skipped` of the first run. Sums go to (first) or onto the output.
  template <int columns>
  static void tile(int64_t count, int64_t skipped, int64_t run, const T* const* pixels, const T* weight, bool first,
                   const T* bias, int64_t channels, const int64_t* offset, int64_t valid, T* out) {
    Vec<T> acc[rows][columns];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < columns; ++v) acc[i][v] = Vec<T>{};
    for (; count > 0; pixels += rows, skipped = 0) {
      const int64_t length = minimum(run - skipped, count);
      const T* pixel[rows];
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) pixel[i] = pixels[i] + skipped;
      for (int64_t c = 0; c < length; ++c) {
        Vec<T> column[columns];
#pragma GCC unroll 4
        for (int v = 0; v < columns; ++v) column[v] = load(weight + v * lanes<T>);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          const Vec<T> value = splat(pixel[i][c]);
#pragma GCC unroll 4
          for (int v = 0; v < columns; ++v) acc[i][v] = fma(value, column[v], acc[i][v]);
        }
        weight += columns * lanes<T>;
      }
      count -= length;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      if (i >= valid) break;
#pragma GCC unroll 4
      for (int v = 0; v < columns; ++v) {
        T* to = out + offset[i] + v * lanes<T>;
        const int64_t left = channels - v * lanes<T>;
        if (left >= lanes<T>) {
          Vec<T> sum = first ? acc[i][v] : load(to) + acc[i][v];
          store(to, bias ? sum + load(bias + v * lanes<T>) : sum);
        } else {
          const int n = int(left);
          Vec<T> sum = first ? acc[i][v] : load_first(to, n) + acc[i][v];
          store_first(to, bias ? sum + load_first(bias + v * lanes<T>, n) : sum, n);
        }
      }
    }
  }
  static constexpr decltype(&tile<1>) tiles[] = {tile<1>, tile<2>, tile < wide ? 3 : 2 >, tile < wide ? 4 : 2 > };

  // Fills pixels[tile][run][rows] with where each pixel reads runs first to end of the reduction.
  static void point(const Correlation<T>& q, const PixelGrid& grid, const Runs& runs, const T* in, const T* zeros,
                    int64_t first_pixel, int64_t count, int64_t first, int64_t end, const Scratch& scratch) {
    int64_t column = first_pixel % grid.columns, row = first_pixel / grid.columns % grid.rows,
            n = first_pixel / grid.columns / grid.rows;
    T* edge = scratch.edges;
    for (int64_t i = 0; i < ceil_div(count, rows) * rows; ++i) {
      const T** to = scratch.pixels + i / rows * rows * (end - first) + i % rows;
      int64_t s = first % runs.across, r = first / runs.across;
      for (int64_t run = first; run < end; ++run, to += rows) {
        const int64_t h = row * grid.stride_h + grid.row_taps[r].offset,
                      w = column * grid.stride_w + grid.column_taps[s].offset;
        const T* from = in + n * q.in_strides.image + h * q.in_strides.row + w * q.in_strides.column;
        if (i >= count || h < 0 || h >= grid.height || w + runs.taps <= 0 || w >= grid.width) {
          *to = zeros;
        } else if (w >= 0 && w + runs.taps <= grid.width) {
          *to = from;
        } else {
          *to = edge;
          for (int64_t e = 0; e < runs.length; ++e) {
            const int64_t at = w + e / q.in_channels;
            *edge++ = at >= 0 && at < grid.width ? from[e] : T(0);
          }
        }
        if (++s == runs.across) s = 0, ++r;
      }
      if (++column == grid.columns) {
        column = 0;
        if (++row == grid.rows) row = 0, ++n;
      }
    }
  }

  static void unit(const Correlation<T>& q, const PixelGrid& grid, Scratch& scratch, const T* zeros, const T* packed,
                   const Output& output, int64_t group, int64_t first_pixel, int64_t end_pixel, int64_t first_panel,
                   int64_t end_panel) {
    const int64_t reduction = q.in_channels * grid.taps();
    const Chunks chunks(reduction);
    const Runs runs(q, grid);
    const T* in = q.in + group * q.in_channels;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t begin = chunk * chunks.length, end = minimum(begin + chunks.length, reduction);
      const int64_t first = begin / runs.length, last = ceil_div(end, runs.length);
      if (end > begin) point(q, grid, runs, in, zeros, first_pixel, end_pixel - first_pixel, first, last, scratch);
      for (int64_t k = first_panel; k < end_panel; ++k) {
        const int64_t left = q.out_channels - k * width, columns = minimum<int64_t>(ceil_div(left, lanes<T>), vectors);
        const int64_t channel = group * q.out_channels + k * width;
        for (int64_t pixel = 0; pixel < output.count; pixel += rows)
          tiles[columns - 1](end - begin, begin - first * runs.length, runs.length, scratch.pixels + pixel * (last - first),
                             packed + k * width * reduction + begin * columns * lanes<T>, chunk == 0,
                             q.bias && chunk == chunks.count - 1 ? q.bias + channel : nullptr, left, output.offset + pixel,
                             output.count - pixel, q.out + channel);
      }
    }
  }
};

// Everything in the workspace; with a null address, how much it takes.
template <class T, class Core>
struct Memory {
  Correlation<T> q;
  int64_t panels;  // of a group
  T *packed, *zeros;
  char* scratch;
  int64_t packed_count, zero_count, scratch_bytes, bytes;

  Memory(const ConvProblem& problem, Primitive primitive, const ConvArgs& args) {
    Workspace space(args.workspace);
    q = correlation<T>(problem, primitive, args, space);
    panels = ceil_div(q.out_channels, Core::panel_width);
    packed_count = q.groups * panels * Core::panel_width * q.in_channels * problem.r * problem.s;
    packed = args.packed ? static_cast<T*>(args.packed) : space.take<T>(packed_count);
    zeros = space.take<T>(zero_count = ChannelsLast<T>::Runs::longest(q));
    Workspace one(nullptr);
    (void)typename Core::Scratch(one, problem, primitive, q);
    scratch_bytes = one.bytes();
    scratch = space.take<char>(scratch_bytes * args.threads);
    bytes = space.bytes();
  }

  T* packed_phase(int64_t row_phase, int64_t column_phase) const {
    return packed + q.groups * panels * Core::panel_width * q.in_channels * q.taps_before(row_phase, column_phase);
  }
};

// One thread's share of the panels.
template <class T, class Core>
void pack_panels(const Memory<T, Core>& memory, int id, int parts) {
  const Correlation<T>& q = memory.q;
  for (int64_t a = 0; a < q.rows.phases; ++a)
    for (int64_t b = 0; b < q.columns.phases; ++b) {
      const PixelGrid grid = q.grid(a, b);
      const int64_t reduction = q.in_channels * grid.taps();
      const Range mine = share(q.groups * memory.panels, id, parts);
      for (int64_t i = mine.begin; reduction && i < mine.end; ++i) {
        const int64_t group = i / memory.panels, first = i % memory.panels * Core::panel_width;
        const int64_t left = q.out_channels - first;
        const int64_t width =
            Core::channels_last ? minimum<int64_t>(ceil_div(left, lanes<T>) * lanes<T>, Core::panel_width) : Core::panel_width;
        pack_panel(q, grid, Core::channels_last, q.weight + group * q.weight_group + first * q.weight_out,
                   minimum<int64_t>(left, width), width, memory.packed_phase(a, b) + i * Core::panel_width * reduction);
      }
    }
}

template <class T, class Core>
void run(const ConvProblem& problem, Primitive primitive, const ConvArgs& args) {
  const Memory<T, Core> memory(problem, primitive, args);
  const Correlation<T>& q = memory.q;
  for (int64_t i = 0; i < memory.zero_count; ++i) memory.zeros[i] = T(0);
  parallel(args.threads, [&](int id, int parts) {
    if (!args.packed) {
      pack_panels(memory, id, parts);
      if (parts > 1) barrier();
    }
    Workspace space(memory.scratch + id * memory.scratch_bytes);
    typename Core::Scratch scratch(space, problem, primitive, q);
    for (int64_t a = 0; a < q.rows.phases; ++a)
      for (int64_t b = 0; b < q.columns.phases; ++b) {
        const PixelGrid grid = q.grid(a, b);
        const int64_t pixels = q.n * grid.rows * grid.columns, reduction = q.in_channels * grid.taps();
        const Units units(pixels, Core::pixel_step, Core::most_pixels, memory.panels, Core::most_panels, q.groups, parts);
        const Range mine = share(units.count, id, parts);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
          const int64_t pixel = i % units.pixel_blocks * units.block_pixels;
          const int64_t panel = i / units.pixel_blocks % units.panel_blocks * units.block_panels;
          const int64_t group = i / units.pixel_blocks / units.panel_blocks;
          const int64_t end = minimum(pixel + units.block_pixels, pixels);
          Core::unit(q, grid, scratch, memory.zeros,
                     memory.packed_phase(a, b) + group * memory.panels * Core::panel_width * reduction,
                     typename Core::Output(q, grid, a, b, pixel, end), group, pixel, end, panel,
                     minimum(panel + units.block_panels, memory.panels));
        }
      }
  });
}

// Calls f with the kernel for the problem's type and layout.
template <class F>
auto with_core(const ConvProblem& problem, const F& f) {
  const bool last = problem.layout == Layout::channels_last;
  if (problem.dtype == Dtype::float64) return last ? f(double{}, ChannelsLast<double>{}) : f(double{}, ChannelsFirst<double>{});
  return last ? f(float{}, ChannelsLast<float>{}) : f(float{}, ChannelsFirst<float>{});
}

template <Primitive primitive>
void implicit_gemm(const ConvProblem& problem, const ConvArgs& args) {
  with_core(problem, [&](auto zero, auto core) { run<decltype(zero), decltype(core)>(problem, primitive, args); });
}

template <Primitive primitive>
int64_t workspace_bytes(const ConvProblem& problem, int threads) {
  ConvArgs args{};
  args.threads = threads;
  return with_core(
      problem, [&](auto zero, auto core) { return Memory<decltype(zero), decltype(core)>(problem, primitive, args).bytes; });
}

template <Primitive primitive>
int64_t packed_bytes(const ConvProblem& problem) {
  return with_core(problem, [&](auto zero, auto core) {
    using T = decltype(zero);
    return Memory<T, decltype(core)>(problem, primitive, ConvArgs{}).packed_count * int64_t(sizeof(T));
  });
}

template <Primitive primitive>
void pack(const ConvProblem& problem, const ConvArgs& args) {
  with_core(problem, [&](auto zero, auto core) {
    const Memory<decltype(zero), decltype(core)> memory(problem, primitive, args);
    parallel(args.threads, [&](int id, int parts) { pack_panels(memory, id, parts); });
  });
}

bool always(const ConvProblem&) { return true; }

}  // namespace

const ConvAlgorithm implicit_gemm_forward = {"implicit_gemm",
                                             Primitive::forward,
                                             always,
                                             always,
                                             workspace_bytes<Primitive::forward>,
                                             implicit_gemm<Primitive::forward>,
                                             packed_bytes<Primitive::forward>,
                                             pack<Primitive::forward>};
const ConvAlgorithm implicit_gemm_input_gradient = {"implicit_gemm",
                                                    Primitive::input_gradient,
                                                    always,
                                                    always,
                                                    workspace_bytes<Primitive::input_gradient>,
                                                    implicit_gemm<Primitive::input_gradient>,
                                                    packed_bytes<Primitive::input_gradient>,
                                                    pack<Primitive::input_gradient>};

}  // namespace fastconv::cpu::FASTCONV_ISA
