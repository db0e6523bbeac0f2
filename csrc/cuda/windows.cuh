// Where the windows of a pooling lie: one axis at a time, for fixed and for adaptive windows. I is the integer for coordinates:
// int32_t wherever a plane allows it, since a GPU divides 64-bit integers slowly.
#pragma once

#include "../problem.h"
#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

// The positions of one window inside the input, along one axis: first, first + step, …, `count` of them.
template <class I>
struct Span {
  I first, count, step;
  I tap;      // position of `first` inside the window: the taps before it lie in the padding
  I divisor;  // what this axis contributes to the divisor of an average
};

template <class I>
struct Axis {
  I in, out;
  I kernel, stride, before, after, dilation;
  bool adaptive, count_pad;

  FASTCONV_DEVICE I start(I i) const { return adaptive ? i * in / out : i * stride - before; }

  FASTCONV_DEVICE Span<I> window(I i) const {
    if (adaptive) {
      const I first = start(i), count = ((i + 1) * in + out - 1) / out - first;
      return {first, count, 1, 0, count};
    }
    const I begin = start(i), tap = begin < 0 ? (-begin - 1) / dilation + 1 : 0, first = begin + tap * dilation;
    const I reach = first < in ? (in - first - 1) / dilation + 1 : 0;
    const I count = tap >= kernel ? 0 : kernel - tap < reach ? kernel - tap : reach;
    const I end = begin + kernel < in + after ? begin + kernel : in + after;
    return {first, count, dilation, tap, count_pad ? end - begin : count};
  }

  // The windows that may contain position x are begin..end; with dilation, those whose tap() there is not negative do.
  FASTCONV_DEVICE I covering_begin(I x) const {
    if (adaptive) return x * out / in;
    const I reach = (kernel - 1) * dilation, at = x + before;
    return at <= reach ? 0 : (at - reach - 1) / stride + 1;
  }
  FASTCONV_DEVICE I covering_end(I x) const {
    if (adaptive) return ((x + 1) * out + in - 1) / in;
    const I end = (x + before) / stride + 1;
    return end < out ? end : out;
  }

  // Which position of window i lies at x, for a covering i: -1 if x falls between two.
  FASTCONV_DEVICE I tap(I i, I x) const {
    const I offset = x - start(i);
    return adaptive || dilation == 1 ? offset : offset % dilation ? -1 : offset / dilation;
  }
};

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
