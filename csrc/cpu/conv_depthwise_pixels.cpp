// Depthwise convolution in channels_last: forward and input gradient. A vector lies along the channels.
//
// The kernel computes a column of output rows in registers: each input is loaded once for all the rows it serves. Rows beyond
// the image are a row of zeros, columns beyond it are left out.
#include "conv_depthwise.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// A strip of output rows, of a chunk of channels.
template <class T>
struct PixelStrip {
  const T* const* rows;              // the input rows of the strip, at the first of the channels
  int64_t row_step, row_tap_step;    // of them, from one output row, and tap row, to the next
  int64_t pitch, columns;            // from one input pixel to the next; those outside columns 0 .. columns - 1 are left out
  int64_t first, in_step, tap_step;  // input column of the first output; from one output, and tap, to the next
  int64_t tap_rows, tap_columns;
  const T* weights;  // [vector][tap column][tap row] vectors, `weight_pitch` from one vector of channels to the next
  int64_t weight_pitch;
  const T* bias;                    // [vector]
  int64_t vectors, last;            // the last vector begins at channel `last`
  int width;                        // and has so many lanes to store
  T* out;                           // the first output of the strip
  int64_t out_row, out_step, outs;  // from an output row, and column, to the next; output columns
  int64_t count;                    // output rows to store
  bool accumulate;                  // add to what is there instead of to the bias
};

constexpr int fetched_pixels = 4;  // so far ahead inputs and outputs are fetched

// With TAPS = 0 the tap rows are any number at any distance.
template <class T, int ROWS, int TAPS, int STRIDE>
__attribute__((noinline)) void pixel_strip(const PixelStrip<T>& strip) {
  constexpr int L = lanes<T>;
  const PixelStrip<T> t = strip;  // whose members no store can change
  for (int64_t i = 0; i < t.outs; ++i)
    for (int64_t v = 0; v < t.vectors; ++v) {
      const int64_t channel = v + 1 < t.vectors ? v * L : t.last;
      const int width = v + 1 < t.vectors ? L : t.width;
      T* out = t.out + channel + i * t.out_step;
      const Vec<T> bias = load(t.bias + v * L);
      Vec<T> sum[ROWS];
#pragma GCC unroll 8
      for (int j = 0; j < ROWS; ++j) sum[j] = bias;
      if (t.accumulate)
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j)
          if (j < t.count) sum[j] = load_first(out + j * t.out_row, width);
      if (TAPS > 0 && v * L % (64 / int64_t(sizeof(T))) == 0) {
        const int64_t ahead = channel + (t.first + i * t.in_step + fetched_pixels * t.in_step) * t.pitch;
#pragma GCC unroll 32
        for (int k = 0; k < (ROWS - 1) * STRIDE + TAPS; ++k) __builtin_prefetch(t.rows[k] + ahead);
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j) __builtin_prefetch(out + j * t.out_row + fetched_pixels * t.out_step, 1);
      }
      const T* weights = t.weights + v * t.weight_pitch;
      int64_t from = t.first + i * t.in_step;
      for (int64_t s = 0; s < t.tap_columns; ++s, from += t.tap_step, weights += t.tap_rows * L) {
        if (uint64_t(from) >= uint64_t(t.columns)) continue;
        const int64_t at = channel + from * t.pitch;
        if constexpr (TAPS > 0) {
          Vec<T> weight[TAPS];
#pragma GCC unroll 8
          for (int r = 0; r < TAPS; ++r) weight[r] = load(weights + r * L);
#pragma GCC unroll 32
          for (int k = 0; k < (ROWS - 1) * STRIDE + TAPS; ++k) {
            const Vec<T> x = load(t.rows[k] + at);
#pragma GCC unroll 8
            for (int r = TAPS - 1; r >= 0; --r)
              if (k >= r && (k - r) % STRIDE == 0 && (k - r) / STRIDE < ROWS)
                sum[(k - r) / STRIDE] = fma(weight[r], x, sum[(k - r) / STRIDE]);
          }
        } else {
          for (int64_t r = 0; r < t.tap_rows; ++r) {
            const T* const* row = t.rows + r * t.row_tap_step;
#pragma GCC unroll 8
            for (int j = 0; j < ROWS; ++j, row += t.row_step) sum[j] = fma(load(weights + r * L), load(*row + at), sum[j]);
          }
        }
      }
      if (t.count == ROWS && width == L) {
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j) store<T>(out + j * t.out_row, sum[j]);
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j)
          if (j < t.count) store_first(out + j * t.out_row, sum[j], width);
      }
    }
}

template <class T>
using PixelKernel = void (*)(const PixelStrip<T>&);

template <class T, int ROWS>
PixelKernel<T> pixel_kernel(const StripPlan& plan, int64_t taps) {
  if (plan.tap_step == 1 && plan.row_step == 1) {
    if (taps == 2) return pixel_strip<T, ROWS, 2, 1>;
    if (taps == 3) return pixel_strip<T, ROWS, 3, 1>;
    if (taps == 5) return pixel_strip<T, ROWS, 5, 1>;
    if (taps == 7) return pixel_strip<T, ROWS, 7, 1>;
  }
  if (plan.tap_step == 1 && plan.row_step == 2) {
    if (taps == 3) return pixel_strip<T, ROWS, 3, 2>;
    if (taps == 5) return pixel_strip<T, ROWS, 5, 2>;
    if (taps == 7) return pixel_strip<T, ROWS, 7, 2>;
  }
  return pixel_strip<T, ROWS, 0, 0>;
}
template <class T>
PixelKernel<T> pixel_kernel(const StripPlan& plan, int64_t taps) {
  return plan.rows == 4   ? pixel_strip<T, 4, 0, 0>
         : plan.rows == 7 ? pixel_kernel<T, 7>(plan, taps)
                          : pixel_kernel<T, 8>(plan, taps);
}

struct PixelShape {
  Axis rows, columns;
  int64_t multiplier, passes;  // passes: inputs summed into one output channel
  int64_t channels, vectors;   // of the output
  StripPlan strips;
  int64_t strips_per_phase;
  bool packed;  // read from a copy whose channels match the output's, because the tensor's do not or are too few for a vector
  int64_t chunk, chunks;  // vectors of channels worked on together
  int64_t pitch;          // of an input pixel
  int64_t taps;
  // Where a vector of channels begins. The last one of several moves back to end with the channels.
  template <class T>
  int64_t begin(int64_t vector) const {
    return packed ? vector * lanes<T> : minimum(vector * lanes<T>, channels - lanes<T>);
  }
};

template <class T>
PixelShape pixel_shape(const ConvProblem& q, bool forward) {
  constexpr int L = lanes<T>;
  PixelShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.multiplier = q.k / q.c;
  s.passes = forward ? 1 : s.multiplier;
  s.channels = forward ? q.k : q.c;
  s.vectors = (s.channels + L - 1) / L;
  s.packed = s.multiplier > 1 || s.channels < L;
  s.chunk = s.packed ? 128 / vector_bytes : 512 / vector_bytes;
  s.chunks = (s.vectors + s.chunk - 1) / s.chunk;
  s.pitch = s.packed ? minimum(s.chunk, s.vectors) * L : s.channels;
  s.taps = q.r * q.s;
  const int64_t count = s.rows.phase[0].count;
  s.strips = plan_strips(s.rows, count);
  s.strips.rows = strip_rows(s.strips, count);
  s.strips_per_phase = s.strips.strips(count);
  return s;
}

template <class T>
struct PixelScratch {
  T* image;
  const T** rows;
  int64_t bytes;
  PixelScratch(const PixelShape& s, void* base) {
    Workspace memory(base);
    image = memory.take<T>(s.packed ? s.rows.in * s.columns.in * s.pitch : 0);
    rows = memory.take<const T*>(s.strips.inputs(maximum<int64_t>(1, s.rows.kernel)));
    bytes = memory.bytes();
  }
};

template <class T>
struct PixelMemory {
  T* weights;  // [pass][vector][tap] vectors
  T* bias;     // [vector]
  T* zeros;    // a row of the input
  char* threads;
  int64_t thread_bytes, bytes;
  PixelMemory(const PixelShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(s.passes * s.vectors * s.taps * lanes<T>);
    bias = memory.take<T>(s.vectors * lanes<T>);
    zeros = memory.take<T>(s.columns.in * s.pitch);
    thread_bytes = PixelScratch<T>(s, nullptr).bytes;
    threads = memory.take<char>(thread_bytes * count);
    bytes = memory.bytes();
  }
};

// Weights and bias of one vector of channels.
template <class T>
void pack_vector(const ConvProblem& q, const PixelShape& s, const T* w, const T* bias, int64_t vector,
                 const PixelMemory<T>& memory) {
  constexpr int L = lanes<T>;
  const int64_t begin = s.begin<T>(vector), width = minimum<int64_t>(L, s.channels - begin);
  for (int64_t i = 0; i < L; ++i) memory.bias[vector * L + i] = bias && i < width ? bias[begin + i] : T(0);
  for (int64_t pass = 0; pass < s.passes; ++pass) {
    T* to = memory.weights + (pass * s.vectors + vector) * s.taps * L;
    each_tap(q, s.rows, s.columns, [&](int64_t tap, int64_t from) {
      for (int64_t i = 0; i < L; ++i) to[tap * L + i] = i < width ? w[((begin + i) * s.passes + pass) * s.taps + from] : T(0);
    });
  }
}

// All columns of one strip of rows, and the channels of one chunk. `in` and `out` are the image's first pixels; in a packed
// image the chunk's channels come first.
template <class T>
void compute_strip(const PixelShape& s, const PixelMemory<T>& memory, const PixelScratch<T>& scratch, int64_t row_phase,
                   int64_t index, int64_t chunk, int64_t pass, const T* in, T* out) {
  constexpr int L = lanes<T>;
  const AxisPhase& row = s.rows.phase[row_phase];
  const int64_t first = s.strips.first(index), vector = chunk * s.chunk, channel = s.begin<T>(vector);
  PixelStrip<T> strip;
  strip.count = s.strips.count(first, row.count);
  if (strip.count == 0) return;
  for (int64_t i = 0; row.taps && i < s.strips.inputs(row.taps); ++i) {
    const int64_t h = row.start + first * s.rows.in_step + i * s.strips.spacing;
    scratch.rows[i] = h >= 0 && h < s.rows.in ? in + h * s.columns.in * s.pitch + (s.packed ? 0 : channel) : memory.zeros;
  }
  strip.rows = scratch.rows, strip.row_step = s.strips.row_step, strip.row_tap_step = s.strips.tap_step;
  strip.pitch = s.pitch, strip.columns = s.columns.in;
  strip.in_step = s.columns.in_step, strip.tap_step = s.columns.tap_step, strip.tap_rows = row.taps;
  strip.weight_pitch = s.taps * L, strip.bias = memory.bias + vector * L;
  strip.vectors = minimum(s.chunk, s.vectors - vector);
  strip.last = s.begin<T>(vector + strip.vectors - 1) - channel;
  strip.width = int(minimum<int64_t>(L, s.channels - channel - strip.last));
  strip.out_row = s.strips.out_step() * s.rows.out_step * s.columns.out * s.channels;
  strip.out_step = s.columns.out_step * s.channels;
  strip.accumulate = pass > 0;
  each_phase(s.rows, s.columns, [&](const AxisPhase& phase, const AxisPhase& column, int64_t tap) {
    if (phase.first != row.first) return;
    strip.weights = memory.weights + ((pass * s.vectors + vector) * s.taps + tap) * L;
    strip.first = column.start, strip.outs = column.count, strip.tap_columns = row.taps ? column.taps : 0;
    strip.out = out + ((row.first + first * s.rows.out_step) * s.columns.out + column.first) * s.channels + channel;
    pixel_kernel<T>(s.strips, row.taps)(strip);
  });
}

}  // namespace

template <class T>
int64_t depthwise_pixels_bytes(const ConvProblem& q, bool forward, int threads) {
  return PixelMemory<T>(pixel_shape<T>(q, forward), nullptr, threads).bytes;
}

template <class T>
void depthwise_pixels(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                      int threads) {
  const PixelShape s = pixel_shape<T>(q, forward);
  const PixelMemory<T> memory(s, workspace, threads);
  const int64_t in_channels = forward ? q.c : q.k, in_pixels = s.rows.in * s.columns.in;
  const int64_t in_image = in_pixels * in_channels, out_image = s.rows.out * s.columns.out * s.channels;
  const int64_t strips = s.rows.phases * s.strips_per_phase;
  parallel(threads, [&](int id, int parts) {
    const PixelScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    const Range vectors = share(s.vectors, id, parts), zeros = share(s.columns.in * s.pitch, id, parts);
    for (int64_t v = vectors.begin; v < vectors.end; ++v) pack_vector<T>(q, s, w, bias, v, memory);
    for (int64_t i = zeros.begin; i < zeros.end; ++i) memory.zeros[i] = 0;
    if (parts > 1) barrier();
    auto strip = [&](int64_t index, int64_t chunk, int64_t pass, const T* image, T* to) {
      compute_strip<T>(s, memory, scratch, index / s.strips_per_phase, index % s.strips_per_phase, chunk, pass, image, to);
    };
    if (!s.packed) {
      const Range units = share(q.n * strips * s.chunks, id, parts);
      for (int64_t u = units.begin; u < units.end; ++u) {
        const int64_t n = u / s.chunks / strips;
        strip(u / s.chunks % strips, u % s.chunks, 0, in + n * in_image, out + n * out_image);
      }
      return;
    }
    const Range units = share(q.n * s.chunks, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t n = u / s.chunks, begin = u % s.chunks * s.pitch;
      for (int64_t pass = 0; pass < s.passes; ++pass) {
        pack_image<T>(in + n * in_image, in_pixels, in_channels, s.passes, pass, forward ? s.multiplier : 1, begin,
                      minimum(begin + s.pitch, s.channels), scratch.image, s.pitch);
        for (int64_t i = 0; i < strips; ++i) strip(i, u % s.chunks, pass, scratch.image, out + n * out_image);
      }
    }
  });
}

template int64_t depthwise_pixels_bytes<float>(const ConvProblem&, bool, int);
template int64_t depthwise_pixels_bytes<double>(const ConvProblem&, bool, int);
template void depthwise_pixels<float>(const ConvProblem&, bool, const float*, const float*, const float*, float*, void*, int);
template void depthwise_pixels<double>(const ConvProblem&, bool, const double*, const double*, const double*, double*, void*,
                                       int);

}  // namespace fastconv::cpu::FASTCONV_ISA
