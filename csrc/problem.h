// The problems the kernels solve, as plain structs. Sizes are int64; nothing here knows of torch.
//
// One-dimensional operators are two-dimensional ones of height 1. `checks.h` says which structs are valid.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastconv {

// How an image tensor of logical shape [N, C, H, W] lies in memory, densely.
enum class Layout : int32_t { channels_first, channels_last };  // NCHW, NHWC

// y = conv(x, w) + b with x [n, c, h, w], w [k, c / groups, r, s], y [n, k, p, q]. The input gradient (which is also the
// transposed convolution) and the weight gradient are described by the same struct: x, w, y keep their roles.
struct ConvProblem {
  int64_t n, c, h, w;
  int64_t k, r, s;
  int64_t p, q;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;  // may be negative: cropping
  int64_t dilation_h, dilation_w;
  int64_t groups;
  Layout layout;         // of x and y
  Layout weight_layout;  // of w: [k, c/g, r, s] or [k, r, s, c/g] in memory
  Dtype dtype;
  bool allow_tf32;             // float32 products may be rounded to TF32, on a GPU
  bool relu = false;           // a forward or an input gradient gives max(result, 0), on a GPU
  bool allow_winograd = true;  // float32 sums may be formed of transformed numbers, which round more
};

enum class Primitive : int32_t { forward, input_gradient, weight_gradient };

// y[n, c, p, q] = a reduction of a window of x[n, c, h, w].
struct PoolProblem {
  int64_t n, c, h, w;
  int64_t r, s;  // kernel
  int64_t p, q;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;      // the other side follows from p and q
  int64_t pad_bottom, pad_right;  // as the caller gave it: what count_include_pad counts
  int64_t dilation_h, dilation_w;
  bool count_include_pad;
  int64_t divisor;  // 0: the window's size
  bool adaptive;    // windows are [floor(i h / p), ceil((i + 1) h / p)); kernel, stride, padding are unused
  Layout layout;
  Dtype dtype;
};

// The most positions a pooling window can have along an axis: what numbers a position inside a window.
inline int64_t window_positions(bool adaptive, int64_t in, int64_t out, int64_t kernel) {
  return adaptive ? in / out + (in % out ? 2 : 0) : kernel;
}

// y = x * (k + alpha * sum of x^2 over `size` neighbouring channels)^-beta over x [n, c, spatial]. `alpha` is what multiplies
// the sum: torch's alpha divided by the size. The window of channel i is [i - size / 2, i + (size - 1) / 2].
struct LrnProblem {
  int64_t n, c, spatial;
  int64_t size;
  double alpha, beta, k;
  Layout layout;
  Dtype dtype;
};

}  // namespace fastconv
