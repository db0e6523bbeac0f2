// Algorithm "depthwise": convolution with one input channel a group. Forward, input gradient, weight gradient.
//
// Forward and input gradient are the same computation over different taps (conv_axis.h). A strip kernel computes a column of
// output rows, one vector wide, in registers: each input row is loaded once for all the output rows it serves. In NCHW a vector
// lies along the width and reads rows from a zero-padded copy, column phases apart, so that no tap needs a mask. In
// channels_last it lies along the channels and reads the tensor itself; rows outside it are a row of zeros.
#include "conv.h"
#include "conv_axis.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int max_strip_rows = 8;
constexpr int64_t band_bytes = 24 * 1024;  // a padded copy that leaves room in a first-level cache of 32 KiB

template <Primitive PRIMITIVE>
bool applies(const ConvProblem& q) {
  return q.c == q.groups && worth_padding(q, PRIMITIVE);
}
bool preferred(const ConvProblem&) { return true; }

// ---------------------------------------------------------------------------------------------------------------------------
// Strip kernels

template <class T>
struct Strip {
  // rows[j * row_step + r * tap_step] is the input row that tap row r of output row j reads.
  const T* const* rows;
  int64_t row_step, tap_step, tap_rows;
  const int64_t* columns;  // where each tap column starts, from the beginning of a row
  int64_t tap_columns, offset;
  const T* weights;  // [tap column][tap row], scalars in NCHW and vectors `weight_pitch` apart in channels_last
  int64_t weight_pitch;
  const T* bias;
  T* out;
  int64_t out_pitch, count, length;  // `count` rows of `length` elements
  bool accumulate;                   // add to what is there instead of to the bias
};

template <class T, bool PIXELS>
inline __attribute__((always_inline)) Vec<T> strip_operand(const T* p) {
  if constexpr (PIXELS)
    return load(p);
  else
    return splat(*p);
}

// Calls body(first element, lanes to store) over the vectors of a row. The last one moves back to end with the row; where that
// cannot be (short row, or elements would be added twice) it is partial.
template <class T, class Body>
inline __attribute__((always_inline)) void each_vector(int64_t length, bool accumulate, const Body& body) {
  constexpr int L = lanes<T>;
  int64_t v = 0;
  for (; v + L <= length; v += L) body(v, L);
  if (v == length) return;
  if (accumulate || length < L)
    body(v, int(length - v));
  else
    body(length - L, L);
}

template <class T, int ROWS>
inline __attribute__((always_inline)) void finish_strip(const Strip<T>& s, int64_t v, int width, Vec<T> (&sum)[ROWS]) {
  T* out = s.out + v;
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; ++j) {
    if (j >= s.count) break;
    if (width == lanes<T>)
      store<T>(out, sum[j]);
    else
      store_first(out, sum[j], width);
    out += s.out_pitch;
  }
}

template <class T, bool PIXELS, int ROWS>
inline __attribute__((always_inline)) void begin_strip(const Strip<T>& s, int64_t v, int width, Vec<T> (&sum)[ROWS]) {
  if (!s.accumulate) {
    const Vec<T> bias = strip_operand<T, PIXELS>(s.bias + (PIXELS ? v : 0));
#pragma GCC unroll 8
    for (int j = 0; j < ROWS; ++j) sum[j] = bias;
    return;
  }
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; ++j) sum[j] = j < s.count ? load_first(s.out + v + j * s.out_pitch, width) : Vec<T>{};
}

// TAPS tap rows, STRIDE input rows from one output row to the next, all known here: every row is loaded once.
template <class T, bool PIXELS, int ROWS, int TAPS, int STRIDE>
__attribute__((noinline)) void strip(const Strip<T>& s) {
  each_vector<T>(s.length, s.accumulate, [&](int64_t v, int width) __attribute__((always_inline)) {
    Vec<T> sum[ROWS];
    begin_strip<T, PIXELS>(s, v, width, sum);
    const T* weights = s.weights + (PIXELS ? v : 0);
#pragma GCC unroll 1
    for (int64_t c = 0; c < s.tap_columns; ++c) {
      const int64_t at = s.columns[c] + s.offset + v;
      Vec<T> weight[TAPS];
#pragma GCC unroll 8
      for (int r = 0; r < TAPS; ++r, weights += s.weight_pitch) weight[r] = strip_operand<T, PIXELS>(weights);
#pragma GCC unroll 32
      for (int i = 0; i < (ROWS - 1) * STRIDE + TAPS; ++i) {
        const Vec<T> x = load(s.rows[i] + at);
#pragma GCC unroll 8
        for (int r = TAPS - 1; r >= 0; --r)
          if (i >= r && (i - r) % STRIDE == 0 && (i - r) / STRIDE < ROWS) {
            const int j = (i - r) / STRIDE;
            sum[j] = fma(weight[r], x, sum[j]);
          }
      }
    }
    finish_strip<T, ROWS>(s, v, width, sum);
  });
}

// Any number of tap rows at any distance.
template <class T, bool PIXELS, int ROWS>
__attribute__((noinline)) void strip_any(const Strip<T>& s) {
  each_vector<T>(s.length, s.accumulate, [&](int64_t v, int width) __attribute__((always_inline)) {
    Vec<T> sum[ROWS];
    begin_strip<T, PIXELS>(s, v, width, sum);
    const T* weights = s.weights + (PIXELS ? v : 0);
    for (int64_t c = 0; c < s.tap_columns; ++c) {
      const int64_t at = s.columns[c] + s.offset + v;
      for (int64_t r = 0; r < s.tap_rows; ++r, weights += s.weight_pitch) {
        const Vec<T> weight = strip_operand<T, PIXELS>(weights);
        const T* const* row = s.rows + r * s.tap_step;
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j, row += s.row_step) sum[j] = fma(weight, load(*row + at), sum[j]);
      }
    }
    finish_strip<T, ROWS>(s, v, width, sum);
  });
}

template <class T>
using StripKernel = void (*)(const Strip<T>&);

template <class T, bool PIXELS, int ROWS>
StripKernel<T> strip_kernel(int64_t taps, int64_t row_step, int64_t tap_step) {
  if (tap_step == 1 && row_step == 1) {
    if (taps == 2) return strip<T, PIXELS, ROWS, 2, 1>;
    if (taps == 3) return strip<T, PIXELS, ROWS, 3, 1>;
    if (taps == 4) return strip<T, PIXELS, ROWS, 4, 1>;
    if (taps == 5) return strip<T, PIXELS, ROWS, 5, 1>;
    if (taps == 7) return strip<T, PIXELS, ROWS, 7, 1>;
  }
  if (tap_step == 1 && row_step == 2) {
    if (taps == 3) return strip<T, PIXELS, ROWS, 3, 2>;
    if (taps == 5) return strip<T, PIXELS, ROWS, 5, 2>;
    if (taps == 7) return strip<T, PIXELS, ROWS, 7, 2>;
  }
  return strip_any<T, PIXELS, ROWS>;
}

// How the outputs of an axis are cut into strips. With dilation d and stride 1, outputs d apart share input rows: a strip takes
// every d-th. `spacing` is the distance of the input rows that Strip::rows lists.
struct StripPlan {
  int64_t rows, residues, spacing, row_step, tap_step;
  int64_t out_step() const { return residues; }
  int64_t strips(int64_t count) const { return residues * (((count + residues - 1) / residues + rows - 1) / rows); }
  int64_t pointers(int64_t taps) const { return (rows - 1) * row_step + (taps - 1) * tap_step + 1; }
  int64_t first(int64_t strip) const { return strip % residues + strip / residues * rows * residues; }
  // Outputs of the strip that begins at `first`.
  int64_t count(int64_t first, int64_t total) const {
    return first < total ? minimum(rows, (total - first + residues - 1) / residues) : 0;
  }
};

StripPlan plan_strips(const Axis& axis, int64_t count) {
  const int64_t common = greatest_common_divisor(axis.in_step, axis.tap_step);
  const int64_t row_step = axis.in_step / common, tap_step = axis.tap_step / common;
  const bool dilated = row_step == 1;
  const int64_t residues = dilated ? minimum(tap_step, maximum<int64_t>(count, 1)) : 1;
  // Where the dilation is larger than the axis, every output is alone and rows are not shared.
  const bool shared = dilated && residues == tap_step;
  const int64_t length = (count + residues - 1) / residues;
  const int64_t rows = length <= 4 ? 4 : (length + 7) / 8 * 8 <= (length + 6) / 7 * 7 ? 8 : 7;
  if (shared) return {rows, residues, common * tap_step, 1, 1};
  return {rows, 1, common, row_step, tap_step};
}

template <class T, bool PIXELS>
StripKernel<T> strip_kernel(const StripPlan& plan, int64_t taps) {
  if (plan.rows == 4) return strip_kernel<T, PIXELS, 4>(taps, plan.row_step, plan.tap_step);
  if (plan.rows == 7) return strip_kernel<T, PIXELS, 7>(taps, plan.row_step, plan.tap_step);
  return strip_kernel<T, PIXELS, 8>(taps, plan.row_step, plan.tap_step);
}

// ---------------------------------------------------------------------------------------------------------------------------
// Weights, in the order the strips read them: phase by phase, [tap column][tap row]

// Calls body(row phase, column phase, taps before this pair of phases).
template <class Body>
void each_phase(const Axis& rows, const Axis& columns, const Body& body) {
  int64_t before = 0;
  for (int64_t a = 0; a < rows.phases; ++a) {
    const AxisPhase& row = rows.phase[a];
    for (int64_t b = 0; b < columns.phases; ++b) {
      const AxisPhase& column = columns.phase[b];
      body(row, column, before);
      before += row.taps * column.taps;
    }
  }
}

// out[tap * tap_pitch + i * k_pitch] for the channels begin .. end - 1 (i from 0), in which k = (begin + i) * multiple + plus.
template <class T>
void pack_weights(const ConvProblem& q, const Axis& rows, const Axis& columns, const T* w, int64_t begin, int64_t end,
                  int64_t multiple, int64_t plus, T* out, int64_t tap_pitch, int64_t k_pitch) {
  each_phase(rows, columns, [&](const AxisPhase& row, const AxisPhase& column, int64_t tap) {
    for (int64_t s = 0; s < column.taps; ++s)
      for (int64_t r = 0; r < row.taps; ++r, ++tap) {
        const int64_t from = (row.first_weight + r * rows.weight_step) * q.s + column.first_weight + s * columns.weight_step;
        for (int64_t i = begin; i < end; ++i)
          out[tap * tap_pitch + (i - begin) * k_pitch] = w[(i * multiple + plus) * q.r * q.s + from];
      }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// NCHW forward and input gradient

struct PlaneShape {
  Axis rows, columns;
  int64_t multiplier, in_planes, out_planes;  // planes read and written per channel of x: 1 and the multiplier, or the reverse
  StripPlan strips;
  int64_t band, bands;       // output rows (of each phase) worked on at once
  int64_t pitch, row_pitch;  // of a column phase, and of a whole row of the padded copy
  int64_t copy_rows, stage_pitch;
};

template <class T>
PlaneShape plane_shape(const ConvProblem& q, bool forward) {
  PlaneShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.multiplier = q.k / q.c;
  s.in_planes = forward ? 1 : s.multiplier, s.out_planes = forward ? s.multiplier : 1;
  const int64_t count = s.rows.phase[0].count, columns = s.columns.phase[0].count;
  s.pitch = (s.columns.reach(columns) + s.columns.in_step - 1) / s.columns.in_step;
  s.row_pitch = s.pitch * s.columns.in_step;
  s.band = count;
  const int64_t row_bytes = maximum<int64_t>(1, s.row_pitch * s.in_planes * int64_t(sizeof(T)));
  while (s.band > 2 * max_strip_rows && s.rows.reach(s.band) * row_bytes > band_bytes) s.band = (s.band / 2 + 7) / 8 * 8;
  s.bands = (count + s.band - 1) / s.band;
  s.strips = plan_strips(s.rows, s.band);
  s.copy_rows = s.rows.reach(s.band);
  const int L = lanes<T>;
  s.stage_pitch = s.columns.phases > 1 ? (columns + L - 1) / L * L : 0;
  return s;
}

template <class T>
struct PlaneMemory {
  T* weights;
  T* zeros;
  char* threads;  // per thread: copy, stage, pointers, columns
  int64_t thread_bytes, bytes;
};

template <class T>
struct PlaneScratch {
  T* copy;
  T* stage;
  const T** rows;
  int64_t* columns;
  int64_t bytes;
  PlaneScratch(const PlaneShape& s, void* base) {
    Workspace memory(base);
    copy = memory.take<T>(s.in_planes * s.copy_rows * s.row_pitch + 2 * lanes<T>);
    stage = memory.take<T>(s.columns.phases > 1 ? s.band * s.columns.phases * s.stage_pitch : 0);
    rows = memory.take<const T*>(s.strips.pointers(maximum<int64_t>(1, s.rows.kernel)));
    columns = memory.take<int64_t>(s.columns.kernel);
    bytes = memory.bytes();
  }
};

template <class T>
PlaneMemory<T> plane_memory(const ConvProblem& q, const PlaneShape& s, void* base, int threads) {
  Workspace memory(base);
  PlaneMemory<T> m;
  m.weights = memory.take<T>(q.k * q.r * q.s);
  m.zeros = memory.take<T>(1);
  m.thread_bytes = PlaneScratch<T>(s, nullptr).bytes;
  m.threads = memory.take<char>(m.thread_bytes * threads);
  m.bytes = memory.bytes();
  return m;
}

// The input rows that the outputs begin .. end - 1 read, padded with zeros, column phases apart.
template <class T>
void copy_rows(const PlaneShape& s, const T* plane, int64_t begin, int64_t end, T* to) {
  const int64_t top = s.rows.lowest + begin * s.rows.in_step, step = s.columns.in_step;
  for (int64_t h = top; h < top + s.rows.reach(end - begin); ++h, to += s.row_pitch) {
    const bool inside = h >= 0 && h < s.rows.in;
    const T* from = inside ? plane + h * s.columns.in : plane;
    for (int64_t i = 0; i < step; ++i)
      copy_padded<T>(from, inside ? s.columns.in : 0, s.columns.lowest + i, step, to + i * s.pitch, s.pitch);
  }
}

// Where the tap columns of every column phase begin in a row of the copy.
inline void fill_columns(const PlaneShape& s, int64_t* columns) {
  for (int64_t b = 0; b < s.columns.phases; ++b)
    for (int64_t t = 0; t < s.columns.phase[b].taps; ++t) {
      const int64_t at = s.columns.phase[b].start - s.columns.lowest + t * s.columns.tap_step;
      *columns++ = at % s.columns.in_step * s.pitch + at / s.columns.in_step;
    }
}

template <class T>
void plane_band(const ConvProblem& q, const PlaneShape& s, const PlaneScratch<T>& scratch, const T* weights, const T* bias,
                int64_t bias_step, const T* in, T* out, int64_t band) {
  const int64_t begin = band * s.band, band_end = minimum(begin + s.band, s.rows.phase[0].count);
  const int64_t copy_plane = s.copy_rows * s.row_pitch;
  for (int64_t j = 0; j < s.in_planes; ++j)
    copy_rows<T>(s, in + j * s.rows.in * s.columns.in, begin, band_end, scratch.copy + j * copy_plane);
  int64_t tap = 0;
  for (int64_t a = 0; a < s.rows.phases; ++a) {
    const AxisPhase& row = s.rows.phase[a];
    const int64_t end = minimum(band_end, row.count);
    const int64_t strips = s.strips.strips(end - begin), pointers = row.taps ? s.strips.pointers(row.taps) : 0;
    const StripKernel<T> kernel = strip_kernel<T, false>(s.strips, row.taps);
    int64_t column_tap = tap;
    for (int64_t k = 0; k < s.out_planes; ++k) {
      column_tap = tap;
      const int64_t* tap_columns = scratch.columns;
      T* plane = out + k * s.rows.out * s.columns.out;
      for (int64_t b = 0; b < s.columns.phases; ++b) {
        const AxisPhase& column = s.columns.phase[b];
        for (int64_t j = 0; j < s.in_planes; ++j) {
          Strip<T> strip;
          strip.rows = scratch.rows;
          strip.row_step = s.strips.row_step, strip.tap_step = s.strips.tap_step, strip.tap_rows = row.taps;
          strip.columns = tap_columns, strip.tap_columns = row.taps ? column.taps : 0, strip.offset = 0;
          strip.weights = weights + (k + j) * q.r * q.s + column_tap, strip.weight_pitch = 1;
          strip.bias = bias + k * bias_step;
          strip.length = column.count;
          strip.accumulate = j > 0;
          for (int64_t n = 0; n < strips; ++n) {
            const int64_t first = begin + s.strips.first(n);
            strip.count = s.strips.count(first, end);
            if (strip.count == 0) continue;
            const int64_t top = row.start - s.rows.lowest + (first - begin) * s.rows.in_step;
            for (int64_t i = 0; i < pointers; ++i)  // rows beyond the copy belong to outputs that are not stored
              scratch.rows[i] =
                  scratch.copy + j * copy_plane + minimum(top + i * s.strips.spacing, s.copy_rows - 1) * s.row_pitch;
            if (s.columns.phases == 1) {
              strip.out = plane + (row.first + first * s.rows.out_step) * s.columns.out;
              strip.out_pitch = s.strips.out_step() * s.rows.out_step * s.columns.out;
            } else {
              strip.out = scratch.stage + ((first - begin) * s.columns.phases + b) * s.stage_pitch;
              strip.out_pitch = s.strips.out_step() * s.columns.phases * s.stage_pitch;
            }
            kernel(strip);
          }
        }
        column_tap += row.taps * column.taps;
        tap_columns += column.taps;
      }
      if (s.columns.phases > 1)
        for (int64_t i = begin; i < end; ++i)
          interleave_row<T>(scratch.stage + (i - begin) * s.columns.phases * s.stage_pitch, s.stage_pitch, s.columns.out_step,
                            plane + (row.first + i * s.rows.out_step) * s.columns.out, s.columns.out);
    }
    tap = column_tap;
  }
}

template <class T>
void planes(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace, int threads) {
  const PlaneShape s = plane_shape<T>(q, forward);
  const PlaneMemory<T> memory = plane_memory<T>(q, s, workspace, threads);
  *memory.zeros = 0;
  parallel(threads, [&](int id, int parts) {
    const Range ks = share(q.k, id, parts);
    pack_weights<T>(q, s.rows, s.columns, w, ks.begin, ks.end, 1, 0, memory.weights + ks.begin * q.r * q.s, 1, q.r * q.s);
    if (parts > 1) barrier();
    const PlaneScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    fill_columns(s, scratch.columns);
    const Range units = share(q.n * q.c * s.bands, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t band = u % s.bands, plane = u / s.bands, c = plane % q.c;
      const T* unit_bias = bias ? bias + c * s.out_planes : memory.zeros;
      plane_band<T>(q, s, scratch, memory.weights + c * s.multiplier * q.r * q.s, unit_bias, bias ? 1 : 0,
                    in + plane * s.in_planes * s.rows.in * s.columns.in,
                    out + plane * s.out_planes * s.rows.out * s.columns.out, band);
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// channels_last forward and input gradient

// Channels are worked on in chunks: begin .. end - 1 of chunk i. The last takes what is left.
struct Chunks {
  int64_t size, count, total;
  Range range(int64_t i) const { return {i * size, i + 1 == count ? total : (i + 1) * size}; }
  int64_t longest() const { return total - (count - 1) * size; }
};
Chunks make_chunks(int64_t total, int64_t size) { return {size, maximum<int64_t>(1, total / size), total}; }

// The taps t for which 0 <= start + t * step < size.
Range valid_taps(int64_t start, int64_t step, int64_t taps, int64_t size) {
  Range range = {0, taps};
  while (range.begin < range.end && start + range.begin * step < 0) ++range.begin;
  while (range.begin < range.end && start + (range.end - 1) * step >= size) --range.end;
  return range;
}

struct PixelShape {
  Axis rows, columns;
  int64_t multiplier, passes;  // passes: inputs summed into one output channel
  int64_t channels, padded;    // of the output; `padded` to whole vectors
  StripPlan strips;
  Chunks chunks;
  bool packed;  // read from a copy whose channels match the output's, because the tensor's do not or are too few for a vector
  int64_t pixel_pitch, strips_per_phase;
};

template <class T>
PixelShape pixel_shape(const ConvProblem& q, bool forward) {
  constexpr int L = lanes<T>;
  PixelShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.multiplier = q.k / q.c;
  s.passes = forward ? 1 : s.multiplier;
  s.channels = forward ? q.k : q.c;
  s.padded = (s.channels + L - 1) / L * L;
  const int64_t count = s.rows.phase[0].count;
  s.strips = plan_strips(s.rows, count);
  s.strips_per_phase = s.strips.strips(count);
  s.packed = s.multiplier > 1 || s.channels < L;
  const int64_t line = 64 / int64_t(sizeof(T));
  const int64_t touched = s.strips.pointers(q.r) * q.s * int64_t(sizeof(T));
  s.chunks = make_chunks(s.channels, minimum<int64_t>(128, maximum<int64_t>(1, 16384 / touched / line)) * line);
  s.pixel_pitch = s.packed ? (s.chunks.longest() + L - 1) / L * L : s.channels;
  return s;
}

template <class T>
struct PixelMemory {
  T* weights;  // [pass][tap][padded]
  T* bias;
  T* zeros;  // a row of the input
  char* threads;
  int64_t thread_bytes, bytes;
};

template <class T>
struct PixelScratch {
  T* image;
  const T** rows;
  int64_t* columns;
  int64_t bytes;
  PixelScratch(const PixelShape& s, void* base) {
    Workspace memory(base);
    image = memory.take<T>(s.packed ? (s.rows.in * s.columns.in + 1) * s.pixel_pitch : 0);
    rows = memory.take<const T*>(s.strips.pointers(maximum<int64_t>(1, s.rows.kernel)));
    columns = memory.take<int64_t>(s.columns.kernel);
    bytes = memory.bytes();
  }
};

template <class T>
PixelMemory<T> pixel_memory(const ConvProblem& q, const PixelShape& s, void* base, int threads) {
  Workspace memory(base);
  PixelMemory<T> m;
  m.weights = memory.take<T>(s.passes * q.r * q.s * s.padded);
  m.bias = memory.take<T>(s.padded);
  m.zeros = memory.take<T>((s.columns.in + 1) * s.pixel_pitch);
  m.thread_bytes = PixelScratch<T>(s, nullptr).bytes;
  m.threads = memory.take<char>(m.thread_bytes * threads);
  m.bytes = memory.bytes();
  return m;
}

// One strip of rows of all the columns and the channels of one chunk. `in` is the first pixel of the image at that chunk.
template <class T>
void pixel_strip(const ConvProblem& q, const PixelShape& s, const PixelMemory<T>& memory, const PixelScratch<T>& scratch,
                 int64_t row_phase, int64_t index, Range chunk, int64_t pass, const T* in, T* out) {
  const AxisPhase& row = s.rows.phase[row_phase];
  Strip<T> strip;
  const int64_t first = s.strips.first(index);
  strip.count = s.strips.count(first, row.count);
  if (strip.count == 0) return;
  strip.rows = scratch.rows;
  strip.row_step = s.strips.row_step, strip.tap_step = s.strips.tap_step, strip.tap_rows = row.taps;
  strip.weight_pitch = s.padded;
  strip.bias = memory.bias + chunk.begin;
  strip.out_pitch = s.strips.out_step() * s.rows.out_step * s.columns.out * s.channels;
  strip.length = chunk.end - chunk.begin;
  strip.accumulate = pass > 0;
  if (row.taps)
    for (int64_t i = 0; i < s.strips.pointers(row.taps); ++i) {
      const int64_t h = row.start + first * s.rows.in_step + i * s.strips.spacing;
      scratch.rows[i] = h >= 0 && h < s.rows.in ? in + h * s.columns.in * s.pixel_pitch : memory.zeros;
    }
  for (int64_t t = 0; t < s.columns.kernel; ++t) scratch.columns[t] = t * s.columns.tap_step * s.pixel_pitch;
  const StripKernel<T> kernel = strip_kernel<T, true>(s.strips, row.taps);
  // Weights of the phases before this one.
  int64_t tap = 0;
  each_phase(s.rows, s.columns, [&](const AxisPhase& r, const AxisPhase& c, int64_t) {
    if (r.first < row.first) tap += r.taps * c.taps;
  });
  for (int64_t b = 0; b < s.columns.phases; ++b) {
    const AxisPhase& column = s.columns.phase[b];
    const int64_t taps = row.taps ? column.taps : 0;
    for (int64_t i = 0; i < column.count; ++i) {
      const int64_t start = column.start + i * s.columns.in_step;
      const Range valid = valid_taps(start, s.columns.tap_step, taps, s.columns.in);
      strip.columns = scratch.columns + valid.begin, strip.tap_columns = valid.end - valid.begin;
      strip.offset = start * s.pixel_pitch;
      strip.weights = memory.weights + (pass * q.r * q.s + tap + valid.begin * row.taps) * s.padded + chunk.begin;
      strip.out =
          out + ((row.first + first * s.rows.out_step) * s.columns.out + column.first + i * s.columns.out_step) * s.channels;
      kernel(strip);
    }
    tap += row.taps * column.taps;
  }
}

// image[pixel][i] = in[pixel][source channel of output channel chunk.begin + i], zeros up to the pitch.
template <class T>
void pack_image(const T* in, int64_t pixels, int64_t in_channels, int64_t multiple, int64_t plus, int64_t divisor, Range chunk,
                T* image, int64_t pitch) {
  for (int64_t p = 0; p < pixels; ++p, in += in_channels, image += pitch) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) image[i - chunk.begin] = in[(i * multiple + plus) / divisor];
    for (int64_t i = chunk.end - chunk.begin; i < pitch; ++i) image[i] = 0;
  }
}

template <class T>
void pixels(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace, int threads) {
  const PixelShape s = pixel_shape<T>(q, forward);
  const PixelMemory<T> memory = pixel_memory<T>(q, s, workspace, threads);
  const int64_t in_channels = forward ? q.c : q.k, taps = q.r * q.s;
  const int64_t in_image = s.rows.in * s.columns.in * in_channels, out_image = s.rows.out * s.columns.out * s.channels;
  for (int64_t i = 0; i < (s.columns.in + 1) * s.pixel_pitch; ++i) memory.zeros[i] = 0;
  for (int64_t i = 0; i < s.padded; ++i) memory.bias[i] = bias && i < s.channels ? bias[i] : T(0);
  for (int64_t pass = 0; pass < s.passes; ++pass)
    pack_weights<T>(q, s.rows, s.columns, w, 0, s.channels, s.passes, pass, memory.weights + pass * taps * s.padded, s.padded,
                    1);
  const int64_t strips = s.rows.phases * s.strips_per_phase;
  parallel(threads, [&](int id, int parts) {
    const PixelScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    if (!s.packed) {
      const Range units = share(q.n * strips * s.chunks.count, id, parts);
      for (int64_t u = units.begin; u < units.end; ++u) {
        const int64_t n = u / s.chunks.count / strips, strip = u / s.chunks.count % strips;
        const Range chunk = s.chunks.range(u % s.chunks.count);
        pixel_strip<T>(q, s, memory, scratch, strip / s.strips_per_phase, strip % s.strips_per_phase, chunk, 0,
                       in + n * in_image + chunk.begin, out + n * out_image + chunk.begin);
      }
      return;
    }
    const Range units = share(q.n * s.chunks.count, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t n = u / s.chunks.count;
      const Range chunk = s.chunks.range(u % s.chunks.count);
      for (int64_t pass = 0; pass < s.passes; ++pass) {
        pack_image<T>(in + n * in_image, s.rows.in * s.columns.in, in_channels, s.passes, pass, forward ? s.multiplier : 1,
                      chunk, scratch.image, s.pixel_pitch);
        for (int64_t strip = 0; strip < strips; ++strip)
          pixel_strip<T>(q, s, memory, scratch, strip / s.strips_per_phase, strip % s.strips_per_phase, chunk, pass,
                         scratch.image, out + n * out_image + chunk.begin);
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------
// Weight gradient

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

// Calls body(begin, end) over 0 .. count - 1 in pieces of at most `most`, as even as can be.
template <class Body>
void each_piece(int64_t begin, int64_t end, int64_t most, const Body& body) {
  const int64_t pieces = (end - begin + most - 1) / most;
  for (int64_t i = 0; i < pieces; ++i) {
    const Range piece = share(end - begin, int(i), int(pieces));
    body(begin + piece.begin, begin + piece.end);
  }
}

// Calls body(r0, r1, s0, s1) over the tiles of the taps r0 .. r1 - 1 by s0 .. s1 - 1.
template <class Body>
void each_tile(int64_t r0, int64_t r1, int64_t s0, int64_t s1, const Body& body) {
  each_piece(s0, s1, s1 - s0 <= tile_most_columns ? tile_most_columns : 4, [&](int64_t sa, int64_t sb) {
    each_piece(r0, r1, minimum<int64_t>(tile_most_rows, tile_sums / (sb - sa)),
               [&](int64_t ra, int64_t rb) { body(ra, rb, sa, sb); });
  });
}

// The reduction over the batch is cut into this many slices, added up in order at the end, where the channels alone would not
// keep many threads busy.
int64_t batch_slices(const ConvProblem& q, int64_t units) { return maximum<int64_t>(1, minimum(q.n, 64 / units)); }

template <class T>
T add_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes<T>; ++i) sum += v[i];
  return sum;
}

template <class T>
struct GradientMemory {
  T* partial;       // [slice][k][taps], in channels_last [slice][taps][padded k]
  T* partial_bias;  // [slice][padded k]
  char* threads;
  int64_t thread_bytes, bytes;
};

template <class T>
struct PlaneGradient {
  PlaneShape shape;
  int64_t taps, slices;
  explicit PlaneGradient(const ConvProblem& q)
      : shape(plane_shape<T>(q, true)), taps(q.r * q.s), slices(batch_slices(q, q.c)) {}
  struct Scratch {
    T* copy;
    T* sums;       // [multiplier][taps] vectors
    T* bias_sums;  // [multiplier] vectors
    int64_t* columns;
    int64_t bytes;
    Scratch(const PlaneGradient& g, void* base) {
      Workspace memory(base);
      const PlaneShape& s = g.shape;
      copy = memory.take<T>(s.copy_rows * s.row_pitch + 2 * lanes<T>);
      sums = memory.take<T>(s.multiplier * g.taps * lanes<T>);
      bias_sums = memory.take<T>(s.multiplier * lanes<T>);
      columns = memory.take<int64_t>(s.columns.kernel);
      bytes = memory.bytes();
    }
  };
  GradientMemory<T> memory(const ConvProblem& q, void* base, int threads) const {
    Workspace memory(base);
    GradientMemory<T> m;
    m.partial = memory.take<T>(slices * q.k * taps);
    m.partial_bias = memory.take<T>(slices * q.k);
    m.thread_bytes = Scratch(*this, nullptr).bytes;
    m.threads = memory.take<char>(m.thread_bytes * threads);
    m.bytes = memory.bytes();
    return m;
  }
};

template <class T>
void plane_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const PlaneGradient<T> g(q);
  const PlaneShape& s = g.shape;
  const GradientMemory<T> memory = g.memory(q, workspace, threads);
  parallel(threads, [&](int id, int parts) {
    const typename PlaneGradient<T>::Scratch scratch(g, memory.threads + id * memory.thread_bytes);
    fill_columns(s, scratch.columns);
    const Range units = share(g.slices * q.c, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / q.c, c = u % q.c;
      for (int64_t i = 0; i < s.multiplier * g.taps * L; ++i) scratch.sums[i] = 0;
      for (int64_t i = 0; i < s.multiplier * L; ++i) scratch.bias_sums[i] = 0;
      const Range batch = share(q.n, int(slice), int(g.slices));
      for (int64_t n = batch.begin; n < batch.end; ++n)
        for (int64_t band = 0; band < s.bands; ++band) {
          const int64_t begin = band * s.band, end = minimum(begin + s.band, q.p);
          copy_rows<T>(s, x + (n * q.c + c) * q.h * q.w, begin, end, scratch.copy);
          for (int64_t j = 0; j < s.multiplier; ++j) {
            const T* plane = gy + ((n * q.k + c * s.multiplier + j) * q.p + begin) * q.q;
            each_tile(0, q.r, 0, q.s, [&](int64_t r0, int64_t r1, int64_t s0, int64_t s1) {
              TapTile<T> tile;
              tile.gy = plane, tile.gy_row = q.q, tile.gy_step = L;
              tile.x = scratch.copy + r0 * q.dilation_h * s.row_pitch;
              tile.x_row = q.stride_h * s.row_pitch, tile.x_step = L, tile.x_tap_row = q.dilation_h * s.row_pitch;
              for (int64_t t = s0; t < s1; ++t) tile.x_tap_column[t - s0] = scratch.columns[t];
              tile.rows = end - begin, tile.count = q.q / L, tile.width = L, tile.tail = int(q.q % L);
              tile.sum = scratch.sums + (j * g.taps + r0 * q.s + s0) * L, tile.sum_row = q.s * L, tile.sum_step = L;
              tile_kernel<T>(r1 - r0, s1 - s0)(tile);
            });
            if (gb) {
              const int64_t count = (end - begin) * q.q;
              Vec<T> sum = load(scratch.bias_sums + j * L);
              for (int64_t i = 0; i < count; i += L)
                sum += i + L <= count ? load(plane + i) : load_first(plane + i, int(count - i));
              store<T>(scratch.bias_sums + j * L, sum);
            }
          }
        }
      for (int64_t j = 0; j < s.multiplier; ++j) {
        const int64_t k = slice * q.k + c * s.multiplier + j;
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
  int64_t multiplier, taps, padded, slices, band;
  Chunks chunks;
  explicit PixelGradient(const ConvProblem& q) {
    constexpr int L = lanes<T>;
    multiplier = q.k / q.c, taps = q.r * q.s, padded = (q.k + L - 1) / L * L;
    chunks = make_chunks(q.k, 64 / int64_t(sizeof(T)));
    slices = batch_slices(q, chunks.count);
    band = maximum<int64_t>(1, minimum(q.p, 64 / q.q));
  }
  struct Scratch {
    T* image;  // x with each channel repeated for the outputs it serves
    int64_t bytes;
    Scratch(const PixelGradient& g, const ConvProblem& q, void* base) {
      Workspace memory(base);
      image = memory.take<T>(g.multiplier > 1 ? q.h * q.w * g.chunks.longest() : 0);
      bytes = memory.bytes();
    }
  };
  GradientMemory<T> memory(const ConvProblem& q, void* base, int threads) const {
    Workspace memory(base);
    GradientMemory<T> m;
    m.partial = memory.take<T>(slices * taps * padded);
    m.partial_bias = memory.take<T>(slices * padded);
    m.thread_bytes = Scratch(*this, q, nullptr).bytes;
    m.threads = memory.take<char>(m.thread_bytes * threads);
    m.bytes = memory.bytes();
    return m;
  }
};

// Calls body(first, last + 1, taps) over runs of outputs, of at most `most`, that have the same valid taps.
template <class Body>
void each_run(const Axis& axis, int64_t most, const Body& body) {
  for (int64_t i = 0; i < axis.out;) {
    const Range taps = valid_taps(i * axis.in_step + axis.lowest, axis.tap_step, axis.kernel, axis.in);
    int64_t end = i + 1;
    for (; end < axis.out && end - i < most; ++end) {
      const Range next = valid_taps(end * axis.in_step + axis.lowest, axis.tap_step, axis.kernel, axis.in);
      if (next.begin != taps.begin || next.end != taps.end) break;
    }
    body(i, end, taps);
    i = end;
  }
}

template <class T>
void pixel_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
  constexpr int L = lanes<T>;
  const PixelGradient<T> g(q);
  const GradientMemory<T> memory = g.memory(q, workspace, threads);
  const Axis rows = row_axis(q, true), columns = column_axis(q, true);
  parallel(threads, [&](int id, int parts) {
    const typename PixelGradient<T>::Scratch scratch(g, q, memory.threads + id * memory.thread_bytes);
    const Range units = share(g.slices * g.chunks.count, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t slice = u / g.chunks.count;
      const Range chunk = g.chunks.range(u % g.chunks.count), batch = share(q.n, int(slice), int(g.slices));
      T* partial = memory.partial + slice * g.taps * g.padded + chunk.begin;
      T* partial_bias = memory.partial_bias + slice * g.padded + chunk.begin;
      const int64_t length = (chunk.end - chunk.begin + L - 1) / L * L;
      for (int64_t t = 0; t < g.taps; ++t)
        for (int64_t i = 0; i < length; i += L) store<T>(partial + t * g.padded + i, Vec<T>{});
      for (int64_t i = 0; i < length; i += L) store<T>(partial_bias + i, Vec<T>{});
      for (int64_t n = batch.begin; n < batch.end; ++n) {
        const T* image = x + n * q.h * q.w * q.c + chunk.begin;
        int64_t pitch = q.c;
        if (g.multiplier > 1) {
          pitch = g.chunks.longest();
          pack_image<T>(x + n * q.h * q.w * q.c, q.h * q.w, q.c, 1, 0, g.multiplier, chunk, scratch.image, pitch);
          image = scratch.image;
        }
        each_run(rows, g.band, [&](int64_t p0, int64_t p1, Range r) {
          each_run(columns, q.q, [&](int64_t q0, int64_t q1, Range s) {
            each_tile(r.begin, r.end, s.begin, s.end, [&](int64_t r0, int64_t r1, int64_t s0, int64_t s1) {
              TapTile<T> tile;
              const TileKernel<T> kernel = tile_kernel<T>(r1 - r0, s1 - s0);
              tile.gy_row = q.q * q.k, tile.gy_step = q.k;
              tile.x_row = q.stride_h * q.w * pitch, tile.x_step = q.stride_w * pitch;
              tile.x_tap_row = q.dilation_h * q.w * pitch;
              for (int64_t t = 0; t < s1 - s0; ++t) tile.x_tap_column[t] = t * q.dilation_w * pitch;
              tile.rows = p1 - p0, tile.count = q1 - q0, tile.tail = 0;
              tile.sum_row = q.s * g.padded, tile.sum_step = g.padded;
              const T* gy0 = gy + ((n * q.p + p0) * q.q + q0) * q.k + chunk.begin;
              const T* x0 = image + ((p0 * q.stride_h - q.pad_top + r0 * q.dilation_h) * q.w + q0 * q.stride_w - q.pad_left +
                                     s0 * q.dilation_w) *
                                        pitch;
              T* sum0 = partial + (r0 * q.s + s0) * g.padded;
              for (int64_t i = 0; i < chunk.end - chunk.begin; i += L) {
                tile.gy = gy0 + i, tile.x = x0 + i, tile.sum = sum0 + i;
                tile.width = int(minimum<int64_t>(L, chunk.end - chunk.begin - i));
                kernel(tile);
              }
            });
          });
          if (!gb) return;
          for (int64_t i = 0; i < chunk.end - chunk.begin; i += L) {
            const int width = int(minimum<int64_t>(L, chunk.end - chunk.begin - i));
            Vec<T> sum = load(partial_bias + i);
            const T* at = gy + (n * q.p + p0) * q.q * q.k + chunk.begin + i;
            for (int64_t p = 0; p < (p1 - p0) * q.q; ++p, at += q.k) sum += width == L ? load(at) : load_first(at, width);
            store<T>(partial_bias + i, sum);
          }
        });
      }
    }
    if (parts > 1) barrier();
    const Range ks = share(q.k, id, parts);
    for (int64_t k = ks.begin; k < ks.end; ++k) {
      for (int64_t t = 0; t < g.taps; ++t) {
        T sum = 0;
        for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial[(i * g.taps + t) * g.padded + k];
        gw[k * g.taps + t] = sum;
      }
      if (!gb) continue;
      T sum = 0;
      for (int64_t i = 0; i < g.slices; ++i) sum += memory.partial_bias[i * g.padded + k];
      gb[k] = sum;
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------------

template <class T>
int64_t workspace_of(const ConvProblem& q, Primitive primitive, int threads) {
  const bool last = q.layout == Layout::channels_last;
  if (primitive == Primitive::weight_gradient)
    return last ? PixelGradient<T>(q).memory(q, nullptr, threads).bytes : PlaneGradient<T>(q).memory(q, nullptr, threads).bytes;
  const bool forward = primitive == Primitive::forward;
  return last ? pixel_memory<T>(q, pixel_shape<T>(q, forward), nullptr, threads).bytes
              : plane_memory<T>(q, plane_shape<T>(q, forward), nullptr, threads).bytes;
}

template <class T>
void run_of(const ConvProblem& q, Primitive primitive, const ConvArgs& a) {
  const bool last = q.layout == Layout::channels_last;
  auto in = [](const void* p) { return static_cast<const T*>(p); };
  auto out = [](void* p) { return static_cast<T*>(p); };
  if (primitive == Primitive::weight_gradient)
    return (last ? pixel_gradient<T> : plane_gradient<T>)(q, in(a.gy), in(a.x), out(a.gw), out(a.gb), a.workspace, a.threads);
  const bool forward = primitive == Primitive::forward;
  (last ? pixels<T> : planes<T>)(q, forward, in(forward ? a.x : a.gy), in(a.w), in(a.b), out(forward ? a.y : a.gx), a.workspace,
                                 a.threads);
}

template <Primitive PRIMITIVE>
int64_t workspace_bytes(const ConvProblem& q, int threads) {
  return q.dtype == Dtype::float64 ? workspace_of<double>(q, PRIMITIVE, threads) : workspace_of<float>(q, PRIMITIVE, threads);
}

template <Primitive PRIMITIVE>
void run(const ConvProblem& q, const ConvArgs& a) {
  q.dtype == Dtype::float64 ? run_of<double>(q, PRIMITIVE, a) : run_of<float>(q, PRIMITIVE, a);
}

template <Primitive PRIMITIVE>
constexpr ConvAlgorithm algorithm = {"depthwise",   PRIMITIVE, applies<PRIMITIVE>, preferred, workspace_bytes<PRIMITIVE>,
                                     run<PRIMITIVE>};

}  // namespace

const ConvAlgorithm depthwise_forward = algorithm<Primitive::forward>;
const ConvAlgorithm depthwise_input_gradient = algorithm<Primitive::input_gradient>;
const ConvAlgorithm depthwise_weight_gradient = algorithm<Primitive::weight_gradient>;

}  // namespace fastconv::cpu::FASTCONV_ISA
