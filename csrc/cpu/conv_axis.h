// A convolution seen from its output, one axis at a time: what the kernels for few channels a group have in common. In these
// terms a forward and an input gradient are the same thing: outputs gather inputs through taps.
#pragma once

#include "isa.h"
#include "kernels.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Outputs first, first + out_step, first + 2 out_step, ... (`count` of them) of an axis. Number i of them gathers the inputs
// start + i * in_step + t * tap_step for t in 0 .. taps - 1, multiplied by the weights first_weight + t * weight_step.
struct AxisPhase {
  int64_t first, count, taps, start, first_weight;
};

constexpr int64_t most_phases = 16;

// An axis has one phase in a forward. In an input gradient it has as many as the stride: each output meets only some of the
// taps.
struct Axis {
  int64_t in, out;  // sizes of what is read and what is written
  int64_t kernel, out_step, in_step, tap_step, weight_step, phases;
  int64_t lowest, extent;  // output number 0 of all phases together reads the inputs lowest .. lowest + extent - 1
  AxisPhase phase[most_phases];
  // How many inputs `count` outputs of each phase read. They begin at lowest + (first output) * in_step, and may leave the
  // input.
  int64_t reach(int64_t count) const { return (count - 1) * in_step + extent; }
};

constexpr int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

inline AxisPhase input_gradient_phase(const Axis& axis, int64_t index, int64_t pad, int64_t dilation) {
  // Weight r reaches output h from input (h + pad - r * dilation) / stride, where that division leaves no remainder.
  const int64_t stride = axis.out_step, every = -axis.weight_step, count = (axis.out - index + stride - 1) / stride;
  for (int64_t r = 0; r < minimum(axis.kernel, every); ++r) {
    if ((index + pad - r * dilation) % stride) continue;
    const int64_t taps = (axis.kernel - r + every - 1) / every, last = r + (taps - 1) * every;
    return {index, count, taps, (index + pad - last * dilation) / stride, last};
  }
  return {index, count, 0, 0, 0};
}

inline Axis make_axis(bool forward, int64_t x_size, int64_t y_size, int64_t kernel, int64_t stride, int64_t pad,
                      int64_t dilation) {
  Axis axis;
  axis.kernel = kernel;
  if (forward) {
    axis.in = x_size, axis.out = y_size;
    axis.out_step = 1, axis.in_step = stride, axis.tap_step = dilation, axis.weight_step = 1, axis.phases = 1;
    axis.phase[0] = {0, y_size, kernel, -pad, 0};
  } else {
    const int64_t common = greatest_common_divisor(stride, dilation);
    axis.in = y_size, axis.out = x_size;
    axis.out_step = stride, axis.in_step = 1, axis.tap_step = dilation / common, axis.weight_step = -(stride / common);
    axis.phases = minimum(minimum(stride, x_size), most_phases);
    for (int64_t i = 0; i < axis.phases; ++i) axis.phase[i] = input_gradient_phase(axis, i, pad, dilation);
  }
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int64_t i = 0; i < axis.phases; ++i) {
    const AxisPhase& phase = axis.phase[i];
    if (phase.taps == 0) continue;
    low = minimum(low, phase.start);
    high = maximum(high, phase.start + (phase.taps - 1) * axis.tap_step + 1);
  }
  axis.lowest = low > high ? 0 : low, axis.extent = low > high ? 1 : high - low;
  return axis;
}
inline Axis row_axis(const ConvProblem& q, bool forward) {
  return make_axis(forward, q.h, q.p, q.r, q.stride_h, q.pad_top, q.dilation_h);
}
inline Axis column_axis(const ConvProblem& q, bool forward) {
  return make_axis(forward, q.w, q.q, q.s, q.stride_w, q.pad_left, q.dilation_w);
}

// False where padding or dilation reach so far beyond the input that a zero-padded copy of it would be mostly zeros, and for
// input gradients of more phases than an axis holds.
inline bool worth_padding(const ConvProblem& q, Primitive primitive) {
  const bool forward = primitive != Primitive::input_gradient;
  if (!forward && maximum(minimum(q.stride_h, q.h), minimum(q.stride_w, q.w)) > most_phases) return false;
  const Axis rows = row_axis(q, forward), columns = column_axis(q, forward);
  return rows.reach(rows.phase[0].count) <= 8 * rows.in + 1024 &&
         columns.reach(columns.phase[0].count) <= 8 * columns.in + 1024;
}

// out[i] = row[first + i * step] for 0 <= i < count, zero where that lies outside the row's `width` elements. May write up to a
// vector beyond the end of `out`.
template <class T>
inline void copy_padded(const T* row, int64_t width, int64_t first, int64_t step, T* out, int64_t count) {
  constexpr int L = lanes<T>;
  int64_t begin = first < 0 ? step == 1 ? -first : step == 2 ? (1 - first) / 2 : (-first + step - 1) / step : 0;
  int64_t end = first >= width ? 0
                : step == 1    ? width - first
                : step == 2    ? (width - first + 1) / 2
                               : (width - first - 1) / step + 1;
  begin = minimum(begin, count), end = maximum(begin, minimum(end, count));
  for (int64_t i = 0; i < begin; i += L) store<T>(out + i, Vec<T>{});
  int64_t i = begin;
  if (step == 1) {
    const T* from = row + first;
    for (; i + L <= end; i += L) store<T>(out + i, load(from + i));
    if (i < end) store<T>(out + i, load_first(from + i, int(end - i))), i += L;
  } else if (step == 2) {
    for (; i < end; i += L) {
      const int64_t at = first + 2 * i, left = width - at;
      const Vec<T> a = left >= L ? load(row + at) : load_first(row + at, int(left));
      const Vec<T> b = left >= 2 * L ? load(row + at + L) : left > L ? load_first(row + at + L, int(left - L)) : Vec<T>{};
      store<T>(out + i, even_lanes<T>(a, b));
    }
  } else {
    for (; i < end; ++i) out[i] = row[first + i * step];
  }
  for (; i < count; i += L) store<T>(out + i, Vec<T>{});
}

// Fetches what the next piece of work reads or, with WRITE, writes, a little with each step of this one.
template <class T, bool WRITE = false>
class Prefetch {
 public:
  static constexpr int64_t line = 64 / int64_t(sizeof(T));
  // `count` cache lines from `from` on, `pitch` elements apart, over `steps` steps. Null: nothing.
  Prefetch(const T* from, int64_t count, int64_t pitch, int64_t steps)
      : at_(from), left_(from ? count : 0), pitch_(pitch), step_(count / maximum<int64_t>(steps, 1) + 1) {}
  void step() {
    const int64_t count = minimum(step_, left_);
    for (int64_t i = 0; i < count; ++i, at_ += pitch_) __builtin_prefetch(at_, WRITE);
    left_ -= count;
  }

 private:
  const T* at_;
  int64_t left_, pitch_, step_;
};

// out[i * step + j] = parts[j * pitch + i]: puts the phases of a row of `count` elements together.
template <class T>
inline void interleave_row(const T* parts, int64_t pitch, int64_t step, T* out, int64_t count) {
  constexpr int L = lanes<T>;
  int64_t i = 0;
  if (step == 2)
    for (; 2 * i + 2 * L <= count; i += L) {
      const Vec<T> a = load(parts + i), b = load(parts + pitch + i);
      store<T>(out + 2 * i, interleaved_low<T>(a, b));
      store<T>(out + 2 * i + L, interleaved_high<T>(a, b));
    }
  for (int64_t j = 0; j < minimum(step, count); ++j)
    for (int64_t k = i; k * step + j < count; ++k) out[k * step + j] = parts[j * pitch + k];
}

}  // namespace fastconv::cpu::FASTCONV_ISA
