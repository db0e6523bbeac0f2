// Where the windows of a pooling lie: one axis at a time, for fixed and for adaptive windows.
#pragma once

#include "../problem.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {

// The positions of one window inside the input, along one axis: first, first + step, …, `count` of them.
struct Span {
  int64_t first, count, step;
  int64_t tap;      // position of `first` inside the window: the taps before it lie in the padding
  int64_t divisor;  // what this axis contributes to the divisor of an average
};

struct Axis {
  int64_t in, out;
  int64_t kernel, stride, before, after, dilation;
  bool adaptive, count_pad;

  int64_t start(int64_t i) const { return adaptive ? i * in / out : i * stride - before; }

  Span window(int64_t i) const {
    if (adaptive) {
      const int64_t first = start(i), count = ((i + 1) * in + out - 1) / out - first;
      return {first, count, 1, 0, count};
    }
    const int64_t begin = start(i);
    const int64_t tap = begin < 0 ? (-begin - 1) / dilation + 1 : 0;
    // Unsigned: the position after the last tap of a window inside the padding may exceed 64 bits.
    const int64_t first = int64_t(uint64_t(begin) + uint64_t(tap) * uint64_t(dilation));
    const int64_t left = dilation == 1 ? in - first : (in - first - 1) / dilation + 1;
    const int64_t count = tap >= kernel || first >= in ? 0 : minimum(kernel - tap, left);
    if (count == 0) return {first, 0, dilation, tap, 1};
    return {first, count, dilation, tap, count_pad ? minimum(begin + kernel, in + after) - begin : count};
  }

  // The windows that may contain position x. With dilation, those whose tap() there is not negative do.
  Range covering(int64_t x) const {
    if (adaptive) return {x * out / in, ((x + 1) * out + in - 1) / in};
    const int64_t reach = (kernel - 1) * dilation, at = x + before;
    return {at <= reach ? 0 : (at - reach - 1) / stride + 1, minimum(at / stride + 1, out)};
  }

  // Which position of window i lies at x, for an i of covering(x): -1 if x falls between two.
  int64_t tap(int64_t i, int64_t x) const {
    const int64_t offset = x - start(i);
    return adaptive || dilation == 1 ? offset : offset % dilation ? -1 : offset / dilation;
  }

  int64_t positions() const { return window_positions(adaptive, in, out, kernel); }
};

inline Axis vertical(const PoolProblem& p) {
  return {p.h, p.p, p.r, p.stride_h, p.pad_top, p.pad_bottom, p.dilation_h, p.adaptive, p.count_include_pad};
}
inline Axis horizontal(const PoolProblem& p) {
  return {p.w, p.q, p.s, p.stride_w, p.pad_left, p.pad_right, p.dilation_w, p.adaptive, p.count_include_pad};
}

// The last tap of a kernel that is congruent to `phase` modulo the stride: negative if there is none.
inline int64_t last_tap(int64_t kernel, int64_t phase, int64_t stride) {
  return kernel - 1 - (kernel - 1 - phase + stride) % stride;
}

// The same windows, as fixed ones where an adaptive pooling's are all alike and disjoint.
inline PoolProblem with_fixed_windows(PoolProblem p) {
  if (!p.adaptive || p.h % p.p || p.w % p.q) return p;
  p.adaptive = false;
  p.stride_h = p.r = p.h / p.p;
  p.stride_w = p.s = p.w / p.q;
  p.pad_top = p.pad_bottom = p.pad_left = p.pad_right = 0;
  p.dilation_h = p.dilation_w = 1;
  p.divisor = 0;
  return p;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
