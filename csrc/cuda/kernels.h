// What the CUDA kernels offer: one table for a GPU (compiled by nvcc) and one for the simulation (the same sources, compiled as
// C++).
#pragma once

#include "../cpu/kernels.h"

namespace fastconv::cuda {

using cpu::ConvAlgorithm;
using cpu::ConvArgs;
using cpu::MaxIndex;

// Pointers are to device memory; everything is enqueued on `stream`.
struct PoolKernels {
  void (*max_forward)(const PoolProblem&, const void* x, void* y, void* index, MaxIndex kind, void* stream);
  // A gather over the windows that cover an input, so that no two threads add to one element: indices must lie in their
  // windows, as max_forward's do.
  void (*max_backward)(const PoolProblem&, const void* gy, const void* index, MaxIndex kind, void* gx, void* stream);
  // y[i] = v[index[i]]; NaN where an index lies outside the plane.
  void (*max_gather)(const PoolProblem&, const void* v, const void* index, MaxIndex kind, void* y, void* stream);
  void (*average_forward)(const PoolProblem&, const void* x, void* y, void* stream);
  void (*average_backward)(const PoolProblem&, const void* gy, void* gx, void* stream);
};

struct LrnKernels {
  void (*forward)(const LrnProblem&, const void* x, void* y, void* stream);
  void (*backward)(const LrnProblem&, const void* x, const void* gy, void* gx, void* stream);
};

struct Kernels {
  const ConvAlgorithm* conv;  // in order of preference, like the CPU's
  int conv_count;
  PoolKernels pool;
  LrnKernels lrn;
};

const Kernels& kernels();

}  // namespace fastconv::cuda

namespace fastconv::simulation {
const cuda::Kernels& kernels();
}
