// Algorithm "direct": convolution with few channels a group, dense ones included. Forward, input gradient, weight gradient.
//
// The input channels of a group are copied into zero-padded planes whose row and column phases lie apart, so that for every tap
// the inputs of consecutive outputs are consecutive, over the ends of rows too: output positions are one flat axis and a tap is
// an offset. A tile of output channels by vectors of positions is summed in registers. The positions between two rows are
// computed and dropped. channels_last transposes a cache line's worth of channels into and out of the planes.
#include "conv_algorithm.h"
#include "conv_axis.h"
#include "parallel.h"
#include "transpose.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t most_channels = 32;                // a group, in and out
constexpr int64_t band_bytes = 96 * 1024;            // planes and stage, in a second-level cache of 256 KiB or more
constexpr bool many_registers = vector_bytes == 64;  // 32 instead of 16

// ---------------------------------------------------------------------------------------------------------------------------
// Planes

struct GroupShape {
  Axis rows, columns;
  bool channels_last;
  int64_t groups, ins, outs;  // channels a group read and written
  int64_t bundle, bundles;    // groups worked on together
  int64_t band, bands;        // output rows (of each phase) worked on at once
  int64_t column_begin;       // the column of the input at which the planes begin
  int64_t pitch;              // of a row of the planes
  int64_t part, plane;        // elements of one phase of a plane, and of a plane
  int64_t stage_plane;        // elements of the outputs of one channel and column phase
  int64_t line_pitch;         // of a transposed row
  int64_t in_channels() const { return groups * ins; }
  int64_t out_channels() const { return groups * outs; }
  int64_t groups_of(int64_t index) const { return minimum(bundle, groups - index * bundle); }
};

template <class T>
GroupShape group_shape(const ConvProblem& q, bool forward) {
  constexpr int L = lanes<T>;
  GroupShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.channels_last = q.layout == Layout::channels_last;
  s.groups = q.groups;
  s.ins = (forward ? q.c : q.k) / q.groups, s.outs = (forward ? q.k : q.c) / q.groups;
  const int64_t line = 64 / int64_t(sizeof(T)), fewest = minimum(s.ins, s.outs);
  s.bundle = s.channels_last ? minimum(q.groups, (line + fewest - 1) / fewest) : 1;
  s.bundles = (q.groups + s.bundle - 1) / s.bundle;
  const int64_t count = s.rows.phase[0].count, columns = s.columns.phase[0].count;
  s.pitch = maximum((s.columns.reach(columns) + s.columns.in_step - 1) / s.columns.in_step, columns);
  auto fit = [&](int64_t band) {
    s.part = (s.rows.reach(band) + s.rows.in_step - 1) / s.rows.in_step * s.pitch + 2 * L;
    s.plane = s.rows.in_step * s.columns.in_step * s.part;
    s.stage_plane = (band * s.pitch + L - 1) / L * L;
    return s.bundle * (s.ins * s.plane + s.outs * s.columns.phases * s.stage_plane) * int64_t(sizeof(T)) <= band_bytes;
  };
  s.band = count;
  while (!fit(s.band) && s.band > 4) s.band = (s.band + 1) / 2;
  s.bands = (count + s.band - 1) / s.band;
  s.line_pitch = (s.columns.in + L - 1) / L * L + L;
  return s;
}

// Where input row `row` and column `column` (counted from where the planes begin) lie in a plane.
inline int64_t plane_offset(const GroupShape& s, int64_t row, int64_t column) {
  return (row % s.rows.in_step * s.columns.in_step + column % s.columns.in_step) * s.part + row / s.rows.in_step * s.pitch +
         column / s.columns.in_step;
}

// The input rows from `top` on that `outputs` rows of outputs read, of `channels` channels from `first` on of one image, as
// planes. `line` holds a transposed row.
template <class T>
void fill_planes(const GroupShape& s, const T* image, int64_t first, int64_t channels, int64_t top, int64_t outputs, T* planes,
                 T* line) {
  constexpr int L = lanes<T>;
  const Axis &rows = s.rows, &columns = s.columns;
  const int64_t height = rows.in, width = columns.in, total = s.in_channels();
  const int64_t row_parts = rows.in_step, column_parts = columns.in_step;
  for (int64_t part = 1; part <= channels * row_parts * column_parts; ++part)  // tiles read a little beyond the rows
    for (int i = 1; i <= 2; ++i) store<T>(planes + part * s.part - i * L, Vec<T>{});
  const int64_t left = -columns.lowest, inner = minimum(width, s.pitch - left);
  const bool straight = s.channels_last && column_parts == 1 && left >= 0 && inner > 0;
  T* to = planes;
  int64_t row_part = 0;
  const int64_t count = (rows.reach(outputs) + row_parts - 1) / row_parts * row_parts;  // of every phase alike
  for (int64_t h = top; h < top + count; ++h) {
    const bool inside = h >= 0 && h < height;
    if (inside && straight) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < left; i += L) store<T>(to + c * s.plane + i, Vec<T>{});
      transpose<T, false, true>(image + h * width * total + first, total, inner, channels, to + left, s.plane);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = left + inner; i < s.pitch; i += L) store<T>(to + c * s.plane + i, Vec<T>{});
    } else {
      if (inside && s.channels_last)
        transpose<T, false, true>(image + h * width * total + first, total, width, channels, line, s.line_pitch);
      for (int64_t c = 0; c < channels; ++c) {
        const T* row = !inside ? image : s.channels_last ? line + c * s.line_pitch : image + ((first + c) * height + h) * width;
        for (int64_t i = 0; i < column_parts; ++i)
          copy_padded<T>(row, inside ? width : 0, columns.lowest + i, column_parts, to + c * s.plane + i * s.part, s.pitch);
      }
    }
    to += column_parts * s.part;
    if (++row_part == row_parts) to += s.pitch - row_parts * column_parts * s.part, row_part = 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------------------
// Forward and input gradient

constexpr int most_tile_channels = 6;

// How many vectors a tile of so many output channels has: what the registers hold beside the operands.
constexpr int tile_vectors(int channels) {
  constexpr int few[] = {0, 8, 6, 4, 3, 0, 2}, many[] = {0, 8, 8, 6, 6, 0, 4};
  return many_registers ? many[channels] : few[channels];
}

// The next tile's channels where `left` are left: tiles of 4 keep a vector in use 4 times for 3 vectors, close to square.
constexpr int64_t next_tile_channels(int64_t left) { return left >= 8 || left == 4 || left == 7 ? 4 : left == 5 ? 3 : left; }

template <class T>
struct DirectTile {
  const T* planes;         // at the tile's first position
  const int64_t* offsets;  // of the taps
  int64_t taps, channels, plane;
  const T* weights;  // [channel][tap][output channel of the tile]
  const T* bias;     // null: none
  T* out;
  int64_t out_pitch;
};

template <class T, int K, int V>
__attribute__((noinline)) void direct_tile(const DirectTile<T>& t) {
  constexpr int L = lanes<T>;
  Vec<T> sum[K][V];
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const Vec<T> bias = t.bias ? splat(t.bias[k]) : Vec<T>{};
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[k][v] = bias;
  }
  const T* weights = t.weights;
  const T* plane = t.planes;
  for (int64_t c = 0; c < t.channels; ++c, plane += t.plane)
    for (int64_t tap = 0; tap < t.taps; ++tap, weights += K) {
      const T* at = plane + t.offsets[tap];
      Vec<T> x[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) x[v] = load(at + v * L);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        const Vec<T> weight = splat(weights[k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[k][v] = fma(weight, x[v], sum[k][v]);
      }
    }
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T>(t.out + k * t.out_pitch + v * L, sum[k][v]);
}

template <class T>
using DirectKernel = void (*)(const DirectTile<T>&);

template <class T, int K, int V = tile_vectors(K)>
DirectKernel<T> direct_kernel(int64_t vectors) {
  if constexpr (V == 1)
    return direct_tile<T, K, 1>;
  else
    return vectors >= V ? direct_tile<T, K, V> : direct_kernel<T, K, V - 1>(vectors);
}

template <class T>
DirectKernel<T> direct_kernel(int64_t channels, int64_t vectors) {
  switch (channels) {
    case 1:
      return direct_kernel<T, 1>(vectors);
    case 2:
      return direct_kernel<T, 2>(vectors);
    case 3:
      return direct_kernel<T, 3>(vectors);
    case 4:
      return direct_kernel<T, 4>(vectors);
    default:
      return direct_kernel<T, most_tile_channels>(vectors);
  }
}

template <class T>
struct GroupScratch {
  T* planes;
  T* stage;
  T* line;
  int64_t* offsets;  // [row phase][column phase][tap]
  int64_t bytes;
  GroupScratch(const ConvProblem& q, const GroupShape& s, void* base) {
    Workspace memory(base);
    planes = memory.take<T>(s.bundle * s.ins * s.plane + 2 * lanes<T>);
    stage = memory.take<T>(s.bundle * s.outs * s.columns.phases * s.stage_plane);
    line = memory.take<T>(s.channels_last ? s.bundle * s.ins * s.line_pitch : 0);
    offsets = memory.take<int64_t>(q.r * q.s);
    bytes = memory.bytes();
  }
};

template <class T>
struct GroupMemory {
  T* weights;  // [row phase][column phase][group][tile][channel][tap][output channel of the tile]
  char* threads;
  int64_t thread_bytes, bytes;
  GroupMemory(const ConvProblem& q, const GroupShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(q.k * (q.c / q.groups) * q.r * q.s);
    thread_bytes = GroupScratch<T>(q, s, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

// Calls body(first channel, channels) over the tiles of a group's output channels.
template <class Body>
void each_channel_tile(int64_t outs, const Body& body) {
  for (int64_t k = 0; k < outs;) {
    const int64_t count = next_tile_channels(outs - k);
    body(k, count);
    k += count;
  }
}

template <class T>
void pack_weights(const ConvProblem& q, const GroupShape& s, bool forward, const T* w, Range groups, T* packed) {
  const int64_t cg = q.c / q.groups, kg = q.k / q.groups;
  const bool last = q.weight_layout == Layout::channels_last;
  const int64_t tap_step = last ? cg : 1, channel_step = last ? 1 : q.r * q.s;
  for (int64_t a = 0; a < s.rows.phases; ++a) {
    const AxisPhase& row = s.rows.phase[a];
    for (int64_t b = 0; b < s.columns.phases; ++b) {
      const AxisPhase& column = s.columns.phase[b];
      const int64_t taps = row.taps * column.taps;
      for (int64_t g = groups.begin; g < groups.end; ++g)
        each_channel_tile(s.outs, [&](int64_t out, int64_t count) {
          T* to = packed + (g * s.outs + out) * s.ins * taps;
          for (int64_t in = 0; in < s.ins; ++in)
            for (int64_t r = 0; r < row.taps; ++r)
              for (int64_t t = 0; t < column.taps; ++t) {
                const int64_t tap =
                    (row.first_weight + r * s.rows.weight_step) * q.s + column.first_weight + t * s.columns.weight_step;
                for (int64_t i = out; i < out + count; ++i) {
                  const int64_t k = g * kg + (forward ? i : in), c = forward ? in : i;
                  *to++ = w[k * cg * q.r * q.s + c * channel_step + tap * tap_step];
                }
              }
        });
      packed += s.groups * s.outs * s.ins * taps;
    }
  }
}

// Copies the staged outputs begin .. begin + count - 1 of a row phase to the image.
template <class T>
void unstage(const GroupShape& s, const AxisPhase& row, int64_t begin, int64_t count, const T* stage, int64_t first,
             int64_t channels, T* image) {
  constexpr int L = lanes<T>;
  const int64_t width = s.columns.out, total = s.out_channels();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t h = row.first + (begin + i) * s.rows.out_step;
    const T* from = stage + i * s.pitch;
    if (s.channels_last) {
      for (int64_t b = 0; b < s.columns.phases; ++b) {
        const AxisPhase& column = s.columns.phase[b];
        transpose<T, true, false>(from + b * s.stage_plane, s.columns.phases * s.stage_plane, channels, column.count,
                                  image + (h * width + column.first) * total + first, s.columns.out_step * total);
      }
      continue;
    }
    for (int64_t k = 0; k < channels; ++k) {
      const T* parts = from + k * s.columns.phases * s.stage_plane;
      T* to = image + ((first + k) * s.rows.out + h) * width;
      if (s.columns.phases > 1) {
        interleave_row<T>(parts, s.stage_plane, s.columns.out_step, to, width);
        continue;
      }
      int64_t j = 0;
      for (; j + L <= width; j += L) store<T>(to + j, load(parts + j));
      if (j == width) continue;
      if (width >= L)
        store<T>(to + width - L, load(parts + width - L));
      else
        store_first(to, load(parts), int(width));
    }
  }
}

// Where the taps of one pair of phases read, from the beginning of a plane.
inline void fill_offsets(const GroupShape& s, const AxisPhase& row, const AxisPhase& column, int64_t* offsets) {
  for (int64_t r = 0; r < row.taps; ++r)
    for (int64_t t = 0; t < column.taps; ++t)
      *offsets++ = plane_offset(s, row.start - s.rows.lowest + r * s.rows.tap_step,
                                column.start - s.columns.lowest + t * s.columns.tap_step);
}

template <class T>
void group_band(const GroupShape& s, const GroupScratch<T>& scratch, const T* weights, const T* bias, int64_t bundle,
                int64_t band, const T* in, const T* next, T* out) {
  constexpr int L = lanes<T>;
  const int64_t groups = s.groups_of(bundle), first_group = bundle * s.bundle;
  const int64_t begin = band * s.band, end = minimum(begin + s.band, s.rows.phase[0].count);
  fill_planes<T>(s, in, first_group * s.ins, groups * s.ins, s.rows.lowest + begin * s.rows.in_step, end - begin,
                 scratch.planes, scratch.line);
  const int64_t* offsets = scratch.offsets;
  Prefetch<T> prefetch(next, groups * s.ins * s.rows.in * s.columns.in / Prefetch<T>::line + 1, Prefetch<T>::line,
                       groups * s.outs / 4 * s.stage_plane / (tile_vectors(4) * L));
  for (int64_t a = 0; a < s.rows.phases; ++a) {
    const AxisPhase& row = s.rows.phase[a];
    const int64_t count = minimum(end, row.count) - begin;
    for (int64_t b = 0; b < s.columns.phases; ++b) {
      const AxisPhase& column = s.columns.phase[b];
      const int64_t taps = row.taps * column.taps;
      const int64_t vectors = count > 0 ? ((count - 1) * s.pitch + column.count + L - 1) / L : 0;
      for (int64_t g = 0; g < groups; ++g)
        each_channel_tile(s.outs, [&](int64_t k, int64_t channels) {
          DirectTile<T> tile;
          tile.offsets = offsets;
          tile.taps = taps, tile.channels = s.ins, tile.plane = s.plane;
          tile.weights = weights + ((first_group + g) * s.outs + k) * s.ins * taps;
          tile.bias = bias ? bias + (first_group + g) * s.outs + k : nullptr;
          tile.out_pitch = s.columns.phases * s.stage_plane;
          const T* planes = scratch.planes + g * s.ins * s.plane;
          T* stage = scratch.stage + (g * s.outs + k) * tile.out_pitch + b * s.stage_plane;
          const int64_t step = tile_vectors(int(channels));
          for (int64_t v = 0; v < vectors; v += step) {
            tile.planes = planes + v * L, tile.out = stage + v * L;
            direct_kernel<T>(channels, vectors - v)(tile);
            prefetch.step();
          }
        });
      weights += s.groups * s.outs * s.ins * taps;
      offsets += taps;
    }
    if (count > 0) unstage<T>(s, row, begin, count, scratch.stage, first_group * s.outs, groups * s.outs, out);
  }
}

template <class T>
void gather_outputs(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                    int threads) {
  const GroupShape s = group_shape<T>(q, forward);
  const GroupMemory<T> memory(q, s, workspace, threads);
  const int64_t in_image = s.in_channels() * s.rows.in * s.columns.in,
                out_image = s.out_channels() * s.rows.out * s.columns.out;
  parallel(threads, [&](int id, int parts) {
    pack_weights<T>(q, s, forward, w, share(s.groups, id, parts), memory.weights);
    if (parts > 1) barrier();
    const GroupScratch<T> scratch(q, s, memory.threads + id * memory.thread_bytes);
    int64_t* offsets = scratch.offsets;
    for (int64_t a = 0; a < s.rows.phases; ++a)
      for (int64_t b = 0; b < s.columns.phases; ++b) {
        fill_offsets(s, s.rows.phase[a], s.columns.phase[b], offsets);
        offsets += s.rows.phase[a].taps * s.columns.phase[b].taps;
      }
    const Range units = share(q.n * s.bundles * s.bands, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t n = u / s.bands / s.bundles, bundle = u / s.bands % s.bundles;
      const T* image = in + n * in_image;
      // In NCHW the units follow each other in memory.
      const T* next =
          !s.channels_last && s.bands == 1 && u + 1 < units.end ? in + (u + 1) * s.ins * s.rows.in * s.columns.in : nullptr;
      group_band<T>(s, scratch, memory.weights, bias, bundle, u % s.bands, image, next, out + n * out_image);
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// Weight gradient: sum over positions of gy[k] * x[c] shifted by a tap, for a tile of k by (c, tap) pairs

constexpr int most_gradient_channels = 4;
constexpr int most_gradient_shifts = many_registers ? 6 : 3;

template <class T>
struct GradientTile {
  const T* gy;
  int64_t gy_plane, vectors;
  const T* x[most_gradient_shifts];
  T* sum;  // vectors
  int64_t sum_pitch;
};

template <class T, int K, int S>
__attribute__((noinline)) void gradient_tile(const GradientTile<T>& t) {
  constexpr int L = lanes<T>;
  Vec<T> sum[K][S];
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sum[k][s] = load(t.sum + k * t.sum_pitch + s * L);
  for (int64_t v = 0; v < t.vectors * L; v += L) {
    Vec<T> gy[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) gy[k] = load(t.gy + k * t.gy_plane + v);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const Vec<T> x = load(t.x[s] + v);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) sum[k][s] = fma(gy[k], x, sum[k][s]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) store<T>(t.sum + k * t.sum_pitch + s * L, sum[k][s]);
}

template <class T>
using GradientKernel = void (*)(const GradientTile<T>&);

template <class T, int K, int S = most_gradient_shifts>
GradientKernel<T> gradient_kernel(int64_t shifts) {
  if constexpr (S == 1)
    return gradient_tile<T, K, 1>;
  else
    return shifts >= S ? gradient_tile<T, K, S> : gradient_kernel<T, K, S - 1>(shifts);
}

template <class T>
GradientKernel<T> gradient_kernel(int64_t channels, int64_t shifts) {
  switch (channels) {
    case 1:
      return gradient_kernel<T, 1>(shifts);
    case 2:
      return gradient_kernel<T, 2>(shifts);
    case 3:
      return gradient_kernel<T, 3>(shifts);
    default:
      return gradient_kernel<T, most_gradient_channels>(shifts);
  }
}

template <class T>
struct GradientShape {
  GroupShape group;     // of the forward
  int64_t taps, pairs;  // pairs (c, tap) of a group
  int64_t slices;       // of the batch, summed apart and added up in order, so that few groups keep many threads busy
  int64_t gy_plane;
  explicit GradientShape(const ConvProblem& q) : group(group_shape<T>(q, true)) {
    constexpr int L = lanes<T>;
    taps = q.r * q.s, pairs = group.ins * taps;
    slices = maximum<int64_t>(1, minimum(q.n, 64 / group.bundles));
    gy_plane = (group.band * group.pitch + L - 1) / L * L + L;
  }
};

template <class T>
struct GradientScratch {
  T* planes;
  T* gy;
  T* line;
  T* sums;       // [k of the bundle][pair] vectors
  T* bias_sums;  // [k of the bundle] vectors
  int64_t* offsets;
  int64_t bytes;
  GradientScratch(const GradientShape<T>& g, void* base) {
    constexpr int L = lanes<T>;
    Workspace memory(base);
    const GroupShape& s = g.group;
    planes = memory.take<T>(s.bundle * s.ins * s.plane + 2 * L);
    gy = memory.take<T>(s.bundle * s.outs * g.gy_plane);
    line =
        memory.take<T>(s.channels_last ? s.bundle * maximum(s.ins, s.outs) * maximum(s.line_pitch, s.columns.out + 2 * L) : 0);
    sums = memory.take<T>(s.bundle * s.outs * g.pairs * L);
    bias_sums = memory.take<T>(s.bundle * s.outs * L);
    offsets = memory.take<int64_t>(g.taps);
    bytes = memory.bytes();
  }
};

template <class T>
struct GradientMemory {
  T* partial;       // [slice][k][pair]
  T* partial_bias;  // [slice][k]
  char* threads;
  int64_t thread_bytes, bytes;
  GradientMemory(const ConvProblem& q, const GradientShape<T>& g, void* base, int count) {
    Workspace memory(base);
    partial = memory.take<T>(g.slices * q.k * g.pairs);
    partial_bias = memory.take<T>(g.slices * q.k);
    thread_bytes = GradientScratch<T>(g, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

template <class T>
T add_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes<T>; ++i) sum += v[i];
  return sum;
}

// The output gradient of `channels` channels from `first` on as flat planes with zeros between the rows.
template <class T>
void fill_gradient(const GradientShape<T>& g, const T* image, int64_t first, int64_t channels, int64_t begin, int64_t count,
                   T* gy, T* line) {
  const GroupShape& s = g.group;
  const int64_t width = s.columns.out, height = s.rows.out, total = s.out_channels();
  const int64_t line_pitch = width + 2 * lanes<T>;
  for (int64_t p = begin; p < begin + count; ++p) {
    if (s.channels_last) transpose<T, false, true>(image + p * width * total + first, total, width, channels, line, line_pitch);
    const int64_t left = p + 1 == begin + count ? g.gy_plane - lanes<T> - (count - 1) * s.pitch : s.pitch;  // zeros to the end
    for (int64_t k = 0; k < channels; ++k)
      copy_padded<T>(s.channels_last ? line + k * line_pitch : image + ((first + k) * height + p) * width, width, 0, 1,
                     gy + k * g.gy_plane + (p - begin) * s.pitch, left);
  }
}

template <class T>
void bundle_gradient(const ConvProblem& q, const GradientShape<T>& g, const GradientScratch<T>& scratch, int64_t bundle,
                     Range batch, const T* gy, const T* x, bool with_bias) {
  constexpr int L = lanes<T>;
  const GroupShape& s = g.group;
  const int64_t groups = s.groups_of(bundle), first_in = bundle * s.bundle * s.ins, first_out = bundle * s.bundle * s.outs;
  for (int64_t i = 0; i < groups * s.outs * g.pairs; ++i) store<T>(scratch.sums + i * L, Vec<T>{});
  for (int64_t i = 0; i < groups * s.outs; ++i) store<T>(scratch.bias_sums + i * L, Vec<T>{});
  for (int64_t n = batch.begin; n < batch.end; ++n)
    for (int64_t begin = 0; begin < q.p; begin += s.band) {
      const int64_t count = minimum(s.band, q.p - begin);
      fill_planes<T>(s, x + n * q.c * q.h * q.w, first_in, groups * s.ins, s.rows.lowest + begin * s.rows.in_step, count,
                     scratch.planes, scratch.line);
      fill_gradient<T>(g, gy + n * q.k * q.p * q.q, first_out, groups * s.outs, begin, count, scratch.gy, scratch.line);
      const int64_t vectors = ((count - 1) * s.pitch + q.q + L - 1) / L;
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t k = 0; k < s.outs; k += most_gradient_channels)
          for (int64_t pair = 0; pair < g.pairs; pair += most_gradient_shifts) {
            const int64_t shifts = minimum<int64_t>(most_gradient_shifts, g.pairs - pair);
            GradientTile<T> tile;
            tile.gy = scratch.gy + (group * s.outs + k) * g.gy_plane;
            tile.gy_plane = g.gy_plane, tile.vectors = vectors;
            for (int64_t i = 0; i < shifts; ++i)
              tile.x[i] =
                  scratch.planes + (group * s.ins + (pair + i) / g.taps) * s.plane + scratch.offsets[(pair + i) % g.taps];
            tile.sum = scratch.sums + ((group * s.outs + k) * g.pairs + pair) * L, tile.sum_pitch = g.pairs * L;
            gradient_kernel<T>(minimum<int64_t>(most_gradient_channels, s.outs - k), shifts)(tile);
          }
      if (!with_bias) continue;
      for (int64_t k = 0; k < groups * s.outs; ++k) {
        Vec<T> sum = load(scratch.bias_sums + k * L);
        for (int64_t v = 0; v < vectors * L; v += L) sum += load(scratch.gy + k * g.gy_plane + v);
        store<T>(scratch.bias_sums + k * L, sum);
      }
    }
}

template <class T>
void reduce_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const GradientShape<T> g(q);
  const GroupShape& s = g.group;
  const GradientMemory<T> memory(q, g, workspace, threads);
  parallel(threads, [&](int id, int parts) {
    const GradientScratch<T> scratch(g, memory.threads + id * memory.thread_bytes);
    fill_offsets(s, s.rows.phase[0], s.columns.phase[0], scratch.offsets);
    const Range units = share(g.slices * s.bundles, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / s.bundles, bundle = u % s.bundles;
      bundle_gradient<T>(q, g, scratch, bundle, share(q.n, int(slice), int(g.slices)), gy, x, gb != nullptr);
      const int64_t first = slice * q.k + bundle * s.bundle * s.outs;
      for (int64_t k = 0; k < s.groups_of(bundle) * s.outs; ++k) {
        for (int64_t pair = 0; pair < g.pairs; ++pair)
          memory.partial[(first + k) * g.pairs + pair] = add_lanes<T>(load(scratch.sums + (k * g.pairs + pair) * L));
        memory.partial_bias[first + k] = add_lanes<T>(load(scratch.bias_sums + k * L));
      }
    }
    if (parts > 1) barrier();
    const Range ks = share(q.k, id, parts);
    for (int64_t k = ks.begin; k < ks.end; ++k) {
      for (int64_t pair = 0; pair < g.pairs; ++pair) {
        T sum = 0;
        for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial[(i * q.k + k) * g.pairs + pair];
        const int64_t at = q.weight_layout == Layout::channels_last ? pair % g.taps * s.ins + pair / g.taps : pair;
        gw[k * g.pairs + at] = sum;
      }
      if (!gb) continue;
      T sum = 0;
      for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial_bias[i * q.k + k];
      gb[k] = sum;
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------

struct Direct {
  static constexpr const char* name = "direct";
  static bool applies(const ConvProblem& q, Primitive primitive) {
    return q.c / q.groups <= most_channels && q.k / q.groups <= most_channels && worth_padding(q, primitive);
  }
  // As measured: the more channels, the less the rows may be padded and copied.
  static bool preferred(const ConvProblem& q, Primitive) {
    const int64_t most = maximum(q.c, q.k) / q.groups;
    return most <= 8 || (most <= 16 && q.q >= 10) || q.q >= 28;
  }

  template <class T>
  static int64_t gather_bytes(const ConvProblem& q, bool forward, int threads) {
    return GroupMemory<T>(q, group_shape<T>(q, forward), nullptr, threads).bytes;
  }
  template <class T>
  static void gather(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                     int threads) {
    gather_outputs<T>(q, forward, in, w, bias, out, workspace, threads);
  }
  template <class T>
  static int64_t reduce_bytes(const ConvProblem& q, int threads) {
    return GradientMemory<T>(q, GradientShape<T>(q), nullptr, threads).bytes;
  }
  template <class T>
  static void reduce(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
    reduce_gradient<T>(q, gy, x, gw, gb, workspace, threads);
  }
};

}  // namespace

const ConvAlgorithm direct_forward = algorithm<Direct, Primitive::forward>();
const ConvAlgorithm direct_input_gradient = algorithm<Direct, Primitive::input_gradient>();
const ConvAlgorithm direct_weight_gradient = algorithm<Direct, Primitive::weight_gradient>();

}  // namespace fastconv::cpu::FASTCONV_ISA
