// Algorithm "grouped": convolution with few channels a group, about a vector's worth. Forward and input gradient; what it
// offers to the plan.
//
// A vector lies along the output channels of a group, or of as many groups as fill it. The channels of as many groups as fill a
// cache line are copied into a zero-padded image, whose pixels lie close together, transposed if they come from planes. A tile
// of consecutive output pixels is summed in registers: an input, broadcast (to the lanes of its group), times a vector of
// weights. Where a kernel's neighbouring taps read neighbouring pixels, an input is broadcast once for all of them.
#include "conv_grouped.h"

#include "conv_algorithm.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t band_bytes = 64 * 1024;  // of the copy, which is filled row by row as it is read
// Where the number of vectors is odd, a tile of one has as many pixels as those of two.
constexpr int most_pixels(int vectors) { return vectors == 1 || many_registers ? 12 : 6; }
static_assert(most_pixels(most_vectors) <= most_pixels(1));

// The pixels that a tile computes for so many that are wanted; sums of fewer wait for each other anyway.
constexpr int computed_pixels(int vectors, int wanted) {
  return most_pixels(vectors) == 6 ? wanted : wanted <= 4 ? 4 : maximum(wanted, 7);
}
constexpr int64_t most_extra_pixels = 3;  // computed, but not wanted

template <class T>
struct PixelTile {
  const T* in;               // at the first pixel
  int64_t step;              // from the input of one pixel to that of the next
  const int64_t* offsets;    // of the pieces: neighbouring taps that are taken together
  int64_t pieces, channels;  // channels a group
  const T *weights, *bias;   // [piece][channel][tap] vectors of output channels
  T* out;
  int64_t out_step;
  int pixels, width;  // to store, and the lanes of the last vector
};

// TAPS: in a piece, which read neighbouring pixels. STEP: between the inputs of neighbouring outputs, in pixels of a cache
// line; 0: as the tile says, for pieces of one tap.
template <class T, int PIXELS, int VECTORS, int SPREAD, int TAPS, int STEP>
__attribute__((noinline)) void pixel_tile(const PixelTile<T>& t) {
  static_assert(STEP > 0 || TAPS == 1);
  constexpr int L = lanes<T>;
  Vec<T> sum[PIXELS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < PIXELS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sum[i][v] = load(t.bias + v * L);
  const T* weights = t.weights;
  const int64_t pixel = STEP ? cache_line<T> : t.step;
  constexpr int step = STEP ? STEP : 1;
  auto add = [&](const T* in, auto channel) __attribute__((always_inline)) {
    Vec<T> weight[TAPS][VECTORS];
#pragma GCC unroll 3
    for (int tap = 0; tap < TAPS; ++tap)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) weight[tap][v] = load(weights + (tap * VECTORS + v) * L);
    weights += TAPS * VECTORS * L;
#pragma GCC unroll 32
    for (int j = 0; j < (PIXELS - 1) * step + TAPS; ++j) {
      if (j % step >= TAPS) continue;
      const Vec<T> x = spread_channel<T, SPREAD, channel>(in + j * pixel);
#pragma GCC unroll 3
      for (int tap = 0; tap < TAPS; ++tap) {
        const int i = (j - tap) / step;
        if (j < tap || (j - tap) % step || i >= PIXELS) continue;
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sum[i][v] = fma(x, weight[tap][v], sum[i][v]);
      }
    }
  };
  for (int64_t piece = 0; piece < t.pieces; ++piece) {
    const T* in = t.in + t.offsets[piece];
    if constexpr (SPREAD > 0) {
      each_constant<SPREAD>([&](auto c) __attribute__((always_inline)) { add(in, c); });
    } else {
      constexpr int together = 2;  // so many that the loops' ends are foreseen
      int64_t c = 0;
      for (; c + together <= t.channels; c += together)
        each_constant<together>([&](auto i) __attribute__((always_inline)) { add(in + c, i); });
      for (; c < t.channels; ++c) add(in + c, std::integral_constant<int, 0>{});
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < PIXELS; ++i) {
    if (i >= t.pixels) break;
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

template <class T, int VECTORS, int SPREAD, int TAPS, int STEP, int... I>
PixelKernel<T> kernel_of(int64_t pixels, std::integer_sequence<int, I...>) {
  static constexpr PixelKernel<T> kernels[] = {pixel_tile<T, computed_pixels(VECTORS, I + 1), VECTORS, SPREAD, TAPS, STEP>...};
  return kernels[pixels - 1];
}
template <class T, int VECTORS, int SPREAD, int TAPS, int STEP>
PixelKernel<T> kernel_of(int64_t pixels) {
  return kernel_of<T, VECTORS, SPREAD, TAPS, STEP>(pixels, std::make_integer_sequence<int, most_pixels(VECTORS)>{});
}
// Of one vector.
template <class T, int SPREAD>
PixelKernel<T> kernel_of(int64_t taps, int64_t step, int64_t pixels) {
  if (taps == 3) return step == 1 ? kernel_of<T, 1, SPREAD, 3, 1>(pixels) : kernel_of<T, 1, SPREAD, 3, 2>(pixels);
  return taps == 2 ? kernel_of<T, 1, SPREAD, 2, 1>(pixels) : kernel_of<T, 1, SPREAD, 1, 0>(pixels);
}

// How many neighbouring taps of a phase are taken together: where inputs are loaded as often as weights are multiplied.
template <class T>
int64_t shared_taps(const GroupedShape& s, const AxisPhase& column) {
  if (s.vectors > 1 || s.in.pixel != cache_line<T> || s.columns.tap_step != 1) return 1;
  if (column.taps % 3 == 0 && s.columns.in_step <= 2) return 3;
  return column.taps % 2 == 0 && s.columns.in_step == 1 ? 2 : 1;
}

template <class T>
PixelKernel<T> pixel_kernel(const GroupedShape& s, int64_t vectors, int64_t taps, int64_t pixels) {
  const int64_t step = s.columns.in_step, spread = s.spread();
  if constexpr (lanes<T> > 2)
    if (spread == 2) return kernel_of<T, 2>(taps, step, pixels);
  if constexpr (lanes<T> > 4)
    if (spread == 4) return kernel_of<T, 4>(taps, step, pixels);
  if constexpr (lanes<T> > 8)
    if (spread == 8) return kernel_of<T, 8>(taps, step, pixels);
  const bool line = s.in.pixel == cache_line<T> && step == 1;
  if (vectors == 2) return line ? kernel_of<T, 2, 0, 1, 1>(pixels) : kernel_of<T, 2, 0, 1, 0>(pixels);
  return line && taps == 1 ? kernel_of<T, 1, 0, 1, 1>(pixels) : kernel_of<T, 0>(taps, step, pixels);
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

template <class T>
struct Scratch {
  T* image;
  T* stage;          // the results of a band as pixels, where they go to planes
  int64_t* offsets;  // of the pieces of all phases
  int64_t bytes;
  Scratch(const GroupedShape& s, void* base) {
    Workspace memory(base);
    const int64_t step = s.columns.phase[0].count > 1 ? s.columns.in_step : 2;
    image = memory.take<T>(s.copied_rows() * s.row_pitch + most_extra_pixels * step * s.in.pixel + lanes<T>);
    stage = memory.take<T>(s.planes ? minimum(s.band * s.rows.out_step, s.out.height) * s.out.width * s.out.pixel : 0);
    offsets = memory.take<int64_t>(s.taps);
    bytes = memory.bytes();
  }
};

template <class T>
struct Memory {
  T* weights;  // [phases][pack][block][piece][channel][tap] vectors; all packs of a pair of phases together
  T* bias;     // [pack] vectors
  char* threads;
  int64_t thread_bytes, bytes;
  Memory(const GroupedShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(s.packs * s.vectors * s.taps * s.in.channels * lanes<T>);
    bias = memory.take<T>(s.packs * s.vectors * lanes<T>);
    thread_bytes = Scratch<T>(s, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

template <class T>
void pack_weights(const ConvProblem& q, const GroupedShape& s, bool forward, const T* w, const T* bias, int64_t pack,
                  const Memory<T>& memory) {
  constexpr int L = lanes<T>;
  const int64_t c = q.c / q.groups, k = q.k / q.groups, outs = s.out.channels;
  const bool last = q.weight_layout == Layout::channels_last;
  const int64_t tap_step = last ? c : 1, c_step = last ? 1 : s.taps, k_step = c * s.taps;
  const int64_t in_step = forward ? c_step : k_step, out_step = forward ? k_step : c_step;
  // Lanes are the channels of one group after another. The last ones may be of none: they read what is there, and drop it.
  const int64_t group = pack * s.pack, used = minimum(s.pack, s.groups - group) * outs;
  int64_t lane_offset[most_group_channels + L] = {};
  for (int64_t i = 0; i < used; ++i) lane_offset[i] = (group + i / outs) * k * k_step + i % outs * out_step;
  for (int64_t i = 0; i < s.vectors * L; ++i)
    memory.bias[pack * s.vectors * L + i] = bias && i < used ? bias[group * outs + i] : T(0);
  each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
    const int64_t taps = row.taps * column.taps, shared = shared_taps<T>(s, column);
    T* to = memory.weights + (before * s.packs + pack * taps) * s.in.channels * s.vectors * L;
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t begin = block * most_vectors * L, end = begin + s.block_vectors(block) * L;
      for (int64_t r = 0; r < row.taps; ++r)
        for (int64_t piece = 0; piece < column.taps; piece += shared)
          for (int64_t in = 0; in < s.in.channels; ++in)
            for (int64_t t = piece; t < piece + shared; ++t) {
              const int64_t row_tap = row.first_weight + r * s.rows.weight_step;
              const int64_t tap = row_tap * q.s + column.first_weight + t * s.columns.weight_step;
              const T* from = w + tap * tap_step + in * in_step;
              for (int64_t i = begin; i < end; i += L, to += L) {
                Vec<T> lane;
#pragma GCC unroll 16
                for (int j = 0; j < L; ++j) lane[j] = from[lane_offset[i + j]];
                store<T>(to, i + L <= used ? lane : load_first(reinterpret_cast<T*>(&lane), int(used - i)));
              }
            }
    }
  });
}

// Where the pieces of the taps read, from the beginning of the copy.
template <class T>
void fill_offsets(const GroupedShape& s, int64_t* offsets) {
  each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
    int64_t* to = offsets + before;
    for (int64_t r = 0; r < row.taps; ++r)
      for (int64_t t = 0; t < column.taps; t += shared_taps<T>(s, column))
        *to++ = (row.start - s.rows.lowest + r * s.rows.tap_step) * s.row_pitch +
                (column.start - s.columns.lowest + t * s.columns.tap_step) * s.in.pixel;
  });
}

// Row `i` of each row phase of one column phase. `at` is the copy where that row's inputs begin, `out` where the phase's
// outputs do, a pixel `total` elements.
template <class T, class Step>
void pixel_row(const GroupedShape& s, const Memory<T>& memory, const int64_t* offsets, const AxisPhase& row,
               const AxisPhase& column, int64_t before, int64_t bundle, const T* at, T* out, int64_t total, const Step& step) {
  constexpr int L = lanes<T>;
  const int64_t taps = row.taps * column.taps, shared = shared_taps<T>(s, column), outs = s.out.channels;
  PixelTile<T> tile;
  tile.step = s.columns.in_step * s.in.pixel;
  tile.offsets = offsets + before, tile.pieces = taps / shared, tile.channels = s.in.channels;
  tile.out_step = s.columns.out_step * total;
  const int64_t groups = s.groups_of(bundle), packs = s.packs_of(bundle), first_pack = s.first_pack(bundle);
  // Tiles of as even a length as can be.
  const int64_t tiles = ceil_div(column.count, most_pixels(int(minimum<int64_t>(s.vectors, most_vectors))));
  const int64_t length = column.count / tiles, longer = column.count % tiles;
  for (int64_t n = 0; n < tiles; ++n, at += tile.pixels * tile.step, out += tile.pixels * tile.out_step) {
    tile.pixels = int(length + (n < longer));
    for (int64_t p = 0; p < packs; ++p) {
      const int64_t pack = first_pack + p, group = p * s.pack, used = minimum(s.pack, groups - group) * outs;
      const T* weights = memory.weights + (before * s.packs + pack * taps) * s.in.channels * s.vectors * L;
      tile.in = at + group * s.in.channels;
      for (int64_t block = 0; block < s.blocks; ++block) {
        const int64_t vectors = s.block_vectors(block), first = block * most_vectors * L;
        tile.weights = weights + first * taps * s.in.channels;
        tile.bias = memory.bias + pack * s.vectors * L + first;
        tile.out = out + group * outs + first;
        tile.width = int(minimum<int64_t>(L, used - first - (vectors - 1) * L));
        pixel_kernel<T>(s, vectors, shared, tile.pixels)(tile);
      }
    }
    step();
  }
}

template <class T>
void gather_unit(const GroupedShape& s, const Scratch<T>& scratch, const Memory<T>& memory, const Unit& unit, const Unit& next,
                 const T* in, T* out) {
  const int64_t begin = unit.band * s.band, end = minimum(begin + s.band, s.rows.phase[0].count);
  const int64_t outs = s.out.channels, channels = s.groups_of(unit.bundle) * outs;
  const int64_t top = s.rows.lowest + begin * s.rows.in_step, out_top = begin * s.rows.out_step;
  const T* image = in + unit.at(s, s.in, 0);
  const int64_t total = s.planes ? s.out.pixel : s.groups * outs;
  T* to = s.planes ? scratch.stage : out + unit.at(s, s.out, out_top);
  const int64_t steps = s.rows.phases * s.columns.phases * ceil_div(s.columns.phase[0].count, 12);
  int64_t filled = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = (i - begin) * s.rows.in_step, needed = first + s.rows.extent;
    fill_rows<T>(s, image, s.groups_of(unit.bundle) * s.in.channels, top, filled, needed, scratch.image);
    filled = needed;
    // What the next row reads and writes: of this unit or of the next one.
    const bool more = i + 1 < end;
    const int64_t next_row = more ? i + 1 : next.band * s.band, next_top = s.rows.lowest + next_row * s.rows.in_step;
    auto reads = prefetch_rows<T, false>(s, s.in, more ? unit : next, in, more ? top + filled : next_top,
                                         next_top + s.rows.extent, steps);
    auto writes = prefetch_rows<T, true>(s, s.out, more ? unit : next, out, next_row * s.rows.out_step,
                                         (next_row + 1) * s.rows.out_step, steps);
    each_phase(s, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
      if (i >= row.count) return;
      const int64_t pixel = (row.first + (i - begin) * s.rows.out_step) * s.out.width + column.first;
      pixel_row<T>(s, memory, scratch.offsets, row, column, before, unit.bundle, scratch.image + first * s.row_pitch,
                   to + pixel * total, total, [&] { reads.step(), writes.step(); });
    });
  }
  if (!s.planes) return;
  const int64_t rows = minimum(end * s.rows.out_step, s.out.height) - out_top;
  transpose<T, true, false>(scratch.stage, s.out.pixel, rows * s.out.width, channels, out + unit.at(s, s.out, out_top),
                            s.out.height * s.out.width);
}

// ---------------------------------------------------------------------------------------------------------------------------

struct Grouped {
  static constexpr const char* name = "grouped";
  static bool applies(const ConvProblem& q, Primitive primitive) {
    // Between outputs a long stride apart there is more to copy than to read.
    return q.c / q.groups <= most_group_channels && q.k / q.groups <= most_group_channels && worth_padding(q, primitive) &&
           maximum(q.stride_h, q.stride_w) <= most_phases;
  }
  // As measured: where the vectors of output channels are filled well, and small images are not left to half-filled tiles. In
  // NCHW `direct`, which transposes nothing, is faster where inputs are not shared by taps, or where rows are long.
  static bool preferred(const ConvProblem& q, Primitive primitive) {
    constexpr int64_t L = lanes<float>;
    const int64_t c = q.c / q.groups, k = q.k / q.groups, outs = primitive == Primitive::input_gradient ? c : k;
    const int64_t padded = ceil_div(outs, L) * L, least = minimum(c, k), most = maximum(c, k);
    const bool planes = q.layout == Layout::channels_first, strided = q.stride_w > 1;
    if (grouped_shape<float>(q, true, band_bytes).pack > 1) return !planes || (q.s % 3 == 0 && (strided || q.q < 40));
    if (least < 3 || (most > 16 && q.q < 14 && !strided)) return false;
    if (primitive == Primitive::weight_gradient) return 4 * outs >= 3 * padded && (q.r * q.s >= 3 || q.groups > 1);
    return 4 * outs > 3 * padded && (!planes || (least > 4 && (q.s % 3 == 0 || (outs > L && q.s > 1))));
  }

  template <class T>
  static int64_t gather_bytes(const ConvProblem& q, bool forward, int threads) {
    return Memory<T>(grouped_shape<T>(q, forward, band_bytes), nullptr, threads).bytes;
  }
  template <class T>
  static void gather(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                     int threads) {
    const GroupedShape s = grouped_shape<T>(q, forward, band_bytes);
    const Memory<T> memory(s, workspace, threads);
    parallel(threads, [&](int id, int parts) {
      const Range packs = share(s.packs, id, parts);
      for (int64_t pack = packs.begin; pack < packs.end; ++pack) pack_weights<T>(q, s, forward, w, bias, pack, memory);
      if (parts > 1) barrier();
      const Scratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
      fill_offsets<T>(s, scratch.offsets);
      const Range units = share(q.n * s.bands * s.bundles, id, parts);
      for (int64_t u = units.begin; u < units.end; ++u)
        gather_unit<T>(s, scratch, memory, Unit(s, u), Unit(s, minimum(u + 1, units.end - 1)), in, out);
    });
  }
  template <class T>
  static int64_t reduce_bytes(const ConvProblem& q, int threads) {
    return grouped_gradient_bytes<T>(q, threads);
  }
  template <class T>
  static void reduce(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
    grouped_gradient<T>(q, gy, x, gw, gb, workspace, threads);
  }
};

}  // namespace

const ConvAlgorithm grouped_forward = algorithm<Grouped, Primitive::forward>();
const ConvAlgorithm grouped_input_gradient = algorithm<Grouped, Primitive::input_gradient>();
const ConvAlgorithm grouped_weight_gradient = algorithm<Grouped, Primitive::weight_gradient>();

}  // namespace fastconv::cpu::FASTCONV_ISA
