// A convolution seen from its output, one axis at a time: what the kernels for few channels a group have in common. In these
// terms a forward and an input gradient are the same thing: outputs gather inputs through taps.
#pragma once

#include "isa.h"
#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Outputs first, first + stride, first + 2 stride, ... (`count` of them) of an axis. Output number i of them gathers the inputs
// start + i * in_step + t * tap_step for t in 0 .. taps - 1, multiplied by the weights first_weight + t * weight_step.
struct AxisPhase {
  int64_t first, count, taps, start, first_weight;
};

// An axis has one phase in a forward. In an input gradient it has as many as the stride: each output meets only some of the
// taps.
struct Axis {
  int64_t in, out;  // sizes of what is read and what is written
  int64_t kernel, stride, pad, dilation;
  bool forward;
  int64_t phases, out_step, in_step, tap_step, weight_step;
};

constexpr int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

inline Axis make_axis(bool forward, int64_t x_size, int64_t y_size, int64_t kernel, int64_t stride, int64_t pad,
                      int64_t dilation) {
  if (forward) return {x_size, y_size, kernel, stride, pad, dilation, true, 1, 1, stride, dilation, 1};
  const int64_t common = greatest_common_divisor(stride, dilation);
  return {y_size,
          x_size,
          kernel,
          stride,
          pad,
          dilation,
          false,
          minimum(stride, x_size),
          stride,
          1,
          dilation / common,
          -(stride / common)};
}
inline Axis row_axis(const ConvProblem& q, bool forward) {
  return make_axis(forward, q.h, q.p, q.r, q.stride_h, q.pad_top, q.dilation_h);
}
inline Axis column_axis(const ConvProblem& q, bool forward) {
  return make_axis(forward, q.w, q.q, q.s, q.stride_w, q.pad_left, q.dilation_w);
}

inline AxisPhase axis_phase(const Axis& axis, int64_t index) {
  if (axis.forward) return {0, axis.out, axis.kernel, -axis.pad, 0};
  // Weight r reaches output h from input (h + pad - r * dilation) / stride, where that division leaves no remainder.
  const int64_t weight_step = -axis.weight_step, count = (axis.out - index + axis.stride - 1) / axis.stride;
  for (int64_t r = 0; r < minimum(axis.kernel, weight_step); ++r) {
    if ((index + axis.pad - r * axis.dilation) % axis.stride) continue;
    const int64_t taps = (axis.kernel - r + weight_step - 1) / weight_step, last = r + (taps - 1) * weight_step;
    return {index, count, taps, (index + axis.pad - last * axis.dilation) / axis.stride, last};
  }
  return {index, count, 0, 0, 0};
}

// The inputs that the outputs `begin` .. `end` - 1 of every phase touch, as a half-open range that may leave the input.
struct Reach {
  int64_t begin, end;
};
inline Reach axis_reach(const Axis& axis, int64_t begin, int64_t end) {
  Reach reach = {0, 0};
  bool any = false;
  for (int64_t i = 0; i < axis.phases; ++i) {
    const AxisPhase phase = axis_phase(axis, i);
    const int64_t stop = minimum(end, phase.count);
    if (phase.taps == 0 || stop <= begin) continue;
    const int64_t first = phase.start + begin * axis.in_step;
    const int64_t last = phase.start + (stop - 1) * axis.in_step + (phase.taps - 1) * axis.tap_step;
    reach = any ? Reach{minimum(reach.begin, first), maximum(reach.end, last + 1)} : Reach{first, last + 1};
    any = true;
  }
  return reach;
}

// False where padding or dilation reach so far beyond the input that a zero-padded copy of it would be mostly zeros.
inline bool worth_padding(const ConvProblem& q) {
  auto bounded = [](const Axis& axis) {
    const Reach reach = axis_reach(axis, 0, axis.out);
    return reach.end - reach.begin <= 8 * axis.in + 1024;
  };
  return bounded(row_axis(q, true)) && bounded(column_axis(q, true)) && bounded(row_axis(q, false)) &&
         bounded(column_axis(q, false));
}

// Where each array lies in a kernel's workspace. Used twice with the same calls: from a null base to count the bytes, and to
// hand out addresses.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* at = base_ + used_;
    used_ += (count * int64_t(sizeof(T)) + 127) / 64 * 64;  // a cache line between neighbours
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

template <class T>
inline __attribute__((always_inline)) Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  Mask<T> index;
  for (int i = 0; i < lanes<T>; ++i) index[i] = 2 * i;
  return __builtin_shuffle(a, b, index);
}

// The low or the high halves of two vectors, their elements alternating.
template <class T, bool HIGH>
inline __attribute__((always_inline)) Vec<T> interleave(Vec<T> a, Vec<T> b) {
  Mask<T> index;
  for (int i = 0; i < lanes<T>; ++i) index[i] = i / 2 + (HIGH ? lanes<T> / 2 : 0) + (i % 2 ? lanes<T> : 0);
  return __builtin_shuffle(a, b, index);
}

// out[i] = row[first + i * step] for 0 <= i < count, zero where that lies outside the row's `width` elements. May write zeros
// up to a vector beyond the end of `out`.
template <class T>
inline void copy_padded(const T* row, int64_t width, int64_t first, int64_t step, T* out, int64_t count) {
  constexpr int L = lanes<T>;
  const int64_t begin = minimum(count, first < 0 ? (-first + step - 1) / step : 0);
  const int64_t end = maximum(begin, minimum(count, first < width ? (width - first - 1) / step + 1 : 0));
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

// out[i * step + j] = parts[j * pitch + i]: puts the phases of a row of `count` elements together.
template <class T>
inline void interleave_row(const T* parts, int64_t pitch, int64_t step, T* out, int64_t count) {
  constexpr int L = lanes<T>;
  int64_t i = 0;
  if (step == 2)
    for (; 2 * i + 2 * L <= count; i += L) {
      const Vec<T> a = load(parts + i), b = load(parts + pitch + i);
      store<T>(out + 2 * i, interleave<T, false>(a, b));
      store<T>(out + 2 * i + L, interleave<T, true>(a, b));
    }
  for (int64_t j = 0; j < minimum(step, count); ++j)
    for (int64_t k = i; k * step + j < count; ++k) out[k * step + j] = parts[j * pitch + k];
}

}  // namespace fastconv::cpu::FASTCONV_ISA
