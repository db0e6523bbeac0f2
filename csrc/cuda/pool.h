// Entry points of the pooling and normalisation kernels of one backend.
#pragma once

#include "kernels.h"

namespace fastconv::FASTCONV_BACKEND {

using cpu::MaxIndex;

void max_forward(const PoolProblem& problem, const void* x, void* y, void* index, MaxIndex kind, void* stream);
void max_backward(const PoolProblem& problem, const void* gy, const void* index, MaxIndex kind, void* gx, void* stream);
void max_gather(const PoolProblem& problem, const void* v, const void* index, MaxIndex kind, void* y, void* stream);
void average_forward(const PoolProblem& problem, const void* x, void* y, void* stream);
void average_backward(const PoolProblem& problem, const void* gy, void* gx, void* stream);

}  // namespace fastconv::FASTCONV_BACKEND
