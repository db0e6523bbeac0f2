// The operators on a GPU, and on the simulated one: the same plans and launches, there with checked memory around a call.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/kernels.h"
#include "plan.h"

namespace fastconv::device {

enum class Backend { simulation, cuda };

const cuda::Kernels& kernels(Backend backend);

// How a simulated call is run, in the place of a stream: the order of threads ("forward", "reverse", "random"), its seed, and
// the architecture whose limits hold ("sm_80", "sm_90"). Null is forward on sm_90. Throws std::invalid_argument.
void* simulated_stream(const std::string& order, int64_t seed, const std::string& architecture);

// Calls are enqueued on `stream` of the calling thread's current GPU, or simulated at once. Errors of a launch name the kernel
// and the problem; a simulated call that reads or writes what it may not throws simt::KernelFault.
void run_conv(Backend backend, const ConvPlan& plan, const cpu::ConvArgs& args);
void max_pool_forward(Backend backend, const PoolProblem& p, const void* x, void* y, void* index, cpu::MaxIndex kind,
                      void* stream);
void max_pool_backward(Backend backend, const PoolProblem& p, const void* gy, const void* index, cpu::MaxIndex kind, void* gx,
                       void* stream);
void max_pool_gather(Backend backend, const PoolProblem& p, const void* v, const void* index, cpu::MaxIndex kind, void* y,
                     void* stream);
void average_pool_forward(Backend backend, const PoolProblem& p, const void* x, void* y, void* stream);
void average_pool_backward(Backend backend, const PoolProblem& p, const void* gy, void* gx, void* stream);
void lrn_forward(Backend backend, const LrnProblem& p, const void* x, void* y, void* stream);
void lrn_backward(Backend backend, const LrnProblem& p, const void* x, const void* gy, void* gx, void* stream);

}  // namespace fastconv::device
