// Algorithm "grouped": channels_last convolution with about a vector's worth of channels a group. Forward, input gradient,
// weight gradient.
//
// A vector lies along the output channels of a group. The channels of as many groups as fill a cache line are copied into a
// zero-padded image, whose pixels lie close together. A tile of consecutive output pixels is summed in registers: an input,
// broadcast, times a vector of weights. The weight gradient sums tiles of (input channel, tap) pairs over the pixels: an input,
// broadcast, times a vector of output gradients.
#include "conv_algorithm.h"
#include "conv_axis.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t most_channels = 32;      // a group, in and out
constexpr int64_t band_bytes = 20 * 1024;  // of the copy: small, as lines fetched ahead lie far apart in few cache sets
constexpr bool many_registers = vector_bytes == 64;  // 32 instead of 16
constexpr int most_vectors = 2;                      // of output channels in a tile
constexpr int most_pixels(int vectors) { return vectors == 1 || many_registers ? 14 : 6; }

// ---------------------------------------------------------------------------------------------------------------------------
// The padded image

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One side of the problem: images of groups of channels.
struct Side {
  int64_t channels, width, height;  // channels a group
  int64_t pixel;                    // from one pixel of the copy to the next: the channels of a bundle, to whole cache lines
};

struct GroupedShape {
  Axis rows, columns;
  int64_t groups, bundle, bundles;  // groups worked on together
  Side in, out;
  int64_t band, bands;      // output rows (of each phase) worked on at once
  int64_t row_pitch;        // of the copy
  int64_t vectors, blocks;  // of an output group's channels; in blocks of most_vectors
  int64_t taps;             // of all phases
  int64_t first(int64_t index) const { return index * bundle; }
  int64_t groups_of(int64_t index) const { return minimum(bundle, groups - first(index)); }
  int64_t block_vectors(int64_t block) const { return minimum<int64_t>(most_vectors, vectors - block * most_vectors); }
};

template <class T>
GroupedShape grouped_shape(const ConvProblem& q, bool forward) {
  GroupedShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.groups = q.groups, s.taps = q.r * q.s;
  const int64_t c = q.c / q.groups, k = q.k / q.groups, line = 64 / int64_t(sizeof(T));
  s.bundle = minimum(q.groups, maximum<int64_t>(1, line / minimum(c, k)));
  s.bundles = ceil_div(q.groups, s.bundle);
  auto lines = [&](int64_t channels) { return ceil_div(s.bundle * channels, line) * line; };
  const Side x = {c, q.w, q.h, lines(c)}, y = {k, q.q, q.p, lines(k)};
  s.in = forward ? x : y, s.out = forward ? y : x;
  s.row_pitch = s.columns.reach(s.columns.phase[0].count) * s.in.pixel;
  s.vectors = ceil_div(s.out.channels, lanes<T>), s.blocks = ceil_div(s.vectors, most_vectors);
  s.band = s.rows.phase[0].count;
  while (s.band > 4 && s.rows.reach(s.band) * s.row_pitch * int64_t(sizeof(T)) > band_bytes) s.band = (s.band + 1) / 2;
  s.bands = ceil_div(s.rows.phase[0].count, s.band);
  return s;
}

// `pixels` times `channels` elements, `pitch` apart, to whole vectors `pixel` apart.
template <class T>
inline void copy_pixels(const T* from, int64_t pitch, int64_t pixels, int64_t channels, T* to, int64_t pixel) {
  constexpr int L = lanes<T>;
  const int64_t whole = channels / L * L;
  const int left = int(channels - whole);
  for (int64_t i = 0; i < pixels; ++i, from += pitch, to += pixel) {
    for (int64_t c = 0; c < whole; c += L) store<T>(to + c, load(from + c));
    if (left) store<T>(to + whole, load_first(from + whole, left));
  }
}

template <class T>
inline void zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes<T>) store<T>(to + i, Vec<T>{});
}

// The input rows that `outputs` rows of outputs read, from `top` on, of `channels` channels from `image` on.
template <class T>
void fill_image(const GroupedShape& s, const T* image, int64_t channels, int64_t top, int64_t outputs, T* to) {
  const int64_t total = s.groups * s.in.channels, columns = s.columns.reach(s.columns.phase[0].count);
  const int64_t begin = minimum(columns, maximum<int64_t>(0, -s.columns.lowest));
  const int64_t end = maximum(begin, minimum(columns, s.in.width - s.columns.lowest));
  for (int64_t h = top; h < top + s.rows.reach(outputs); ++h, to += s.row_pitch) {
    if (h < 0 || h >= s.in.height) {
      zero<T>(to, s.row_pitch);
      continue;
    }
    zero<T>(to, begin * s.in.pixel);
    copy_pixels<T>(image + (h * s.in.width + s.columns.lowest + begin) * total, total, end - begin, channels,
                   to + begin * s.in.pixel, s.in.pixel);
    zero<T>(to + end * s.in.pixel, (columns - end) * s.in.pixel);
  }
}

// Where the taps of one pair of phases read, from the beginning of the copy.
inline void fill_offsets(const GroupedShape& s, const AxisPhase& row, const AxisPhase& column, int64_t* offsets) {
  for (int64_t r = 0; r < row.taps; ++r)
    for (int64_t t = 0; t < column.taps; ++t)
      *offsets++ = (row.start - s.rows.lowest + r * s.rows.tap_step) * s.row_pitch +
                   (column.start - s.columns.lowest + t * s.columns.tap_step) * s.in.pixel;
}

// Calls body(row phase, column phase, taps before this pair).
template <class Body>
inline void each_phase(const GroupedShape& s, const Body& body) {
  int64_t before = 0;
  for (int64_t a = 0; a < s.rows.phases; ++a)
    for (int64_t b = 0; b < s.columns.phases; ++b) {
      body(s.rows.phase[a], s.columns.phase[b], before);
      before += s.rows.phase[a].taps * s.columns.phase[b].taps;
    }
}

// Where the work on one band of one bundle of groups of an image begins.
struct Unit {
  int64_t bundle, band, n;
  Unit(const GroupedShape& s, int64_t index)
      : bundle(index % s.bundles), band(index / s.bundles % s.bands), n(index / s.bundles / s.bands) {}
  Unit(int64_t bundle_index, int64_t band_index, int64_t image) : bundle(bundle_index), band(band_index), n(image) {}
  // The first pixel of row `row` of the image, at the bundle's channels.
  int64_t at(const GroupedShape& s, const Side& side, int64_t row) const {
    return ((n * side.height + row) * side.width * s.groups + s.first(bundle)) * side.channels;
  }
};

// The lines of its rows begin .. end - 1, over so many steps.
template <class T, bool WRITE>
Prefetch<T, WRITE> prefetch_rows(const GroupedShape& s, const Side& side, const Unit* unit, const T* base, int64_t begin,
                                 int64_t end, int64_t steps) {
  begin = maximum<int64_t>(begin, 0), end = minimum(end, side.height);
  const int64_t pixels = maximum<int64_t>(0, end - begin) * side.width;
  return {unit ? base + unit->at(s, side, begin) : nullptr, pixels, s.groups * side.channels, steps};
}

// ---------------------------------------------------------------------------------------------------------------------------
// Forward and input gradient

template <class T>
struct PixelTile {
  const T* in;             // at the first pixel
  int64_t step;            // from the input of one pixel to that of the next
  const int64_t* offsets;  // of the taps
  int64_t taps, channels;
  const T* weights;  // [tap][channel] vectors of output channels
  const T* bias;
  T* out;
  int64_t out_step;
  int width;  // lanes to store of the last vector
};

// LINE: the step is a cache line, so that addresses are known here.
template <class T, int PIXELS, int VECTORS, bool LINE>
__attribute__((noinline)) void pixel_tile(const PixelTile<T>& t) {
  constexpr int L = lanes<T>;
  Vec<T> sum[PIXELS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < PIXELS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sum[i][v] = load(t.bias + v * L);
  const T* weights = t.weights;
  const int64_t step = LINE ? 64 / int64_t(sizeof(T)) : t.step;
  auto add = [&](const T* in) __attribute__((always_inline)) {
    Vec<T> weight[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) weight[v] = load(weights + v * L);
    weights += VECTORS * L;
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; ++i) {
      const Vec<T> x = splat(in[i * step]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[i][v] = fma(x, weight[v], sum[i][v]);
    }
  };
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const T* in = t.in + t.offsets[tap];
    int64_t c = 0;
    for (; c + 4 <= t.channels; c += 4)  // so many that the loops' ends are foreseen
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) add(in + c + j);
    for (; c < t.channels; ++c) add(in + c);
  }
#pragma GCC unroll 16
  for (int i = 0; i < PIXELS; ++i) {
    T* out = t.out + i * t.out_step;
#pragma GCC unroll 2
    for (int v = 0; v + 1 < VECTORS; ++v) store<T>(out + v * L, sum[i][v]);
    if (t.width == L)
      store<T>(out + (VECTORS - 1) * L, sum[i][VECTORS - 1]);
    else
      store_first(out + (VECTORS - 1) * L, sum[i][VECTORS - 1], t.width);
  }
}

template <class T>
using PixelKernel = void (*)(const PixelTile<T>&);

template <class T, int VECTORS, bool LINE, int PIXELS = most_pixels(VECTORS)>
PixelKernel<T> pixel_kernel(int64_t pixels) {
  if constexpr (PIXELS == 1)
    return pixel_tile<T, 1, VECTORS, LINE>;
  else
    return pixels >= PIXELS ? pixel_tile<T, PIXELS, VECTORS, LINE> : pixel_kernel<T, VECTORS, LINE, PIXELS - 1>(pixels);
}
template <class T>
PixelKernel<T> pixel_kernel(int64_t pixels, int64_t vectors, int64_t step) {
  const bool line = step == 64 / int64_t(sizeof(T));
  if (vectors == 1) return line ? pixel_kernel<T, 1, true>(pixels) : pixel_kernel<T, 1, false>(pixels);
  return line ? pixel_kernel<T, 2, true>(pixels) : pixel_kernel<T, 2, false>(pixels);
}

template <class T>
struct GatherScratch {
  T* image;
  int64_t* offsets;
  int64_t bytes;
  GatherScratch(const GroupedShape& s, void* base) {
    Workspace memory(base);
    image = memory.take<T>(s.rows.reach(s.band) * s.row_pitch + lanes<T>);
    offsets = memory.take<int64_t>(s.taps);
    bytes = memory.bytes();
  }
};

template <class T>
struct GatherMemory {
  T* weights;  // [phases][group][block][tap][channel] vectors; all groups of a pair of phases together
  T* bias;     // [group] vectors
  char* threads;
  int64_t thread_bytes, bytes;
  GatherMemory(const GroupedShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(s.groups * s.vectors * s.taps * s.in.channels * lanes<T>);
    bias = memory.take<T>(s.groups * s.vectors * lanes<T>);
    thread_bytes = GatherScratch<T>(s, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

template <class T>
void pack_group(const ConvProblem& q, const GroupedShape& s, bool forward, const T* w, const T* bias, int64_t group,
                const GatherMemory<T>& memory) {
  constexpr int L = lanes<T>;
  const int64_t c = q.c / q.groups, k = q.k / q.groups, outs = s.out.channels;
  const bool last = q.weight_layout == Layout::channels_last;
  const int64_t tap_step = last ? c : 1, c_step = last ? 1 : s.taps, k_step = c * s.taps;
  const int64_t in_step = forward ? c_step : k_step, out_step = forward ? k_step : c_step;
  w += group * k * k_step;
  for (int64_t i = 0; i < s.vectors * L; ++i)
    memory.bias[group * s.vectors * L + i] = bias && i < outs ? bias[group * outs + i] : T(0);
  each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
    const int64_t taps = row.taps * column.taps;
    T* to = memory.weights + (before * s.groups + group * taps) * s.in.channels * s.vectors * L;
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t begin = block * most_vectors * L, end = begin + s.block_vectors(block) * L;
      for (int64_t r = 0; r < row.taps; ++r)
        for (int64_t t = 0; t < column.taps; ++t) {
          const T* from =
              w +
              ((row.first_weight + r * s.rows.weight_step) * q.s + column.first_weight + t * s.columns.weight_step) * tap_step;
          for (int64_t in = 0; in < s.in.channels; ++in, from += in_step)
            for (int64_t out = begin; out < end; ++out) *to++ = out < outs ? from[out * out_step] : T(0);
        }
    }
  });
}

template <class T>
void gather_unit(const GroupedShape& s, const GatherScratch<T>& scratch, const GatherMemory<T>& memory, const Unit& unit,
                 const Unit* next, const T* in, T* out) {
  constexpr int L = lanes<T>;
  const int64_t bundle = unit.bundle, begin = unit.band * s.band, band_end = minimum(begin + s.band, s.rows.phase[0].count);
  fill_image<T>(s, in + unit.at(s, s.in, 0), s.groups_of(bundle) * s.in.channels, s.rows.lowest + begin * s.rows.in_step,
                band_end - begin, scratch.image);
  const int64_t total = s.groups * s.out.channels;
  const int64_t steps = s.band * s.rows.phases * s.columns.phases * ceil_div(s.columns.phase[0].count, 12);
  const int64_t next_begin = next ? next->band * s.band : 0, next_top = s.rows.lowest + next_begin * s.rows.in_step;
  auto reads = prefetch_rows<T, false>(s, s.in, next, in, next_top, next_top + s.rows.reach(s.band), steps);
  auto writes =
      prefetch_rows<T, true>(s, s.out, next, out, next_begin * s.rows.out_step, (next_begin + s.band) * s.rows.out_step, steps);
  out += unit.at(s, s.out, 0);
  each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
    const int64_t taps = row.taps * column.taps, end = minimum(band_end, row.count);
    PixelTile<T> tile;
    tile.step = s.columns.in_step * s.in.pixel;
    tile.offsets = scratch.offsets + before, tile.taps = taps, tile.channels = s.in.channels;
    tile.out_step = s.columns.out_step * total;
    const int64_t most = most_pixels(int(minimum<int64_t>(s.vectors, most_vectors)));
    const int64_t tiles = ceil_div(column.count, most);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t n = 0; n < tiles; ++n) {
        const Range pixels = share(column.count, int(n), int(tiles));
        const T* at = scratch.image + (i - begin) * s.rows.in_step * s.row_pitch + pixels.begin * tile.step;
        T* to = out + ((row.first + i * s.rows.out_step) * s.out.width + column.first) * total + pixels.begin * tile.out_step;
        for (int64_t g = 0; g < s.groups_of(bundle); ++g) {
          const int64_t group = s.first(bundle) + g;
          const T* weights = memory.weights + (before * s.groups + group * taps) * s.in.channels * s.vectors * L;
          tile.in = at + g * s.in.channels;
          for (int64_t block = 0; block < s.blocks; ++block) {
            const int64_t vectors = s.block_vectors(block), first = block * most_vectors * L;
            tile.weights = weights + first * taps * s.in.channels;
            tile.bias = memory.bias + group * s.vectors * L + first;
            tile.out = to + g * s.out.channels + first;
            tile.width = int(minimum<int64_t>(L, s.out.channels - first - (vectors - 1) * L));
            pixel_kernel<T>(pixels.end - pixels.begin, vectors, tile.step)(tile);
          }
        }
        reads.step();
        writes.step();
      }
  });
}

template <class T>
void gather_outputs(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                    int threads) {
  const GroupedShape s = grouped_shape<T>(q, forward);
  const GatherMemory<T> memory(s, workspace, threads);
  parallel(threads, [&](int id, int parts) {
    const Range groups = share(s.groups, id, parts);
    for (int64_t g = groups.begin; g < groups.end; ++g) pack_group<T>(q, s, forward, w, bias, g, memory);
    if (parts > 1) barrier();
    const GatherScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
      fill_offsets(s, row, column, scratch.offsets + before);
    });
    const Range units = share(q.n * s.bands * s.bundles, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const Unit next(s, u + 1);
      gather_unit<T>(s, scratch, memory, Unit(s, u), u + 1 < units.end ? &next : nullptr, in, out);
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// Weight gradient: sum over pixels of gy[k] * x[c] shifted by a tap

constexpr int most_tile_taps = 3;
constexpr int most_tile_channels(int vectors) { return vectors == 1 || many_registers ? 4 : 2; }

template <class T>
struct GradientTile {
  const T* x[most_tile_taps];  // at the first channel of the tile, for each tap
  int64_t x_step, x_row;       // from the input of one pixel, and row, to that of the next
  const T* gy;
  int64_t gy_step, rows, pixels;
  T* sum;  // [tap][channel] vectors
  int64_t sum_tap;
};

template <class T, int TAPS, int CHANNELS, int VECTORS>
__attribute__((noinline)) void gradient_tile(const GradientTile<T>& t) {
  constexpr int L = lanes<T>;
  Vec<T> sum[TAPS][CHANNELS][VECTORS];
#pragma GCC unroll 4
  for (int r = 0; r < TAPS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < CHANNELS; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[r][c][v] = load(t.sum + r * t.sum_tap + (c * VECTORS + v) * L);
  const T* from = t.gy;
  for (int64_t row = 0; row < t.rows; ++row) {
    const T* x[TAPS];
#pragma GCC unroll 4
    for (int r = 0; r < TAPS; ++r) x[r] = t.x[r] + row * t.x_row;
    for (int64_t i = 0; i < t.pixels; ++i, from += t.gy_step) {
      Vec<T> gy[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) gy[v] = load(from + v * L);
#pragma GCC unroll 4
      for (int r = 0; r < TAPS; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < CHANNELS; ++c) {
          const Vec<T> in = splat(x[r][c]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sum[r][c][v] = fma(in, gy[v], sum[r][c][v]);
        }
        x[r] += t.x_step;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < TAPS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < CHANNELS; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) store<T>(t.sum + r * t.sum_tap + (c * VECTORS + v) * L, sum[r][c][v]);
}

template <class T>
using GradientKernel = void (*)(const GradientTile<T>&);

template <class T, int TAPS, int VECTORS, int CHANNELS = most_tile_channels(VECTORS)>
GradientKernel<T> gradient_kernel(int64_t channels) {
  if constexpr (CHANNELS == 1)
    return gradient_tile<T, TAPS, 1, VECTORS>;
  else
    return channels >= CHANNELS ? gradient_tile<T, TAPS, CHANNELS, VECTORS>
                                : gradient_kernel<T, TAPS, VECTORS, CHANNELS - 1>(channels);
}
template <class T, int VECTORS>
GradientKernel<T> gradient_kernel(int64_t taps, int64_t channels) {
  return taps == 1   ? gradient_kernel<T, 1, VECTORS>(channels)
         : taps == 2 ? gradient_kernel<T, 2, VECTORS>(channels)
                     : gradient_kernel<T, 3, VECTORS>(channels);
}

template <class T>
struct GradientShape {
  GroupedShape grouped;  // of the forward
  int64_t slices;        // of the batch, summed apart and added up in order, so that few groups keep many threads busy
  int64_t gy_pixel;      // the output gradients of a bundle: each group's to whole vectors
  int64_t sums;          // vectors of a group
  explicit GradientShape(const ConvProblem& q) : grouped(grouped_shape<T>(q, true)) {
    slices = maximum<int64_t>(1, minimum(q.n, 64 / grouped.bundles));
    gy_pixel = grouped.bundle * grouped.vectors * lanes<T>;
    sums = grouped.vectors * grouped.taps * grouped.in.channels;
  }
};

template <class T>
struct GradientScratch {
  T* image;
  T* gy;
  int64_t* offsets;
  int64_t bytes;
  GradientScratch(const GradientShape<T>& g, void* base) {
    Workspace memory(base);
    const GroupedShape& s = g.grouped;
    image = memory.take<T>(s.rows.reach(s.band) * s.row_pitch + lanes<T>);
    gy = memory.take<T>(s.band * s.out.width * g.gy_pixel);
    offsets = memory.take<int64_t>(s.taps);
    bytes = memory.bytes();
  }
};

template <class T>
struct GradientMemory {
  T* partial;       // [slice][group][block][tap][channel] vectors
  T* partial_bias;  // [slice][group] vectors
  char* threads;
  int64_t thread_bytes, bytes;
  GradientMemory(const GradientShape<T>& g, void* base, int count) {
    Workspace memory(base);
    const GroupedShape& s = g.grouped;
    partial = memory.take<T>(g.slices * s.groups * g.sums * lanes<T>);
    partial_bias = memory.take<T>(g.slices * s.groups * s.vectors * lanes<T>);
    thread_bytes = GradientScratch<T>(g, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

// Adds one band of one image to the sums of a bundle's groups.
template <class T>
void add_unit(const ConvProblem& q, const GradientShape<T>& g, const GradientScratch<T>& scratch, const Unit& unit,
              const Unit* next, const T* gy, const T* x, T* sums, T* bias_sums) {
  constexpr int L = lanes<T>;
  const GroupedShape& s = g.grouped;
  const int64_t begin = unit.band * s.band, count = minimum(s.band, q.p - begin), pixels = count * q.q;
  const int64_t groups = s.groups_of(unit.bundle), total = s.groups * s.out.channels;
  fill_image<T>(s, x + unit.at(s, s.in, 0), groups * s.in.channels, s.rows.lowest + begin * s.rows.in_step, count,
                scratch.image);
  for (int64_t i = 0; i < groups; ++i)
    copy_pixels<T>(gy + unit.at(s, s.out, begin) + i * s.out.channels, total, pixels, s.out.channels,
                   scratch.gy + i * s.vectors * L, g.gy_pixel);
  const int64_t steps = groups * s.vectors * s.taps * s.in.channels / 12;
  const int64_t next_begin = next ? next->band * s.band : 0, next_top = s.rows.lowest + next_begin * s.rows.in_step;
  auto inputs = prefetch_rows<T, false>(s, s.in, next, x, next_top, next_top + s.rows.reach(s.band), steps);
  auto gradients = prefetch_rows<T, false>(s, s.out, next, gy, next_begin, next_begin + s.band, steps);
  for (int64_t i = 0; i < groups; ++i)
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t vectors = s.block_vectors(block), first = block * most_vectors * L;
      GradientTile<T> tile;
      tile.x_step = s.columns.in_step * s.in.pixel, tile.x_row = s.rows.in_step * s.row_pitch;
      tile.gy = scratch.gy + i * s.vectors * L + first;
      tile.gy_step = g.gy_pixel, tile.rows = count, tile.pixels = q.q;
      tile.sum_tap = s.in.channels * vectors * L;
      T* block_sums = sums + i * g.sums * L + first * s.taps * s.in.channels;
      for (int64_t tap = 0; tap < s.taps; tap += most_tile_taps) {
        const int64_t taps = minimum<int64_t>(most_tile_taps, s.taps - tap);
        const int64_t most = most_tile_channels(int(vectors));
        for (int64_t c = 0; c < s.in.channels; c += most) {
          const int64_t channels = minimum(most, s.in.channels - c);
          for (int64_t t = 0; t < taps; ++t) tile.x[t] = scratch.image + scratch.offsets[tap + t] + i * s.in.channels + c;
          tile.sum = block_sums + tap * tile.sum_tap + c * vectors * L;
          (vectors == 1 ? gradient_kernel<T, 1>(taps, channels) : gradient_kernel<T, 2>(taps, channels))(tile);
          inputs.step();
          gradients.step();
        }
      }
    }
  if (!bias_sums) return;
  for (int64_t i = 0; i < groups * s.vectors; ++i) {
    // Four sums at a time hide the latency of addition.
    Vec<T> sum[4] = {load(bias_sums + i * L)};
    const T* from = scratch.gy + i * L;
    for (int64_t p = 0; p < pixels; ++p, from += g.gy_pixel) sum[p % 4] += load(from);
    store<T>(bias_sums + i * L, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

template <class T>
void reduce_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const GradientShape<T> g(q);
  const GroupedShape& s = g.grouped;
  const GradientMemory<T> memory(g, workspace, threads);
  const int64_t c = s.in.channels, k = s.out.channels;
  parallel(threads, [&](int id, int parts) {
    const GradientScratch<T> scratch(g, memory.threads + id * memory.thread_bytes);
    fill_offsets(s, s.rows.phase[0], s.columns.phase[0], scratch.offsets);
    const Range units = share(g.slices * s.bundles, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / s.bundles, bundle = u % s.bundles, group = slice * s.groups + s.first(bundle);
      T *sums = memory.partial + group * g.sums * L, *bias_sums = memory.partial_bias + group * s.vectors * L;
      zero<T>(sums, s.groups_of(bundle) * g.sums * L);
      zero<T>(bias_sums, s.groups_of(bundle) * s.vectors * L);
      const Range batch = share(q.n, int(slice), int(g.slices));
      for (int64_t n = batch.begin; n < batch.end; ++n)
        for (int64_t band = 0; band < s.bands; ++band) {
          const bool more_bands = band + 1 < s.bands, more_images = more_bands || n + 1 < batch.end;
          // After the last image another bundle follows, in most cases of the same slice.
          const Unit next = more_bands    ? Unit(bundle, band + 1, n)
                            : more_images ? Unit(bundle, 0, n + 1)
                                          : Unit((bundle + 1) % s.bundles, 0, batch.begin);
          const bool last = !more_images && (u + 1 == units.end || bundle + 1 == s.bundles);
          add_unit<T>(q, g, scratch, Unit(bundle, band, n), last ? nullptr : &next, gy, x, sums, gb ? bias_sums : nullptr);
        }
    }
    if (parts > 1) barrier();
    const bool last = q.weight_layout == Layout::channels_last;
    const Range groups = share(s.groups, id, parts);
    for (int64_t group = groups.begin; group < groups.end; ++group)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t block = i / (most_vectors * L), vectors = s.block_vectors(block), lane = i % (most_vectors * L);
        T* to = gw + (group * k + i) * c * s.taps;
        for (int64_t tap = 0; tap < s.taps; ++tap)
          for (int64_t in = 0; in < c; ++in) {
            const int64_t at = (group * g.sums + block * most_vectors * s.taps * c + (tap * c + in) * vectors) * L + lane;
            T sum = 0;
            for (int64_t slice = 0; slice < g.slices; ++slice) sum += memory.partial[slice * s.groups * g.sums * L + at];
            to[last ? tap * c + in : in * s.taps + tap] = sum;
          }
        if (!gb) continue;
        T sum = 0;
        for (int64_t slice = 0; slice < g.slices; ++slice)
          sum += memory.partial_bias[(slice * s.groups + group) * s.vectors * L + i];
        gb[group * k + i] = sum;
      }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------

struct Grouped {
  static constexpr const char* name = "grouped";
  static bool applies(const ConvProblem& q, Primitive primitive) {
    return q.layout == Layout::channels_last && q.c / q.groups <= most_channels && q.k / q.groups <= most_channels &&
           worth_padding(q, primitive);
  }
  // As measured: where the vectors of output channels are filled well, and small images are not left to half-filled tiles.
  static bool preferred(const ConvProblem& q, Primitive primitive) {
    constexpr int64_t L = lanes<float>;
    const int64_t c = q.c / q.groups, k = q.k / q.groups, outs = primitive == Primitive::input_gradient ? c : k;
    const int64_t padded = (outs + L - 1) / L * L;
    if (minimum(c, k) < 3 || (maximum(c, k) > 16 && q.q < 14)) return false;
    if (primitive == Primitive::weight_gradient) return 4 * outs >= 3 * padded && q.r * q.s >= 3;
    return 4 * outs > 3 * padded;
  }

  template <class T>
  static int64_t gather_bytes(const ConvProblem& q, bool forward, int threads) {
    return GatherMemory<T>(grouped_shape<T>(q, forward), nullptr, threads).bytes;
  }
  template <class T>
  static void gather(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                     int threads) {
    gather_outputs<T>(q, forward, in, w, bias, out, workspace, threads);
  }
  template <class T>
  static int64_t reduce_bytes(const ConvProblem& q, int threads) {
    return GradientMemory<T>(GradientShape<T>(q), nullptr, threads).bytes;
  }
  template <class T>
  static void reduce(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
    reduce_gradient<T>(q, gy, x, gw, gb, workspace, threads);
  }
};

}  // namespace

const ConvAlgorithm grouped_forward = algorithm<Grouped, Primitive::forward>();
const ConvAlgorithm grouped_input_gradient = algorithm<Grouped, Primitive::input_gradient>();
const ConvAlgorithm grouped_weight_gradient = algorithm<Grouped, Primitive::weight_gradient>();

}  // namespace fastconv::cpu::FASTCONV_ISA
