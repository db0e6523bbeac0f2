// Depthwise convolution in channels_last: forward and input gradient. A vector lies along the channels.
//
// The kernel computes a strip of output pixels of one row in registers: each input is loaded once for all the pixels it serves.
// Rows beyond the image are left out, columns beyond it are a pixel of zeros. Strip by strip and row by row, all channels of
// each: so the input, but for rows that were read before, and the output are gone through from the first byte to the last.
#include "conv_depthwise.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Strips of output pixels of one row, and a chunk of channels.
template <class T>
struct PixelStrips {
  int64_t strips, in_advance;  // so many; from the inputs of one to those of the next
  const T* const* in;          // [tap row][input pixel of the first strip]
  int64_t inputs, channel;     // pixels of a tap row; the first of the channels in each of them
  int64_t step, tap_step;      // output j reads input j * step + s * tap_step through tap column s
  int64_t tap_rows, tap_columns;
  const T* weights;  // [vector][tap row][tap column] vectors, `weight_pitch` from one vector of channels to the next
  int64_t weight_pitch;
  const T* bias;                  // [vector]
  int64_t vectors, last;          // the last vector begins at channel `last` of these
  int width;                      // and has so many lanes to store
  T* out;                         // the first output
  int64_t out_step, count;        // from one output to the next; outputs of a strip to store
  bool accumulate;                // add to what is there instead of to the bias
  const T *next_in, *next_out;    // what a later strip reads and writes, this chunk's share of it: fetched
  int64_t next_rows, next_pitch;  // rows of inputs
};

// With TAPS = 0 the tap columns are any number at any distance.
template <class T, int OUTS, int TAPS, int STRIDE>
__attribute__((noinline)) void pixel_strips(const PixelStrips<T>& strips) {
  constexpr int L = lanes<T>;
  constexpr int inputs = (OUTS - 1) * STRIDE + TAPS;
  const PixelStrips<T> t = strips;  // whose members no store can change
  int64_t in_at = t.channel, out_at = 0, in_next = 0;
  for (int64_t strip = 0; strip < t.strips;
       ++strip, in_at += t.in_advance, in_next += t.in_advance, out_at += OUTS * t.out_step)
    for (int64_t v = 0; v < t.vectors; ++v) {
      const int64_t begin = v + 1 < t.vectors ? v * L : t.last;
      const int width = v + 1 < t.vectors ? L : t.width;
      T* out = t.out + out_at + begin;
      const Vec<T> bias = load(t.bias + v * L);
      Vec<T> sum[OUTS];
#pragma GCC unroll 8
      for (int j = 0; j < OUTS; ++j) sum[j] = bias;
      if (t.accumulate)
#pragma GCC unroll 8
        for (int j = 0; j < OUTS; ++j)
          if (j < t.count) sum[j] = load_first(out + j * t.out_step, width);
      if constexpr (TAPS > 0) {
        // Of these rows and of the output as many lines as this vector of channels has in a strip.
        constexpr int64_t line = 64 / int64_t(sizeof(T)), lines = (OUTS * vector_bytes + 63) / 64;
        const T *next_in = t.next_in + in_next + v * OUTS * STRIDE * L, *next_out = t.next_out + out_at + v * OUTS * L;
        for (int64_t r = 0; r < t.next_rows; ++r, next_in += t.next_pitch)
#pragma GCC unroll 32
          for (int i = 0; i < lines * STRIDE; ++i) __builtin_prefetch(next_in + i * line);
#pragma GCC unroll 32
        for (int i = 0; i < lines; ++i) __builtin_prefetch(next_out + i * line, 1);
      }
      const T* weights = t.weights + v * t.weight_pitch;
      const T* const* in = t.in;
      const int64_t channel = in_at + begin;
      if constexpr (TAPS > 0) {
        for (int64_t r = 0; r < t.tap_rows; ++r, in += inputs, weights += TAPS * L) {
          Vec<T> weight[TAPS];
#pragma GCC unroll 8
          for (int s = 0; s < TAPS; ++s) weight[s] = load(weights + s * L);
#pragma GCC unroll 32
          for (int k = 0; k < inputs; ++k) {
            const Vec<T> x = load(in[k] + channel);
#pragma GCC unroll 8
            for (int s = TAPS - 1; s >= 0; --s)
              if (k >= s && (k - s) % STRIDE == 0 && (k - s) / STRIDE < OUTS)
                sum[(k - s) / STRIDE] = fma(weight[s], x, sum[(k - s) / STRIDE]);
          }
        }
      } else {
        for (int64_t r = 0; r < t.tap_rows; ++r, in += t.inputs)
          for (int64_t s = 0; s < t.tap_columns; ++s, weights += L) {
            const Vec<T> weight = load(weights);
            const T* const* at = in + s * t.tap_step;
#pragma GCC unroll 8
            for (int j = 0; j < OUTS; ++j, at += t.step) sum[j] = fma(weight, load(*at + channel), sum[j]);
          }
      }
      if (t.count == OUTS && width == L) {
#pragma GCC unroll 8
        for (int j = 0; j < OUTS; ++j) store<T>(out + j * t.out_step, sum[j]);
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < OUTS; ++j)
          if (j < t.count) store_first(out + j * t.out_step, sum[j], width);
      }
    }
}

template <class T>
using PixelKernel = void (*)(const PixelStrips<T>&);

template <class T, int OUTS>
PixelKernel<T> pixel_kernel(const StripPlan& plan, int64_t taps) {
  if (plan.tap_step == 1 && plan.row_step == 1) {
    if (taps == 2) return pixel_strips<T, OUTS, 2, 1>;
    if (taps == 3) return pixel_strips<T, OUTS, 3, 1>;
    if (taps == 5) return pixel_strips<T, OUTS, 5, 1>;
    if (taps == 7) return pixel_strips<T, OUTS, 7, 1>;
  }
  if (plan.tap_step == 1 && plan.row_step == 2) {
    if (taps == 3) return pixel_strips<T, OUTS, 3, 2>;
    if (taps == 5) return pixel_strips<T, OUTS, 5, 2>;
    if (taps == 7) return pixel_strips<T, OUTS, 7, 2>;
  }
  return pixel_strips<T, OUTS, 0, 0>;
}
template <class T>
PixelKernel<T> pixel_kernel(const StripPlan& plan, int64_t taps) {
  return plan.rows == 4   ? pixel_strips<T, 4, 0, 0>
         : plan.rows == 7 ? pixel_kernel<T, 7>(plan, taps)
                          : pixel_kernel<T, 8>(plan, taps);
}

struct PixelShape {
  Axis rows, columns;
  int64_t multiplier, passes;  // passes: inputs summed into one output channel
  int64_t channels, vectors;   // of the output
  StripPlan strips;            // of a row
  int64_t strips_per_row;
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
  const int64_t count = s.columns.phase[0].count;
  s.strips = plan_strips(s.columns, count);
  s.strips.rows = strip_rows(s.strips, count);
  s.strips_per_row = s.strips.strips(count);
  return s;
}

template <class T>
struct PixelScratch {
  T* image;
  const T** in;
  int64_t bytes;
  PixelScratch(const PixelShape& s, void* base) {
    Workspace memory(base);
    image = memory.take<T>(s.packed ? s.rows.in * s.columns.in * s.pitch : 0);
    in = memory.take<const T*>(maximum<int64_t>(1, s.rows.kernel) * s.strips.inputs(maximum<int64_t>(1, s.columns.kernel)));
    bytes = memory.bytes();
  }
};

template <class T>
struct PixelMemory {
  T* weights;  // [pass][vector][tap] vectors
  T* bias;     // [vector]
  T* zeros;    // a pixel of the input
  char* threads;
  int64_t thread_bytes, bytes;
  PixelMemory(const PixelShape& s, void* base, int count) {
    Workspace memory(base);
    weights = memory.take<T>(s.passes * s.vectors * s.taps * lanes<T>);
    bias = memory.take<T>(s.vectors * lanes<T>);
    zeros = memory.take<T>(s.pitch);
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
    each_tap<true>(q, s.rows, s.columns, [&](int64_t tap, int64_t from) {
      for (int64_t i = 0; i < L; ++i) to[tap * L + i] = i < width ? w[((begin + i) * s.passes + pass) * s.taps + from] : T(0);
    });
  }
}

// Output row `h` of an image, and the chunks begin .. end - 1 of its channels. `in` and `out` are the image's first pixels; in
// a packed image the chunk's channels come first.
template <class T>
void compute_row(const PixelShape& s, const PixelMemory<T>& memory, const PixelScratch<T>& scratch, int64_t h, Range chunks,
                 int64_t pass, const T* in, T* out) {
  constexpr int L = lanes<T>;
  const AxisPhase& row = s.rows.phase[h % s.rows.out_step];
  const int64_t top = row.start + h / s.rows.out_step * s.rows.in_step;
  // The tap rows inside the image.
  Range taps = {0, row.taps};
  while (taps.begin < taps.end && top + taps.begin * s.rows.tap_step < 0) ++taps.begin;
  while (taps.begin < taps.end && top + (taps.end - 1) * s.rows.tap_step >= s.rows.in) --taps.end;
  const int64_t in_row = s.columns.in * s.pitch;
  PixelStrips<T> t;
  t.in = scratch.in, t.step = s.strips.row_step, t.tap_step = s.strips.tap_step;
  t.tap_rows = taps.end - taps.begin, t.weight_pitch = s.taps * L, t.accumulate = pass > 0;
  t.in_advance = s.strips.rows * s.columns.in_step * s.pitch;
  t.out_step = s.strips.out_step() * s.columns.out_step * s.channels;
  // The rows that the output row before did not read, two strips ahead.
  t.next_rows = minimum(t.tap_rows, s.rows.in_step), t.next_pitch = in_row;
  const T* fresh = in + (top + (taps.end - t.next_rows) * s.rows.tap_step) * in_row + 2 * t.in_advance;
  each_phase(s.rows, s.columns, [&](const AxisPhase& phase, const AxisPhase& column, int64_t tap) {
    if (phase.first != row.first) return;
    const PixelKernel<T> kernel = pixel_kernel<T>(s.strips, column.taps);
    t.tap_columns = column.taps, t.inputs = column.taps ? s.strips.inputs(column.taps) : 0;
    for (int64_t index = 0; index < s.strips_per_row; index += t.strips) {
      const int64_t first = s.strips.first(index), left = column.start + first * s.columns.in_step;
      t.strips = 1, t.count = s.strips.count(first, column.count);
      if (t.count == 0) continue;
      Range inside = {0, t.inputs};
      while (inside.begin < inside.end && left + inside.begin * s.strips.spacing < 0) ++inside.begin;
      while (inside.begin < inside.end && left + (inside.end - 1) * s.strips.spacing >= s.columns.in) --inside.end;
      const T** to = scratch.in;
      for (int64_t r = taps.begin; r < taps.end; ++r) {
        const T* from = in + (top + r * s.rows.tap_step) * in_row + (left + inside.begin * s.strips.spacing) * s.pitch;
        int64_t i = 0;
        for (; i < inside.begin; ++i) *to++ = memory.zeros;
        for (; i < inside.end; ++i, from += s.strips.spacing * s.pitch) *to++ = from;
        for (; i < t.inputs; ++i) *to++ = memory.zeros;
      }
      // Together with this strip those after it that are whole, too, and inside the image.
      if (s.chunks == 1 && s.strips.residues == 1 && inside.begin == 0)
        while (first + (t.strips + 1) * s.strips.rows <= column.count &&
               left + t.strips * s.strips.rows * s.columns.in_step + (t.inputs - 1) * s.strips.spacing < s.columns.in)
          ++t.strips;
      const int64_t out_at = (h * s.columns.out + column.first + first * s.columns.out_step) * s.channels;
      for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        const int64_t vector = chunk * s.chunk, channel = s.begin<T>(vector);
        t.channel = s.packed ? 0 : channel;
        t.weights = memory.weights + ((pass * s.vectors + vector) * s.taps + tap + taps.begin * column.taps) * L;
        t.bias = memory.bias + vector * L;
        t.vectors = minimum(s.chunk, s.vectors - vector);
        t.last = s.begin<T>(vector + t.vectors - 1) - channel;
        t.width = int(minimum<int64_t>(L, s.channels - channel - t.last));
        t.out = out + out_at + channel;
        t.next_in = fresh + left * s.pitch + t.channel * s.strips.rows * s.columns.in_step;
        t.next_out = out + out_at + 2 * s.strips.rows * t.out_step + channel * s.strips.rows;
        kernel(t);
      }
    }
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
  parallel(threads, [&](int id, int parts) {
    const PixelScratch<T> scratch(s, memory.threads + id * memory.thread_bytes);
    const Range vectors = share(s.vectors, id, parts), zeros = share(s.pitch, id, parts);
    for (int64_t v = vectors.begin; v < vectors.end; ++v) pack_vector<T>(q, s, w, bias, v, memory);
    for (int64_t i = zeros.begin; i < zeros.end; ++i) memory.zeros[i] = 0;
    if (parts > 1) barrier();
    if (!s.packed) {
      const Range units = share(q.n * s.rows.out, id, parts);
      for (int64_t u = units.begin; u < units.end; ++u) {
        const int64_t n = u / s.rows.out;
        compute_row<T>(s, memory, scratch, u % s.rows.out, {0, s.chunks}, 0, in + n * in_image, out + n * out_image);
      }
      return;
    }
    const Range units = share(q.n * s.chunks, id, parts);
    for (int64_t u = units.begin; u < units.end; ++u) {
      const int64_t n = u / s.chunks, chunk = u % s.chunks, begin = chunk * s.pitch;
      for (int64_t pass = 0; pass < s.passes; ++pass) {
        pack_image<T>(in + n * in_image, in_pixels, in_channels, s.passes, pass, forward ? s.multiplier : 1, begin,
                      minimum(begin + s.pitch, s.channels), scratch.image, s.pitch);
        for (int64_t h = 0; h < s.rows.out; ++h)
          compute_row<T>(s, memory, scratch, h, {chunk, chunk + 1}, pass, scratch.image, out + n * out_image);
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
