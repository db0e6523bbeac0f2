// Algorithm "grouped", weight gradient: the sum over output pixels of gy[k] * x[c], x shifted by a tap.
//
// A vector of output gradients, of the output channels of a group or of as many groups as fill it, times an input, broadcast
// (to the lanes of its group). A tile of taps by input channels is summed in registers over the pixels of a band. Where the
// taps read neighbouring pixels, an input is broadcast once for all of them.
#include "conv_grouped.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t band_bytes = 20 * 1024;  // of the copy: with the gradients in the first-level cache, as each tile reads both
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

// SHARED: the taps of a pixel are x_step apart, as are the inputs of neighbouring pixels: x[0] is the first.
template <class T, int TAPS, int CHANNELS, int VECTORS, int SPREAD, bool SHARED>
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
    int64_t i = 0;
    if constexpr (SHARED) {
      constexpr int PIXELS = 3;
      for (; i + PIXELS <= t.pixels; i += PIXELS, from += PIXELS * t.gy_step) {
        Vec<T> gy[PIXELS];
#pragma GCC unroll 4
        for (int p = 0; p < PIXELS; ++p) gy[p] = load(from + p * t.gy_step);
        each_constant<CHANNELS>([&](auto c) __attribute__((always_inline)) {
#pragma GCC unroll 8
          for (int j = 0; j < PIXELS + TAPS - 1; ++j) {
            const Vec<T> in = spread_channel<T, SPREAD, c>(x[0] + j * t.x_step);
#pragma GCC unroll 4
            for (int r = 0; r < TAPS; ++r)
              if (j >= r && j - r < PIXELS) sum[r][c][0] = fma(in, gy[j - r], sum[r][c][0]);
          }
        });
        x[0] += PIXELS * t.x_step;
      }
#pragma GCC unroll 4
      for (int r = 1; r < TAPS; ++r) x[r] = x[0] + r * t.x_step;
    }
    for (; i < t.pixels; ++i, from += t.gy_step) {
      Vec<T> gy[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) gy[v] = load(from + v * L);
#pragma GCC unroll 4
      for (int r = 0; r < TAPS; ++r) {
        each_constant<CHANNELS>([&](auto c) __attribute__((always_inline)) {
          const Vec<T> in = spread_channel<T, SPREAD, c>(x[r]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sum[r][c][v] = fma(in, gy[v], sum[r][c][v]);
        });
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

template <class T, int VECTORS, int SPREAD, int CHANNELS>
GradientKernel<T> kernel_of(int64_t taps, bool shared) {
  if constexpr (VECTORS == 1)
    if (shared && taps > 1)
      return taps == 2 ? gradient_tile<T, 2, CHANNELS, 1, SPREAD, true> : gradient_tile<T, 3, CHANNELS, 1, SPREAD, true>;
  return taps == 1   ? gradient_tile<T, 1, CHANNELS, VECTORS, SPREAD, false>
         : taps == 2 ? gradient_tile<T, 2, CHANNELS, VECTORS, SPREAD, false>
                     : gradient_tile<T, 3, CHANNELS, VECTORS, SPREAD, false>;
}
template <class T, int VECTORS, int CHANNELS = most_tile_channels(VECTORS)>
GradientKernel<T> kernel_of(int64_t channels, int64_t taps, bool shared) {
  if constexpr (CHANNELS > 1)
    if (channels < CHANNELS) return kernel_of<T, VECTORS, CHANNELS - 1>(channels, taps, shared);
  return kernel_of<T, VECTORS, 0, CHANNELS>(taps, shared);
}
template <class T>
GradientKernel<T> gradient_kernel(int64_t vectors, int64_t spread, int64_t channels, int64_t taps, bool shared) {
  if constexpr (lanes<T> > 2)
    if (spread == 2) return kernel_of<T, 1, 2, 2>(taps, shared);
  if constexpr (lanes<T> > 4)
    if (spread == 4) return kernel_of<T, 1, 4, 4>(taps, shared);
  if constexpr (lanes<T> > 8)
    if (spread == 8) return kernel_of<T, 1, 8, 4>(taps, shared);
  return vectors == 1 ? kernel_of<T, 1>(channels, taps, shared) : kernel_of<T, 2>(channels, taps, shared);
}

template <class T>
struct GradientShape {
  GroupedShape grouped;  // of the forward
  int64_t slices;        // of the batch, summed apart and added up in order, so that few groups keep many threads busy
  int64_t gy_pixel;      // the output gradients of a bundle: each pack's to whole vectors
  int64_t sums;          // vectors of a pack
  explicit GradientShape(const ConvProblem& q) : grouped(grouped_shape<T>(q, true, band_bytes)) {
    const GroupedShape& s = grouped;
    slices = maximum<int64_t>(1, minimum(q.n, 64 / s.bundles));
    gy_pixel = ceil_div(s.bundle, s.pack) * s.vectors * lanes<T>;
    sums = s.vectors * s.taps * s.in.channels;
  }
};

template <class T>
struct Scratch {
  T* image;
  T* gy;
  int64_t* offsets;
  int64_t bytes;
  Scratch(const GradientShape<T>& g, void* base) {
    Workspace memory(base);
    const GroupedShape& s = g.grouped;
    image = memory.take<T>(s.copied_rows() * s.row_pitch + lanes<T>);
    gy = memory.take<T>(s.band * s.out.width * g.gy_pixel);
    offsets = memory.take<int64_t>(s.taps);
    bytes = memory.bytes();
  }
};

template <class T>
struct Memory {
  T* partial;       // [slice][pack][block][tap][channel] vectors
  T* partial_bias;  // [slice][pack] vectors
  char* threads;
  int64_t thread_bytes, bytes;
  Memory(const GradientShape<T>& g, void* base, int count) {
    Workspace memory(base);
    const GroupedShape& s = g.grouped;
    partial = memory.take<T>(g.slices * s.packs * g.sums * lanes<T>);
    partial_bias = memory.take<T>(g.slices * s.packs * s.vectors * lanes<T>);
    thread_bytes = Scratch<T>(g, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

// Adds one band of one image to the sums of a bundle's packs.
template <class T>
void add_unit(const ConvProblem& q, const GradientShape<T>& g, const Scratch<T>& scratch, const Unit& unit, const Unit& next,
              const T* gy, const T* x, T* sums, T* bias_sums) {
  constexpr int L = lanes<T>;
  const GroupedShape& s = g.grouped;
  const int64_t begin = unit.band * s.band, count = minimum(s.band, q.p - begin), pixels = count * q.q;
  const int64_t groups = s.groups_of(unit.bundle), packs = s.packs_of(unit.bundle);
  fill_rows<T>(s, x + unit.at(s, s.in, 0), groups * s.in.channels, s.rows.lowest + begin * s.rows.in_step, 0,
               s.rows.reach(count), scratch.image);
  const T* from = gy + unit.at(s, s.out, begin);
  if (s.pack > 1 || s.out.channels % L == 0)
    copy_channels<T>(s, s.out, from, pixels, groups * s.out.channels, scratch.gy, g.gy_pixel);
  else
    for (int64_t i = 0; i < groups; ++i)
      copy_channels<T>(s, s.out, from + i * s.out.channels * (s.planes ? q.p * q.q : 1), pixels, s.out.channels,
                       scratch.gy + i * s.vectors * L, g.gy_pixel);
  const int64_t steps = packs * s.vectors * s.taps * s.in.channels / 12;
  const int64_t next_begin = next.band * s.band, next_top = s.rows.lowest + next_begin * s.rows.in_step;
  auto inputs = prefetch_rows<T, false>(s, s.in, next, x, next_top, next_top + s.copied_rows(), steps);
  auto gradients = prefetch_rows<T, false>(s, s.out, next, gy, next_begin, next_begin + s.band, steps);
  // Neighbouring taps read neighbouring pixels.
  const bool neighbours = s.columns.in_step == 1 && s.columns.tap_step == 1;
  const int64_t most_taps = neighbours && q.s % 3 && q.s % 2 == 0 ? 2 : most_tile_taps;
  for (int64_t i = 0; i < packs; ++i)
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t vectors = s.block_vectors(block), first = block * most_vectors * L;
      GradientTile<T> tile;
      tile.x_step = s.columns.in_step * s.in.pixel, tile.x_row = s.rows.in_step * s.row_pitch;
      tile.gy = scratch.gy + i * s.vectors * L + first;
      tile.gy_step = g.gy_pixel, tile.rows = count, tile.pixels = q.q;
      tile.sum_tap = s.in.channels * vectors * L;
      T* block_sums = sums + i * g.sums * L + first * s.taps * s.in.channels;
      for (int64_t tap = 0; tap < s.taps; tap += most_taps) {
        const int64_t taps = minimum<int64_t>(most_taps, s.taps - tap);
        const bool shared = neighbours && tap % q.s + taps <= q.s;
        const int64_t most = most_tile_channels(int(vectors));
        for (int64_t c = 0; c < s.in.channels; c += most) {
          const int64_t channels = minimum(most, s.in.channels - c);
          for (int64_t t = 0; t < taps; ++t)
            tile.x[t] = scratch.image + scratch.offsets[tap + t] + i * s.pack * s.in.channels + c;
          tile.sum = block_sums + tap * tile.sum_tap + c * vectors * L;
          gradient_kernel<T>(vectors, s.spread(), channels, taps, shared)(tile);
          inputs.step();
          gradients.step();
        }
      }
    }
  if (!bias_sums) return;
  for (int64_t i = 0; i < packs * s.vectors; ++i) {
    // Four sums at a time hide the latency of addition.
    Vec<T> sum[4] = {load(bias_sums + i * L)};
    const T* at = scratch.gy + i * L;
    for (int64_t p = 0; p < pixels; ++p, at += g.gy_pixel) sum[p % 4] += load(at);
    store<T>(bias_sums + i * L, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

}  // namespace

template <class T>
int64_t grouped_gradient_bytes(const ConvProblem& q, int threads) {
  return Memory<T>(GradientShape<T>(q), nullptr, threads).bytes;
}

template <class T>
void grouped_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const GradientShape<T> g(q);
  const GroupedShape& s = g.grouped;
  const Memory<T> memory(g, workspace, threads);
  const int64_t c = s.in.channels, k = s.out.channels;
  parallel(threads, [&](int id, int parts) {
    const Scratch<T> scratch(g, memory.threads + id * memory.thread_bytes);
    for (int64_t tap = 0; tap < s.taps; ++tap)
      scratch.offsets[tap] = tap / q.s * s.rows.tap_step * s.row_pitch + tap % q.s * s.columns.tap_step * s.in.pixel;
    const Range units = share(g.slices * s.bundles, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / s.bundles, bundle = u % s.bundles, pack = slice * s.packs + s.first_pack(bundle);
      T *sums = memory.partial + pack * g.sums * L, *bias_sums = memory.partial_bias + pack * s.vectors * L;
      zero<T>(sums, s.packs_of(bundle) * g.sums * L);
      zero<T>(bias_sums, s.packs_of(bundle) * s.vectors * L);
      const Range batch = share(q.n, int(slice), int(g.slices));
      for (int64_t n = batch.begin; n < batch.end; ++n)
        for (int64_t band = 0; band < s.bands; ++band) {
          const bool more_bands = band + 1 < s.bands, more_images = more_bands || n + 1 < batch.end;
          // After the last image another bundle follows, in most cases of the same slice.
          const Unit next = more_bands    ? Unit(bundle, band + 1, n)
                            : more_images ? Unit(bundle, 0, n + 1)
                                          : Unit((bundle + 1) % s.bundles, 0, batch.begin);
          add_unit<T>(q, g, scratch, Unit(bundle, band, n), next, gy, x, sums, gb ? bias_sums : nullptr);
        }
    }
    if (parts > 1) barrier();
    const bool last = q.weight_layout == Layout::channels_last;
    const Range groups = share(s.groups, id, parts);
    for (int64_t group = groups.begin; group < groups.end; ++group)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t pack = group / s.pack, out = group % s.pack * k + i;  // among the pack's lanes
        const int64_t block = out / (most_vectors * L), vectors = s.block_vectors(block), lane = out % (most_vectors * L);
        T* to = gw + (group * k + i) * c * s.taps;
        for (int64_t tap = 0; tap < s.taps; ++tap)
          for (int64_t in = 0; in < c; ++in) {
            const int64_t at = (pack * g.sums + block * most_vectors * s.taps * c + (tap * c + in) * vectors) * L + lane;
            T sum = 0;
            for (int64_t slice = 0; slice < g.slices; ++slice) sum += memory.partial[slice * s.packs * g.sums * L + at];
            to[last ? tap * c + in : in * s.taps + tap] = sum;
          }
        if (!gb) continue;
        T sum = 0;
        for (int64_t slice = 0; slice < g.slices; ++slice)
          sum += memory.partial_bias[(slice * s.packs + pack) * s.vectors * L + out];
        gb[group * k + i] = sum;
      }
  });
}

template int64_t grouped_gradient_bytes<float>(const ConvProblem&, int);
template int64_t grouped_gradient_bytes<double>(const ConvProblem&, int);
template void grouped_gradient<float>(const ConvProblem&, const float*, const float*, float*, float*, void*, int);
template void grouped_gradient<double>(const ConvProblem&, const double*, const double*, double*, double*, void*, int);

}  // namespace fastconv::cpu::FASTCONV_ISA
