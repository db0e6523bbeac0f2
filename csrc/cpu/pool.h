// Max, average and adaptive pooling of one instruction set. kernels.h says what each does.
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

void max_forward(const PoolProblem&, const void* x, void* y, void* index, MaxIndex kind, int threads);
bool max_backward(const PoolProblem&, const void* gy, const void* index, MaxIndex kind, void* gx, int threads);
bool max_gather(const PoolProblem&, const void* v, const void* index, MaxIndex kind, void* y, int threads);
void average_forward(const PoolProblem&, const void* x, void* y, int threads);
void average_backward(const PoolProblem&, const void* gy, void* gx, int threads);

constexpr PoolKernels pool = {max_forward, max_backward, max_gather, average_forward, average_backward};

}  // namespace fastconv::cpu::FASTCONV_ISA
