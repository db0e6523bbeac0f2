// What one instruction set offers: the list of algorithms of each operator. One table per instruction set, chosen at import.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace fastconv::cpu {

// Addresses for one call. `workspace` is 64-byte aligned and has the size the algorithm asked for with the same `threads`.
struct ConvArgs {
  const void* x;   // forward, weight gradient
  const void* w;   // forward, input gradient
  const void* b;   // forward and input gradient (transposed convolution): may be null
  const void* gy;  // both gradients
  void* y;         // forward
  void* gx;        // input gradient
  void* gw;        // weight gradient, in the problem's weight_layout
  void* gb;        // weight gradient: the bias gradient, may be null
  void* workspace;
  int threads;   // of the CPU; the multiprocessors of a GPU
  void* stream;  // of a GPU
  void* packed;  // what the algorithm's `pack` makes of w, read instead of packing; or null
};

struct ConvAlgorithm {
  const char* name;
  Primitive primitive;
  // Whether it can compute the problem at all.
  bool (*applies)(const ConvProblem&);
  // Whether it is expected to be faster than the algorithms listed after it. Forward and input gradient must not look at n: a
  // sample's bits may not depend on its batch.
  bool (*preferred)(const ConvProblem&);
  int64_t (*workspace_bytes)(const ConvProblem&, int threads);
  void (*run)(const ConvProblem&, const ConvArgs&);
  // Where weights are brought into another form first: its size, and what writes it from `w` to `packed`. Neither looks at n,
  // nor at sizes of the image beyond whether they are less than a stride. Null where weights are read as they are.
  int64_t (*packed_bytes)(const ConvProblem&) = nullptr;
  void (*pack)(const ConvProblem&, const ConvArgs&) = nullptr;
};

// How a max-pooling forward reports the position of each maximum.
enum class MaxIndex : int32_t {
  none,
  window,  // uint8: r * kernel_width + s inside the window; windows of at most 255 positions
  plane,   // int64: h * width + w in the input plane, as torch returns it
};

struct PoolKernels {
  void (*max_forward)(const PoolProblem&, const void* x, void* y, void* index, MaxIndex kind, int threads);
  // gx = scatter of gy to the maxima, as a gather over the windows of each input. False: an index lies outside the plane.
  bool (*max_backward)(const PoolProblem&, const void* gy, const void* index, MaxIndex kind, void* gx, int threads);
  // y[i] = v[index[i]]: the derivative of max pooling along v.
  bool (*max_gather)(const PoolProblem&, const void* v, const void* index, MaxIndex kind, void* y, int threads);
  void (*average_forward)(const PoolProblem&, const void* x, void* y, int threads);
  void (*average_backward)(const PoolProblem&, const void* gy, void* gx, int threads);
};

struct LrnKernels {
  void (*forward)(const LrnProblem&, const void* x, void* y, int threads);
  void (*backward)(const LrnProblem&, const void* x, const void* gy, void* gx, int threads);
};

// Between a 16-bit type and float32, rounding to nearest even; NaN stays NaN.
struct ConvertKernels {
  void (*widen)(Dtype dtype, const void* from, float* to, int64_t count, int threads);
  void (*narrow)(Dtype dtype, const float* from, void* to, int64_t count, int threads);
};

struct Kernels {
  const char* isa;
  const ConvAlgorithm* conv;  // ordered: the first that applies and is preferred is taken, else the last that applies
  int conv_count;
  PoolKernels pool;
  LrnKernels lrn;
  ConvertKernels convert;
  // The operations done by so many steps of nothing but multiply-adds (ceiling.h): the benchmark times it.
  int64_t (*multiply_add_ceiling)(int64_t steps, int threads);
};

}  // namespace fastconv::cpu
