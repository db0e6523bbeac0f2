// Where the windows of a pooling lie, one axis at a time, for fixed and for adaptive windows: the same arithmetic on the CPU
// and on a GPU. I is the integer for coordinates: 64 bits on the CPU; 32 on a GPU wherever a plane allows it, since a GPU
// divides 64-bit integers slowly.
//
// Included once for each instruction set or backend, in its namespace: the code of one must not be linked into another.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define FASTCONV_ANYWHERE __host__ __device__ __forceinline__
#else
#define FASTCONV_ANYWHERE inline
#endif

#ifdef FASTCONV_ISA
namespace fastconv::cpu::FASTCONV_ISA {
#else
namespace fastconv::FASTCONV_BACKEND {
#endif

// The positions of one window inside the input, along one axis: first, first + step, …, `count` of them.
template <class I>
struct WindowSpan {
  I first, count, step;
  I tap;      // position of `first` inside the window: the taps before it lie in the padding
  I divisor;  // what this axis contributes to the divisor of an average
};

template <class I>
struct WindowAxis {
  I in, out;
  I kernel, stride, before, after, dilation;
  bool adaptive, count_pad;

  FASTCONV_ANYWHERE I start(I i) const { return adaptive ? i * in / out : i * stride - before; }

  FASTCONV_ANYWHERE WindowSpan<I> window(I i) const {
    if (adaptive) {
      const I first = start(i), count = ((i + 1) * in + out - 1) / out - first;
      return {first, count, 1, 0, count};
    }
    const I begin = start(i), tap = begin < 0 ? (-begin - 1) / dilation + 1 : 0;
    // Unsigned: the position after the last tap of a window inside the padding may exceed the integer.
    using U = std::make_unsigned_t<I>;
    const I first = I(U(begin) + U(tap) * U(dilation));
    if (tap >= kernel || first >= in) return {first, 0, dilation, tap, 1};
    const I left = dilation == 1 ? in - first : (in - first - 1) / dilation + 1;
    const I count = kernel - tap < left ? kernel - tap : left;
    const I end = begin + kernel < in + after ? begin + kernel : in + after;
    return {first, count, dilation, tap, count_pad ? end - begin : count};
  }

  // The windows that may contain position x are begin..end; with dilation, those whose tap() there is not negative do.
  FASTCONV_ANYWHERE I covering_begin(I x) const {
    if (adaptive) return x * out / in;
    const I reach = (kernel - 1) * dilation, at = x + before;
    return at <= reach ? 0 : (at - reach - 1) / stride + 1;
  }
  FASTCONV_ANYWHERE I covering_end(I x) const {
    if (adaptive) return ((x + 1) * out + in - 1) / in;
    const I end = (x + before) / stride + 1;
    return end < out ? end : out;
  }

  // Which position of window i lies at x, for a covering i: -1 if x falls between two.
  FASTCONV_ANYWHERE I tap(I i, I x) const {
    const I offset = x - start(i);
    return adaptive || dilation == 1 ? offset : offset % dilation ? -1 : offset / dilation;
  }
};
}
