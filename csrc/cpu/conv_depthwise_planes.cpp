// Depthwise convolution in NCHW: forward and input gradient. A vector lies along the width.
//
// A plane, or a band of one that fits in the first-level cache, is copied with zeros around it; there no tap needs a mask. The
// kernel computes strips of output rows in registers, a vector wide: each input is loaded once for all the rows it serves.
#include "conv_depthwise_planes.h"
#include "parallel.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class T>
struct Strip {
  const T* in;                           // the first input row of the strip
  int64_t pitch;                         // from one input row that matters to the next
  int64_t row_step, tap_step, tap_rows;  // in such rows: output row j reads row j * row_step + r * tap_step through tap row r
  const int64_t* columns;                // where each tap column begins in a row
  int64_t tap_columns;
  const T* weights;  // [tap column][tap row]
  const T* bias;     // null: add to what is there
  T* out;
  int64_t out_pitch, count, length;  // `count` rows of `length` elements
};

// Calls body(first element, lanes to store) over the vectors of a row. The last one moves back to end with the row; where that
// cannot be (short row, or elements would be added twice) it is partial.
template <class T, class Body>
inline __attribute__((always_inline)) void each_vector(int64_t length, bool overlap, const Body& body) {
  constexpr int L = lanes<T>;
  int64_t v = 0;
  for (; v + L <= length; v += L) body(v, L);
  if (v == length) return;
  if (overlap && length >= L)
    body(length - L, L);
  else
    body(v, int(length - v));
}

template <class T, int ROWS>
inline __attribute__((always_inline)) void begin_strip(const Strip<T>& s, int64_t v, int width, Vec<T> (&sum)[ROWS]) {
  const Vec<T> bias = s.bias ? splat(*s.bias) : Vec<T>{};
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; ++j) sum[j] = bias;
  if (s.bias) return;
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; ++j)
    if (j < s.count) sum[j] = load_first(s.out + v + j * s.out_pitch, width);
}

template <class T, int ROWS>
inline __attribute__((always_inline)) void finish_strip(const Strip<T>& s, int64_t v, int width, Vec<T> (&sum)[ROWS]) {
  T* out = s.out + v;
  if (s.count == ROWS && width == lanes<T>) {
#pragma GCC unroll 8
    for (int j = 0; j < ROWS; ++j) store<T>(out + j * s.out_pitch, sum[j]);
    return;
  }
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; ++j)
    if (j < s.count) store_first(out + j * s.out_pitch, sum[j], width);
}

// TAPS tap rows, STRIDE input rows from one output row to the next, all known here: every input is loaded once.
template <class T, int ROWS, int TAPS, int STRIDE>
__attribute__((noinline)) void strip(const Strip<T>& strip) {
  const Strip<T> s = strip;  // whose members no store can change
  each_vector<T>(s.length, s.bias, [&](int64_t v, int width) __attribute__((always_inline)) {
    Vec<T> sum[ROWS];
    begin_strip<T>(s, v, width, sum);
    const T* weights = s.weights;
#pragma GCC unroll 1
    for (int64_t c = 0; c < s.tap_columns; ++c) {
      const T* row = s.in + s.columns[c] + v;
      Vec<T> weight[TAPS];
#pragma GCC unroll 8
      for (int r = 0; r < TAPS; ++r) weight[r] = splat(weights[r]);
      weights += TAPS;
#pragma GCC unroll 32
      for (int i = 0; i < (ROWS - 1) * STRIDE + TAPS; ++i) {
        const Vec<T> x = load(row + i * s.pitch);
#pragma GCC unroll 8
        for (int r = TAPS - 1; r >= 0; --r)
          if (i >= r && (i - r) % STRIDE == 0 && (i - r) / STRIDE < ROWS)
            sum[(i - r) / STRIDE] = fma(weight[r], x, sum[(i - r) / STRIDE]);
      }
    }
    finish_strip<T>(s, v, width, sum);
  });
}

// Any number of tap rows at any distance.
template <class T, int ROWS>
__attribute__((noinline)) void strip_any(const Strip<T>& strip) {
  const Strip<T> s = strip;
  each_vector<T>(s.length, s.bias, [&](int64_t v, int width) __attribute__((always_inline)) {
    Vec<T> sum[ROWS];
    begin_strip<T>(s, v, width, sum);
    const T* weights = s.weights;
    for (int64_t c = 0; c < s.tap_columns; ++c) {
      const T* row = s.in + s.columns[c] + v;
      for (int64_t r = 0; r < s.tap_rows; ++r, row += s.tap_step * s.pitch) {
        const Vec<T> weight = splat(*weights++);
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j) sum[j] = fma(weight, load(row + j * s.row_step * s.pitch), sum[j]);
      }
    }
    finish_strip<T>(s, v, width, sum);
  });
}

template <class T>
using StripKernel = void (*)(const Strip<T>&);

template <class T, int ROWS>
StripKernel<T> strip_kernel(int64_t taps, int64_t row_step, int64_t tap_step) {
  if (tap_step == 1 && row_step == 1) {
    if (taps == 2) return strip<T, ROWS, 2, 1>;
    if (taps == 3) return strip<T, ROWS, 3, 1>;
    if (taps == 5) return strip<T, ROWS, 5, 1>;
    if (taps == 7) return strip<T, ROWS, 7, 1>;
  }
  if (tap_step == 1 && row_step == 2) {
    if (taps == 3) return strip<T, ROWS, 3, 2>;
    if (taps == 5) return strip<T, ROWS, 5, 2>;
    if (taps == 7) return strip<T, ROWS, 7, 2>;
  }
  return strip_any<T, ROWS>;
}

template <class T>
StripKernel<T> strip_kernel(const StripPlan& plan, int64_t taps) {
  if (plan.rows == 4) return strip_any<T, 4>;
  if (plan.rows == 7) return strip_kernel<T, 7>(taps, plan.row_step, plan.tap_step);
  return strip_kernel<T, 8>(taps, plan.row_step, plan.tap_step);
}

struct PlaneShape {
  PaddedPlane padded;
  int64_t multiplier, in_planes, out_planes;  // planes read and written per channel of x: 1 and the multiplier, or the reverse
  StripPlan strips;
  int64_t copy_rows;
  int64_t stage_pitch;  // of the rows of a column phase: they are put together into rows of the output
  int64_t out_bytes;
  bool may_pass;  // the caches: a band's outputs follow each other in memory, and are many
};

template <class T>
PlaneShape plane_shape(const ConvProblem& q, bool forward) {
  constexpr int L = lanes<T>;
  PlaneShape s;
  s.multiplier = q.k / q.c;
  s.in_planes = forward ? 1 : s.multiplier, s.out_planes = forward ? s.multiplier : 1;
  const Axis columns = column_axis(q, forward);
  s.padded = padded_plane<T>(row_axis(q, forward), columns, s.in_planes, maximum<int64_t>(columns.phase[0].count, L));
  const PaddedPlane& p = s.padded;
  s.strips = plan_strips(p.rows, p.band);
  s.strips.rows = strip_rows(s.strips, p.band);
  // The last strip of a band may be computed beyond the band. Those rows are not stored, but they are read.
  const int64_t last = s.strips.first(s.strips.strips(p.band) - 1);
  s.copy_rows = maximum(p.rows.reach(p.band),
                        last * p.rows.in_step + p.rows.extent - 1 + (s.strips.inputs(1) - 1) * s.strips.spacing + 1);
  s.out_bytes = q.n * q.c * s.out_planes * p.rows.out * p.columns.out * int64_t(sizeof(T));
  s.may_pass = p.rows.phases == 1 && p.columns.phases == 1 && outgrows_caches(s.out_bytes);
  s.stage_pitch = p.columns.phases > 1 ? (p.columns.phase[0].count + L - 1) / L * L : 0;
  return s;
}

template <class T>
struct PlaneScratch {
  T* copy;
  T* stage;
  int64_t* columns;
  int64_t bytes;
  PlaneScratch(const PlaneShape& s, void* base) {
    Workspace memory(base);
    const PaddedPlane& p = s.padded;
    copy = memory.take<T>(s.in_planes * s.copy_rows * p.row_pitch + 2 * lanes<T>);
    stage = memory.take<T>(p.columns.phases > 1 ? p.band * p.columns.phases * s.stage_pitch
                           : s.may_pass         ? p.band * p.columns.out
                                                : 0);
    columns = memory.take<int64_t>(p.columns.kernel);
    bytes = memory.bytes();
  }
};

template <class T>
struct PlaneMemory {
  T* weights;
  char* threads;
  int64_t thread_bytes, bytes;
  PlaneMemory(const ConvProblem& q, const PlaneShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(q.k * q.r * q.s);
    thread_bytes = PlaneScratch<T>(s, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

// One band of the planes of one channel of x.
template <class T>
void plane_band(const ConvProblem& q, const PlaneShape& s, const PlaneScratch<T>& scratch, const T* weights, const T* bias,
                const T* in, const T* next, T* out, bool past, int64_t band) {
  const PaddedPlane& p = s.padded;
  const int64_t begin = band * p.band, band_end = minimum(begin + p.band, p.rows.phase[0].count);
  const int64_t copy_plane = s.copy_rows * p.row_pitch, in_plane = p.rows.in * p.columns.in;
  for (int64_t j = 0; j < s.in_planes; ++j) copy_band<T>(p, in + j * in_plane, begin, band_end, scratch.copy + j * copy_plane);
  Prefetch<T> prefetch(next, s.in_planes * in_plane / Prefetch<T>::line + 1, Prefetch<T>::line,
                       s.strips.strips(p.band) * p.rows.phases * p.columns.phases * s.multiplier);
  int64_t tap = 0;
  for (int64_t a = 0; a < p.rows.phases; ++a) {
    const AxisPhase& row = p.rows.phase[a];
    const int64_t end = minimum(band_end, row.count);
    const int64_t strips = s.strips.strips(end - begin);
    const StripKernel<T> kernel = strip_kernel<T>(s.strips, row.taps);
    int64_t column_tap = tap;
    for (int64_t k = 0; k < s.out_planes; ++k) {
      column_tap = tap;
      const int64_t* tap_columns = scratch.columns;
      T* plane = out + k * p.rows.out * p.columns.out;
      for (int64_t b = 0; b < p.columns.phases; ++b) {
        const AxisPhase& column = p.columns.phase[b];
        for (int64_t j = 0; j < s.in_planes; ++j) {
          const T zero = 0;
          Strip<T> strip;
          strip.pitch = s.strips.spacing * p.row_pitch;
          strip.row_step = s.strips.row_step, strip.tap_step = s.strips.tap_step, strip.tap_rows = row.taps;
          strip.columns = tap_columns, strip.tap_columns = row.taps ? column.taps : 0;
          strip.weights = weights + (k + j) * q.r * q.s + column_tap;
          strip.bias = j > 0 ? nullptr : bias ? bias + k : &zero;
          strip.length = column.count;
          for (int64_t n = 0; n < strips; ++n) {
            const int64_t first = begin + s.strips.first(n);
            strip.count = s.strips.count(first, end);
            if (strip.count == 0) continue;
            const int64_t top = row.taps ? row.start - p.rows.lowest + (first - begin) * p.rows.in_step : 0;
            strip.in = scratch.copy + j * copy_plane + top * p.row_pitch;
            if (past) {
              strip.out = scratch.stage + (first - begin) * p.columns.out;
              strip.out_pitch = s.strips.out_step() * p.columns.out;
            } else if (p.columns.phases == 1) {
              strip.out = plane + (row.first + first * p.rows.out_step) * p.columns.out;
              strip.out_pitch = s.strips.out_step() * p.rows.out_step * p.columns.out;
            } else {
              strip.out = scratch.stage + ((first - begin) * p.columns.phases + b) * s.stage_pitch;
              strip.out_pitch = s.strips.out_step() * p.columns.phases * s.stage_pitch;
            }
            kernel(strip);
            prefetch.step();
          }
        }
        column_tap += row.taps * column.taps;
        tap_columns += column.taps;
      }
      if (past) stream(scratch.stage, plane + begin * p.columns.out, (end - begin) * p.columns.out);
      if (p.columns.phases > 1)
        for (int64_t i = begin; i < end; ++i)
          interleave_row<T>(scratch.stage + (i - begin) * p.columns.phases * s.stage_pitch, s.stage_pitch, p.columns.out_step,
                            plane + (row.first + i * p.rows.out_step) * p.columns.out, p.columns.out);
    }
    tap = column_tap;
  }
}

}  // namespace

template <class T>
int64_t depthwise_planes_bytes(const ConvProblem& q, bool forward, int threads) {
  return PlaneMemory<T>(q, plane_shape<T>(q, forward), nullptr, threads).bytes;
}

template <class T>
void depthwise_planes(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                      int threads) {
  const PlaneShape s = plane_shape<T>(q, forward);
  const PaddedPlane& p = s.padded;
  const PlaneMemory<T> memory(q, s, workspace, threads);
  const int64_t taps = q.r * q.s;
  const bool past = s.may_pass && past_caches(out, s.out_bytes);
  parallel(threads, [&](int id, int parts) {
    const Range ks = share(q.k, id, parts);
    for (int64_t k = ks.begin; k < ks.end; ++k)
      each_tap<false>(q, p.rows, p.columns,
                      [&](int64_t tap, int64_t from) { memory.weights[k * taps + tap] = w[k * taps + from]; });
    if (parts > 1) barrier();
    const PlaneScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    fill_columns(p, scratch.columns);
    const int64_t in_unit = s.in_planes * p.rows.in * p.columns.in, out_unit = s.out_planes * p.rows.out * p.columns.out;
    const Range units = share(q.n * q.c * p.bands, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t unit = u / p.bands, c = unit % q.c;
      const T* next = p.bands == 1 && u + 1 < units.end ? in + (unit + 1) * in_unit : nullptr;
      plane_band<T>(q, s, scratch, memory.weights + c * s.multiplier * taps, bias ? bias + c * s.out_planes : nullptr,
                    in + unit * in_unit, next, out + unit * out_unit, past, u % p.bands);
    }
    if (past) end_stream();
  });
}

template int64_t depthwise_planes_bytes<float>(const ConvProblem&, bool, int);
template int64_t depthwise_planes_bytes<double>(const ConvProblem&, bool, int);
template void depthwise_planes<float>(const ConvProblem&, bool, const float*, const float*, const float*, float*, void*, int);
template void depthwise_planes<double>(const ConvProblem&, bool, const double*, const double*, const double*, double*, void*,
                                       int);

}  // namespace fastconv::cpu::FASTCONV_ISA
