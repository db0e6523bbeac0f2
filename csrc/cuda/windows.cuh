// A pooling problem as the kernels see it.
#pragma once

#include "../problem.h"
#include "../windows.h"
#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

template <class I>
using Span = WindowSpan<I>;
template <class I>
using Axis = WindowAxis<I>;

// Everything a pooling kernel needs of the problem.
template <class I>
struct Pooling {
  Axis<I> rows, columns;
  I channels, pitch;  // pitch: positions of a window along its row, for numbering them
  int64_t batch;
  I divisor;  // 0: the window's

  FASTCONV_DEVICE I in_plane() const { return rows.in * columns.in; }
  FASTCONV_DEVICE I out_plane() const { return rows.out * columns.out; }
};

template <class I>
Pooling<I> pooling_of(const PoolProblem& p) {
  Pooling<I> out;
  out.rows = {I(p.h),          I(p.p),          I(p.r),     I(p.stride_h),      I(p.pad_top),
              I(p.pad_bottom), I(p.dilation_h), p.adaptive, p.count_include_pad};
  out.columns = {I(p.w),         I(p.q),          I(p.s),     I(p.stride_w),      I(p.pad_left),
                 I(p.pad_right), I(p.dilation_w), p.adaptive, p.count_include_pad};
  out.channels = I(p.c);
  out.pitch = I(window_positions(p.adaptive, p.w, p.q, p.s));
  out.batch = p.n;
  out.divisor = I(p.divisor);
  return out;
}

// Whether all coordinates inside one image, and the ends of all windows, fit in 32 bits.
inline bool fits_32_bits(const PoolProblem& p) {
  constexpr int64_t limit = int64_t{1} << 30;
  const auto small = [](int64_t a, int64_t b) { return a < limit && b < limit && a * b < limit; };
  if (!small(p.h * p.w, p.c) || !small(p.p * p.q, p.c) || p.divisor >= limit) return false;
  if (p.adaptive) return small(p.h + 1, p.p + 1) && small(p.w + 1, p.q + 1);
  return small(p.r, p.dilation_h) && small(p.s, p.dilation_w) && small(p.r, p.s) && small(p.p, p.stride_h) &&
         small(p.q, p.stride_w) && p.pad_top < limit && p.pad_left < limit && p.pad_bottom < limit && p.pad_right < limit;
}

}  // namespace fastconv::FASTCONV_BACKEND
