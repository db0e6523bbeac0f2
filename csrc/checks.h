// One place that decides whether a problem is valid, with arithmetic that cannot overflow. Kernels trust what passed here.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace fastconv::checks {

// Raised as Python's ValueError.
[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline void at_least(const char* name, int64_t value, int64_t least) {
  if (value < least)
    fail(std::string(name) + ": expected at least " + std::to_string(least) + ", got " + std::to_string(value));
}

inline int64_t add(const char* name, int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_add_overflow(a, b, &out)) fail(std::string(name) + ": exceeds 64 bits");
  return out;
}

inline int64_t multiply(const char* name, int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_mul_overflow(a, b, &out)) fail(std::string(name) + ": exceeds 64 bits");
  return out;
}

// The types are enumerations that a caller can make of any number.
inline void known(Dtype dtype) {
  if (dtype < Dtype::float32 || dtype > Dtype::bfloat16) fail("dtype: expected one of float32, float64, float16, bfloat16");
}
inline void known(Layout layout) {
  if (layout < Layout::channels_first || layout > Layout::channels_last)
    fail("layout: expected channels_first or channels_last");
}

// Number of bytes of a tensor; must fit in 63 bits.
inline int64_t bytes(const char* name, Dtype dtype, std::initializer_list<int64_t> sizes) {
  int64_t total = size_of(dtype);
  for (int64_t size : sizes) {
    at_least(name, size, 0);
    total = multiply(name, total, size);
  }
  return total;
}

// Extent of a dilated kernel: dilation * (kernel - 1) + 1.
inline int64_t extent(const char* name, int64_t kernel, int64_t dilation) {
  return add(name, multiply(name, dilation, kernel - 1), 1);
}

inline void conv_axis(const char* axis, int64_t in, int64_t kernel, int64_t out, int64_t stride, int64_t before, int64_t after,
                      int64_t dilation) {
  const std::string of = std::string(" of the ") + axis;
  at_least(("kernel size" + of).c_str(), kernel, 1);
  at_least(("stride" + of).c_str(), stride, 1);
  at_least(("dilation" + of).c_str(), dilation, 1);
  at_least(("input size" + of).c_str(), in, 0);
  at_least(("output size" + of).c_str(), out, 0);
  const int64_t padded = add("padding", add("padding", in, before), after);
  const int64_t span = add("padding", padded, -extent("dilation", kernel, dilation));
  const int64_t expected = span < 0 ? 0 : span / stride + 1;
  if (out != expected) fail("output size" + of + ": expected " + std::to_string(expected) + ", got " + std::to_string(out));
}

inline void validate(const ConvProblem& p) {
  known(p.dtype);
  known(p.layout);
  known(p.weight_layout);
  at_least("batch size", p.n, 0);
  at_least("input channels", p.c, 0);
  at_least("output channels", p.k, 0);
  at_least("groups", p.groups, 1);
  if (p.c % p.groups)
    fail("input channels: expected a multiple of groups " + std::to_string(p.groups) + ", got " + std::to_string(p.c));
  if (p.k % p.groups)
    fail("output channels: expected a multiple of groups " + std::to_string(p.groups) + ", got " + std::to_string(p.k));
  conv_axis("height", p.h, p.r, p.p, p.stride_h, p.pad_top, p.pad_bottom, p.dilation_h);
  conv_axis("width", p.w, p.s, p.q, p.stride_w, p.pad_left, p.pad_right, p.dilation_w);
  bytes("input", p.dtype, {p.n, p.c, p.h, p.w});
  bytes("output", p.dtype, {p.n, p.k, p.p, p.q});
  bytes("weight", p.dtype, {p.k, p.c / p.groups, p.r, p.s});
}

// The CPU's kernels do not know the activation.
inline void without_relu(const ConvProblem& p) {
  if (p.relu) fail("relu: expected false on the CPU, whose kernels have no activation");
}

inline void pool_axis(const char* axis, int64_t in, int64_t kernel, int64_t out, int64_t stride, int64_t before, int64_t after,
                      int64_t dilation) {
  const std::string of = std::string(" of the ") + axis;
  at_least(("kernel size" + of).c_str(), kernel, 1);
  at_least(("stride" + of).c_str(), stride, 1);
  at_least(("dilation" + of).c_str(), dilation, 1);
  at_least(("padding" + of).c_str(), before, 0);
  at_least(("padding" + of).c_str(), after, 0);
  if (out > 0) {
    // Every window must begin inside the input or its leading padding, so that it is not empty.
    const int64_t start = add("stride", multiply("stride", out - 1, stride), -before);
    if (start >= add("padding", in, after))
      fail("output size" + of + ": window " + std::to_string(out - 1) + " lies outside the padded input");
    add("dilation", start, extent("dilation", kernel, dilation));
  }
}

inline void validate(const PoolProblem& p) {
  known(p.dtype);
  known(p.layout);
  bytes("input", p.dtype, {p.n, p.c, p.h, p.w});
  bytes("output", Dtype::float64, {p.n, p.c, p.p, p.q});  // float64: indices are as wide
  if (p.adaptive) {
    if ((p.p > 0 && p.h < 1) || (p.q > 0 && p.w < 1))
      fail("input size: expected at least 1 in height and width for adaptive pooling");
    // What the windows' ends are computed from.
    add("output size", multiply("output size", p.h, add("output size", p.p, 1)), p.p);
    add("output size", multiply("output size", p.w, add("output size", p.q, 1)), p.q);
    add("input size", multiply("input size", p.p, add("input size", p.h, 1)), p.h);
    add("input size", multiply("input size", p.q, add("input size", p.w, 1)), p.w);
    return;
  }
  multiply("kernel size", p.r, p.s);
  pool_axis("height", p.h, p.r, p.p, p.stride_h, p.pad_top, p.pad_bottom, p.dilation_h);
  pool_axis("width", p.w, p.s, p.q, p.stride_w, p.pad_left, p.pad_right, p.dilation_w);
}

// Whether the positions inside a window of a valid problem fit in MaxIndex::window's byte.
inline bool fits_window_index(const PoolProblem& p) {
  const int64_t rows = window_positions(p.adaptive, p.h, p.p, p.r), columns = window_positions(p.adaptive, p.w, p.q, p.s);
  return rows <= 255 && columns <= 255 && rows * columns <= 255;
}

inline void validate(const LrnProblem& p) {
  known(p.dtype);
  known(p.layout);
  bytes("input", p.dtype, {p.n, p.c, p.spatial});
  at_least("size", p.size, 1);
}

}  // namespace fastconv::checks
