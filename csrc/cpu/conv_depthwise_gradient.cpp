// Weight gradient of depthwise convolution, both layouts.
//
// Without stride and dilation a tile of taps rolls along one axis: the rows in NCHW, where a vector lies along the width, the
// columns in channels_last, where it lies along the channels. An input and an output gradient are loaded once for all the taps
// of the tile in which they meet. With stride or dilation every tap loads its own input.
#include "conv_depthwise_planes.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// ---------------------------------------------------------------------------------------------------------------------------
// Rolling along an axis: sum[tap][c] += gy[i - tap] * x[i] of line c

template <class T>
struct RollTile {
  const T* gy;             // output 0 along the axis
  int64_t gy_step;         // from one output along the axis to the next
  const T* x;              // the input that output 0 meets through the first tap
  int64_t x_step, x_line;  // along the axis, and from one line of taps across it to the next
  int64_t first, end;      // inputs, counted from there: number i meets the outputs i, i - 1, ... through the taps 0, 1, ...
  int64_t outs;            // outputs along the axis
  int64_t vectors, last;   // the last vector begins `last` elements after the first
  int width;               // lanes of gy
  const T* next[2];        // fetched for later in turns, a line a step
  int64_t next_step;       // elements; 0 where there is nothing to fetch
  T* sum;                  // vectors
  int64_t sum_tap, sum_line;
};

// What a step fetches of x and gy is as much as it reads of them.
constexpr int fetches = vector_bytes > 32 ? vector_bytes / 32 : 1;
template <class T>
constexpr int64_t fetch_step = minimum(64, 2 * vector_bytes) / int64_t(sizeof(T));

// x is read in whole vectors: beyond `width` lanes it meets zeros, and must be finite.
template <class T, int TAPS, int LINES, bool WHOLE>
inline __attribute__((always_inline)) void roll_vectors(const RollTile<T>& t) {
  constexpr int L = lanes<T>;
  const T *next = t.next[0], *after = t.next[1];
  for (int64_t v = 0; v < t.vectors; ++v) {
    const int64_t begin = v + 1 < t.vectors ? v * L : t.last;
    const T *gy = t.gy + begin + t.first * t.gy_step, *x = t.x + begin + t.first * t.x_step;
    T* to = t.sum + v * L;
    Vec<T> sum[TAPS][LINES];
#pragma GCC unroll 8
    for (int r = 0; r < TAPS; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < LINES; ++c) sum[r][c] = load(to + r * t.sum_tap + c * t.sum_line);
    auto add = [&](const auto& meets) __attribute__((always_inline)) {
      Vec<T> in[LINES];
#pragma GCC unroll 8
      for (int c = 0; c < LINES; ++c) in[c] = load(x + c * t.x_line);
#pragma GCC unroll 8
      for (int r = 0; r < TAPS; ++r) {
        if (!meets(r)) continue;
        const T* at = gy - r * t.gy_step;
        const Vec<T> out = WHOLE ? load(at) : load_first(at, t.width);
#pragma GCC unroll 8
        for (int c = 0; c < LINES; ++c) sum[r][c] = fma(out, in[c], sum[r][c]);
      }
      gy += t.gy_step, x += t.x_step;
      for (int k = 0; k < fetches; ++k) {
        __builtin_prefetch(next);
        const T* other = after;
        after = next + t.next_step, next = other;
      }
    };
    int64_t i = t.first;
    for (const int64_t stop = minimum<int64_t>(TAPS - 1, t.end); i < stop; ++i)
      add([&](int r) { return i >= r && i - r < t.outs; });
    for (const int64_t stop = minimum(t.outs, t.end); i < stop; ++i) add([](int) { return true; });
    for (; i < t.end; ++i) add([&](int r) { return i - r < t.outs; });
#pragma GCC unroll 8
    for (int r = 0; r < TAPS; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < LINES; ++c) store<T>(to + r * t.sum_tap + c * t.sum_line, sum[r][c]);
  }
}

template <class T, int TAPS, int LINES>
__attribute__((noinline)) void roll_tile(const RollTile<T>& tile) {
  const RollTile<T> t = tile;  // whose members no store can change
  t.width == lanes<T> ? roll_vectors<T, TAPS, LINES, true>(t) : roll_vectors<T, TAPS, LINES, false>(t);
}

template <class T>
using RollKernel = void (*)(const RollTile<T>&);

// As many sums as 16 registers hold beside an output gradient and the inputs of all lines.
constexpr int roll_most_taps = 5, roll_most_lines = 3;

template <class T>
RollKernel<T> roll_kernel(int64_t taps, int64_t lines) {
  static constexpr RollKernel<T> table[roll_most_taps][roll_most_lines] = {
      {roll_tile<T, 1, 1>, roll_tile<T, 1, 2>, roll_tile<T, 1, 3>},
      {roll_tile<T, 2, 1>, roll_tile<T, 2, 2>, roll_tile<T, 2, 3>},
      {roll_tile<T, 3, 1>, roll_tile<T, 3, 2>, roll_tile<T, 3, 3>},
      {roll_tile<T, 4, 1>, roll_tile<T, 4, 2>, roll_tile<T, 4, 3>},
      {roll_tile<T, 5, 1>, roll_tile<T, 5, 2>, nullptr}};
  return table[taps - 1][lines - 1];
}

// Calls body(begin, end) over begin .. end - 1 in pieces of `most`; the last two share what is left.
template <class Body>
inline void each_piece(int64_t begin, int64_t end, int64_t most, const Body& body) {
  while (begin < end) {
    const int64_t left = end - begin, next = begin + (left == most + 1 ? (left + 1) / 2 : minimum(left, most));
    body(begin, next);
    begin = next;
  }
}

// Rolls the tiles of `taps` taps along the axis and of the lines line0 .. line1 - 1. `all` has what they share; its x, sum and
// inputs are those of the first tap of line 0. The first tile fetches.
template <class T>
void roll_tiles(const RollTile<T>& all, int64_t taps, int64_t line0, int64_t line1) {
  RollTile<T> tile = all;
  each_piece(0, taps, taps == roll_most_taps ? taps : 4, [&](int64_t r0, int64_t r1) {
    each_piece(line0, line1, r1 - r0 == roll_most_taps ? 2 : roll_most_lines, [&](int64_t c0, int64_t c1) {
      tile.x = all.x + r0 * all.x_step + c0 * all.x_line;
      tile.sum = all.sum + r0 * all.sum_tap + c0 * all.sum_line;
      tile.first = maximum<int64_t>(0, all.first - r0), tile.end = all.end - r0;
      if (tile.first < tile.end) roll_kernel<T>(r1 - r0, c1 - c0)(tile);
      tile.next_step = 0;
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// Any strides and dilations

// A tile of taps is summed in registers over a rectangle of output positions: sum[r][s] += gy[p][q] * x[p][q shifted by r, s].
constexpr int tile_sums = 12;  // with an operand of each kind, what 16 registers hold
constexpr int tile_most_rows = 4, tile_most_columns = 5;

template <class T>
struct TapTile {
  const T* gy;
  int64_t gy_row, gy_step;
  const T* x;
  int64_t x_row, x_step, x_tap_row, x_tap_column[tile_most_columns];
  int64_t rows, count;  // output rows, and vectors in each
  int width, tail;      // lanes of each vector; lanes of one more, partial vector at the end of a row
  T* sum;               // vectors
  int64_t sum_row, sum_step;
};

template <class T, int ROWS, int COLUMNS>
__attribute__((noinline)) void tap_tile(const TapTile<T>& t) {
  Vec<T> sum[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < COLUMNS; ++s) sum[r][s] = load(t.sum + r * t.sum_row + s * t.sum_step);
  auto add = [&](const T* gy, const T* x, auto&& read) __attribute__((always_inline)) {
    const Vec<T> g = read(gy);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < COLUMNS; ++s) sum[r][s] = fma(g, read(x + r * t.x_tap_row + t.x_tap_column[s]), sum[r][s]);
  };
  for (int64_t p = 0; p < t.rows; ++p) {
    const T *gy = t.gy + p * t.gy_row, *x = t.x + p * t.x_row;
    if (t.width == lanes<T>)
      for (int64_t i = 0; i < t.count; ++i, gy += t.gy_step, x += t.x_step)
        add(gy, x, [](const T* at) __attribute__((always_inline)) { return load(at); });
    else
      for (int64_t i = 0; i < t.count; ++i, gy += t.gy_step, x += t.x_step)
        add(gy, x, [&](const T* at) __attribute__((always_inline)) { return load_first(at, t.width); });
    if (t.tail) add(gy, x, [&](const T* at) __attribute__((always_inline)) { return load_first(at, t.tail); });
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < COLUMNS; ++s) store<T>(t.sum + r * t.sum_row + s * t.sum_step, sum[r][s]);
}

template <class T>
using TileKernel = void (*)(const TapTile<T>&);

template <class T>
TileKernel<T> tile_kernel(int64_t rows, int64_t columns) {
  static constexpr TileKernel<T> table[tile_most_columns][tile_most_rows] = {
      {tap_tile<T, 1, 1>, tap_tile<T, 2, 1>, tap_tile<T, 3, 1>, tap_tile<T, 4, 1>},
      {tap_tile<T, 1, 2>, tap_tile<T, 2, 2>, tap_tile<T, 3, 2>, tap_tile<T, 4, 2>},
      {tap_tile<T, 1, 3>, tap_tile<T, 2, 3>, tap_tile<T, 3, 3>, tap_tile<T, 4, 3>},
      {tap_tile<T, 1, 4>, tap_tile<T, 2, 4>, tap_tile<T, 3, 4>, nullptr},
      {tap_tile<T, 1, 5>, tap_tile<T, 2, 5>, nullptr, nullptr}};
  return table[columns - 1][rows - 1];
}

// Calls body(r0, r1, s0, s1) over the tiles of the taps r0 .. r1 - 1 by s0 .. s1 - 1.
template <class Body>
void each_tile(int64_t r0, int64_t r1, int64_t s0, int64_t s1, const Body& body) {
  each_piece(s0, s1, s1 - s0 <= tile_most_columns ? tile_most_columns : 4, [&](int64_t sa, int64_t sb) {
    each_piece(r0, r1, minimum<int64_t>(tile_most_rows, tile_sums / (sb - sa)),
               [&](int64_t ra, int64_t rb) { body(ra, rb, sa, sb); });
  });
}

// ---------------------------------------------------------------------------------------------------------------------------

// The reduction is cut into at most this many slices, added up in order at the end, where `units` of channels alone would not
// keep many threads busy.
constexpr int64_t most_slices(int64_t units) { return maximum<int64_t>(1, 64 / units); }

bool plain(const ConvProblem& q) { return q.stride_h == 1 && q.stride_w == 1 && q.dilation_h == 1 && q.dilation_w == 1; }

template <class T>
T add_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes<T>; ++i) sum += v[i];
  return sum;
}

// *sum += the `count` vectors `step` apart, the first `width` lanes of each. Four sums at a time hide the latency of addition.
template <class T>
void add_vectors(const T* from, int64_t step, int64_t count, int width, T* sum) {
  auto read = [&](const T* at) { return width == lanes<T> ? load(at) : load_first(at, width); };
  Vec<T> sums[4] = {load(sum)};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4, from += 4 * step)
    for (int j = 0; j < 4; ++j) sums[j] += read(from + j * step);
  for (; i < count; ++i, from += step) sums[0] += read(from);
  store<T>(sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
struct GradientMemory {
  T* partial;       // [slice][k][taps], in channels_last [slice][taps][padded k]
  T* partial_bias;  // [slice][padded k]
  char* threads;
  int64_t bytes;
  GradientMemory(int64_t slices, int64_t taps, int64_t channels, int64_t thread_bytes, void* base) {
    Workspace memory(base);
    partial = memory.take<T>(slices * taps * channels);
    partial_bias = memory.take<T>(slices * channels);
    threads = memory.take<char>(thread_bytes);
    bytes = memory.bytes();
  }
};

template <class T>
struct PlaneGradient {
  PaddedPlane padded;
  int64_t multiplier, taps, slices;
  bool rolled;
  explicit PlaneGradient(const ConvProblem& q) {
    constexpr int L = lanes<T>;
    padded = padded_plane<T>(row_axis(q, true), column_axis(q, true), 1, (q.q + L - 1) / L * L);
    multiplier = q.k / q.c, taps = q.r * q.s, slices = minimum(q.n, most_slices(q.c));
    rolled = plain(q);
  }
  struct Scratch {
    T* copy;
    T* sums;       // [multiplier][taps] vectors
    T* bias_sums;  // [multiplier] vectors
    int64_t* columns;
    int64_t bytes;
    Scratch(const PlaneGradient& g, void* base) {
      Workspace memory(base);
      const PaddedPlane& p = g.padded;
      copy = memory.take<T>(p.rows.reach(p.band) * p.row_pitch);
      sums = memory.take<T>(g.multiplier * g.taps * lanes<T>);
      bias_sums = memory.take<T>(g.multiplier * lanes<T>);
      columns = memory.take<int64_t>(p.columns.kernel);
      bytes = memory.bytes();
    }
  };
  GradientMemory<T> memory(const ConvProblem& q, void* base, int threads) const {
    return {slices, taps, q.k, Scratch(*this, nullptr).bytes * threads, base};
  }
};

// Adds the output rows begin .. end - 1 of one plane, of which `gy` is the first. What comes next is fetched.
template <class T>
void add_band(const ConvProblem& q, const PlaneGradient<T>& g, const typename PlaneGradient<T>::Scratch& scratch, const T* gy,
              int64_t begin, int64_t end, const T* next_gy, const T* next_x, T* sums) {
  constexpr int L = lanes<T>;
  const PaddedPlane& p = g.padded;
  if (g.rolled) {
    RollTile<T> tile;
    tile.gy_step = q.q, tile.x_step = p.row_pitch, tile.x_line = 1, tile.outs = end - begin;
    tile.first = maximum<int64_t>(0, q.pad_top - begin), tile.end = minimum(tile.outs + q.r - 1, q.h + q.pad_top - begin);
    tile.vectors = 1, tile.last = 0, tile.sum = sums, tile.sum_tap = q.s * L, tile.sum_line = L;
    for (int64_t v = 0; v < q.q; v += L) {
      tile.gy = gy + v, tile.x = scratch.copy + scratch.columns[0] + v, tile.width = int(minimum<int64_t>(L, q.q - v));
      const int64_t fetched = v * (tile.end - tile.first) / L * fetches / 2 * fetch_step<T>;
      tile.next[0] = next_x + fetched, tile.next[1] = next_gy + fetched, tile.next_step = fetch_step<T>;
      roll_tiles<T>(tile, q.r, 0, q.s);
    }
    return;
  }
  each_tile(0, q.r, 0, q.s, [&](int64_t r0, int64_t r1, int64_t s0, int64_t s1) {
    TapTile<T> tile;
    tile.gy = gy, tile.gy_row = q.q, tile.gy_step = L;
    tile.x = scratch.copy + r0 * q.dilation_h * p.row_pitch;
    tile.x_row = q.stride_h * p.row_pitch, tile.x_step = L, tile.x_tap_row = q.dilation_h * p.row_pitch;
    for (int64_t t = s0; t < s1; ++t) tile.x_tap_column[t - s0] = scratch.columns[t];
    tile.rows = end - begin, tile.count = q.q / L, tile.width = L, tile.tail = int(q.q % L);
    tile.sum = sums + (r0 * q.s + s0) * L, tile.sum_row = q.s * L, tile.sum_step = L;
    tile_kernel<T>(r1 - r0, s1 - s0)(tile);
  });
}

template <class T>
void plane_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const PlaneGradient<T> g(q);
  const PaddedPlane& p = g.padded;
  const GradientMemory<T> memory = g.memory(q, workspace, threads);
  const int64_t in_plane = q.h * q.w, out_plane = q.p * q.q, sum_bytes = typename PlaneGradient<T>::Scratch(g, nullptr).bytes;
  parallel(threads, [&](int id, int parts) {
    const typename PlaneGradient<T>::Scratch scratch(g, memory.threads + id * sum_bytes);
    fill_columns(p, scratch.columns);
    const Range units = share(g.slices * q.c, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / q.c, c = u % q.c;
      for (int64_t i = 0; i < g.multiplier * g.taps; ++i) store<T>(scratch.sums + i * L, Vec<T>{});
      for (int64_t i = 0; i < g.multiplier; ++i) store<T>(scratch.bias_sums + i * L, Vec<T>{});
      const Range batch = share(q.n, int(slice), int(g.slices));
      for (int64_t n = batch.begin; n < batch.end; ++n) {
        const T* plane = x + (n * q.c + c) * in_plane;
        const int64_t next_plane = n + 1 < batch.end ? q.c : 1;  // counted from this one
        for (int64_t begin = 0; begin < q.p; begin += p.band) {
          const int64_t end = minimum(begin + p.band, q.p);
          copy_band<T>(p, plane, begin, end, scratch.copy);
          for (int64_t j = 0; j < g.multiplier; ++j) {
            const T* out = gy + ((n * q.c + c) * g.multiplier + j) * out_plane + begin * q.q;
            const T* next_gy = out + (end < q.p ? (end - begin) * q.q : (next_plane * g.multiplier * out_plane) - begin * q.q);
            const T* next_x = plane + (end < q.p ? minimum(end + q.r - 1, q.h) * q.w : next_plane * in_plane);
            add_band<T>(q, g, scratch, out, begin, end, next_gy, next_x, scratch.sums + j * g.taps * L);
            if (!gb) continue;
            const int64_t count = (end - begin) * q.q;
            T* sum = scratch.bias_sums + j * L;
            add_vectors<T>(out, L, count / L, L, sum);
            add_vectors<T>(out + count / L * L, L, 1, int(count % L), sum);
          }
        }
      }
      for (int64_t j = 0; j < g.multiplier; ++j) {
        const int64_t k = slice * q.k + c * g.multiplier + j;
        for (int64_t t = 0; t < g.taps; ++t)
          memory.partial[k * g.taps + t] = add_lanes<T>(load(scratch.sums + (j * g.taps + t) * L));
        memory.partial_bias[k] = add_lanes<T>(load(scratch.bias_sums + j * L));
      }
    }
    if (parts > 1) barrier();
    const Range ks = share(q.k, id, parts);
    for (int64_t k = ks.begin; k < ks.end; ++k) {
      for (int64_t t = 0; t < g.taps; ++t) {
        T sum = 0;
        for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial[(i * q.k + k) * g.taps + t];
        gw[k * g.taps + t] = sum;
      }
      if (!gb) continue;
      T sum = 0;
      for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial_bias[i * q.k + k];
      gb[k] = sum;
    }
  });
}

template <class T>
struct PixelGradient {
  int64_t multiplier, taps, vectors, padded, chunk, chunks, slices, band;
  int64_t positions;  // of a row, and all channels of a chunk: few enough for the first-level cache to hold what a tile reads
  bool rolled;
  bool overlapped;  // the last vector of channels moves back to end with them; else it is partial
  int64_t channels;
  explicit PixelGradient(const ConvProblem& q) {
    constexpr int L = lanes<T>;
    multiplier = q.k / q.c, taps = q.r * q.s, channels = q.k;
    vectors = (q.k + L - 1) / L, padded = vectors * L;
    overlapped = multiplier == 1 && q.k >= L;
    rolled = overlapped && plain(q);
    chunk = 1024 / vector_bytes, chunks = (vectors + chunk - 1) / chunk;
    positions = maximum<int64_t>(8, 8192 / (minimum(chunk, vectors) * vector_bytes));
    // Slices are of output rows; of images where each is copied first.
    const int64_t rows = multiplier > 1 ? q.n : minimum(q.n * q.p, q.n * q.p * q.q / 64);
    slices = maximum<int64_t>(1, minimum(rows, most_slices(chunks)));
    band = maximum<int64_t>(1, minimum(q.p, 64 / q.q));
  }
  // The channel at which a vector begins.
  int64_t begin(int64_t vector) const {
    return overlapped ? minimum(vector * lanes<T>, channels - lanes<T>) : vector * lanes<T>;
  }
  int width(int64_t vector) const { return int(minimum<int64_t>(lanes<T>, channels - begin(vector))); }
  int64_t image_pitch() const { return minimum(chunk, vectors) * lanes<T>; }
  struct Scratch {
    T* image;  // x with each channel repeated for the outputs it serves
    int64_t bytes;
    Scratch(const PixelGradient& g, const ConvProblem& q, void* base) {
      Workspace memory(base);
      image = memory.take<T>(g.multiplier > 1 ? q.h * q.w * g.image_pitch() : 0);
      bytes = memory.bytes();
    }
  };
  GradientMemory<T> memory(const ConvProblem& q, void* base, int threads) const {
    return {slices, taps, padded, Scratch(*this, q, nullptr).bytes * threads, base};
  }
};

// Calls body(first, last + 1, taps) over runs of the outputs begin .. end - 1, of at most `most`, that have the same valid
// taps.
template <class Body>
void each_run(const Axis& axis, int64_t begin, int64_t end, int64_t most, const Body& body) {
  auto valid = [&](int64_t i) {
    const int64_t start = i * axis.in_step + axis.lowest;
    Range taps = {0, axis.kernel};
    while (taps.begin < taps.end && start + taps.begin * axis.tap_step < 0) ++taps.begin;
    while (taps.begin < taps.end && start + (taps.end - 1) * axis.tap_step >= axis.in) --taps.end;
    return taps;
  };
  for (int64_t i = begin; i < end;) {
    const Range taps = valid(i);
    int64_t stop = i + 1;
    for (; stop < end && stop - i < most; ++stop) {
      const Range next = valid(stop);
      if (next.begin != taps.begin || next.end != taps.end) break;
    }
    body(i, stop, taps);
    i = stop;
  }
}

// Adds the output rows p0 .. p1 - 1 of one image, in which the tap rows `r` are valid, to the sums of a chunk of channels. All
// pointers are at its first channel.
template <class T>
void roll_rows(const ConvProblem& q, const PixelGradient<T>& g, int64_t p0, int64_t p1, Range r, int64_t chunk, const T* gy,
               const T* x, T* sums) {
  const int64_t begin = chunk * g.chunk, end = minimum(begin + g.chunk, g.vectors);
  const int64_t inputs = minimum(q.q + q.s - 1, q.w + q.pad_left);
  RollTile<T> tile;
  tile.gy_step = tile.x_step = q.k, tile.x_line = q.w * q.k, tile.outs = q.q;
  tile.vectors = end - begin, tile.last = g.begin(end - 1) - g.begin(begin), tile.width = lanes<T>;
  tile.sum = sums, tile.sum_tap = g.padded, tile.sum_line = q.s * g.padded;
  for (int64_t p = p0; p < p1; ++p) {
    tile.gy = gy + p * q.q * q.k, tile.x = x + ((p - q.pad_top) * q.w - q.pad_left) * q.k;
    for (tile.first = maximum<int64_t>(0, q.pad_left); tile.first < inputs; tile.first = tile.end) {
      tile.end = minimum(tile.first + g.positions, inputs);
      // Far enough ahead, of the gradients and of the last of the input rows, the one that was not read before.
      const int64_t ahead = (tile.first + 2 * g.positions) * q.k;
      tile.next[0] = tile.x + (r.end - 1) * tile.x_line + ahead, tile.next[1] = tile.gy + ahead;
      tile.next_step = fetch_step<T>;
      roll_tiles<T>(tile, q.s, r.begin, r.end);
    }
  }
}

// Adds the output rows p0 .. p1 - 1 of one image, in which the taps `r` are valid, to the sums of one vector of channels. All
// pointers are at these channels; `pitch` is from one pixel of x to the next.
template <class T>
void add_rows(const ConvProblem& q, const PixelGradient<T>& g, const Axis& columns, int64_t p0, int64_t p1, Range r, int width,
              const T* gy, const T* x, int64_t pitch, T* sums) {
  const int64_t x_row = q.w * pitch, gy_row = q.q * q.k;
  each_run(columns, 0, q.q, q.q, [&](int64_t q0, int64_t q1, Range s) {
    each_tile(r.begin, r.end, s.begin, s.end, [&](int64_t r0, int64_t r1, int64_t s0, int64_t s1) {
      TapTile<T> tile;
      tile.gy = gy + p0 * gy_row + q0 * q.k, tile.gy_row = gy_row, tile.gy_step = q.k;
      tile.x =
          x +
          ((p0 * q.stride_h - q.pad_top + r0 * q.dilation_h) * q.w + q0 * q.stride_w - q.pad_left + s0 * q.dilation_w) * pitch;
      tile.x_row = q.stride_h * x_row, tile.x_step = q.stride_w * pitch, tile.x_tap_row = q.dilation_h * x_row;
      for (int64_t t = 0; t < s1 - s0; ++t) tile.x_tap_column[t] = t * q.dilation_w * pitch;
      tile.rows = p1 - p0, tile.count = q1 - q0, tile.width = width, tile.tail = 0;
      tile.sum = sums + (r0 * q.s + s0) * g.padded, tile.sum_row = q.s * g.padded, tile.sum_step = g.padded;
      tile_kernel<T>(r1 - r0, s1 - s0)(tile);
    });
  });
}

template <class T>
void pixel_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const PixelGradient<T> g(q);
  const GradientMemory<T> memory = g.memory(q, workspace, threads);
  const Axis rows = row_axis(q, true), columns = column_axis(q, true);
  const int64_t scratch_bytes = typename PixelGradient<T>::Scratch(g, q, nullptr).bytes;
  parallel(threads, [&](int id, int parts) {
    const typename PixelGradient<T>::Scratch scratch(g, q, memory.threads + id * scratch_bytes);
    const Range units = share(g.slices * g.chunks, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / g.chunks, v0 = u % g.chunks * g.chunk, v1 = minimum(v0 + g.chunk, g.vectors);
      T* partial = memory.partial + slice * g.taps * g.padded;
      T* partial_bias = memory.partial_bias + slice * g.padded;
      for (int64_t v = v0; v < v1; ++v) {
        for (int64_t t = 0; t < g.taps; ++t) store<T>(partial + t * g.padded + v * L, Vec<T>{});
        store<T>(partial_bias + v * L, Vec<T>{});
      }
      const Range out_rows = share(q.n * q.p, int(slice), int(g.slices));
      for (int64_t row = out_rows.begin; row < out_rows.end;) {
        const int64_t n = row / q.p, p_begin = row % q.p, p_end = minimum(q.p, p_begin + out_rows.end - row);
        row += p_end - p_begin;
        const T *image = x + n * q.h * q.w * q.c, *gy_image = gy + n * q.p * q.q * q.k;
        int64_t pitch = q.c, first = 0;
        if (g.multiplier > 1) {
          pitch = g.image_pitch(), first = v0 * L;
          pack_image<T>(image, q.h * q.w, q.c, 1, 0, g.multiplier, first, minimum(v1 * L, q.k), scratch.image, pitch);
          image = scratch.image;
        }
        each_run(rows, p_begin, p_end, g.band, [&](int64_t p0, int64_t p1, Range r) {
          if (g.rolled)
            roll_rows<T>(q, g, p0, p1, r, u % g.chunks, gy_image + g.begin(v0), image + g.begin(v0), partial + v0 * L);
          for (int64_t v = v0; v < v1; ++v) {
            const int64_t k = g.begin(v);
            if (!g.rolled)
              add_rows<T>(q, g, columns, p0, p1, r, g.width(v), gy_image + k, image + k - first, pitch, partial + v * L);
            if (gb) add_vectors<T>(gy_image + p0 * q.q * q.k + k, q.k, (p1 - p0) * q.q, g.width(v), partial_bias + v * L);
          }
        });
      }
    }
    if (parts > 1) barrier();
    const Range vectors = share(g.vectors, id, parts);
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      // Adds up the slices. `to` is that of channel 0, `pitch` from one channel to the next.
      auto finish = [&](const T* sums, int64_t slice_pitch, T* to, int64_t pitch) {
        Vec<T> sum{};
        for (int64_t i = 0; i < g.slices; ++i) sum += load(sums + i * slice_pitch + v * L);
        for (int64_t k = v * L; k < minimum((v + 1) * L, q.k); ++k) to[k * pitch] = sum[k - g.begin(v)];
      };
      for (int64_t t = 0; t < g.taps; ++t) finish(memory.partial + t * g.padded, g.taps * g.padded, gw + t, g.taps);
      if (gb) finish(memory.partial_bias, g.padded, gb, 1);
    }
  });
}

}  // namespace

template <class T>
int64_t depthwise_gradient_bytes(const ConvProblem& q, int threads) {
  return q.layout == Layout::channels_last ? PixelGradient<T>(q).memory(q, nullptr, threads).bytes
                                           : PlaneGradient<T>(q).memory(q, nullptr, threads).bytes;
}

template <class T>
void depthwise_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  (q.layout == Layout::channels_last ? pixel_gradient<T> : plane_gradient<T>)(q, gy, x, gw, gb, workspace, threads);
}

template int64_t depthwise_gradient_bytes<float>(const ConvProblem&, int);
template int64_t depthwise_gradient_bytes<double>(const ConvProblem&, int);
template void depthwise_gradient<float>(const ConvProblem&, const float*, const float*, float*, float*, void*, int);
template void depthwise_gradient<double>(const ConvProblem&, const double*, const double*, double*, double*, void*, int);

}  // namespace fastconv::cpu::FASTCONV_ISA
