// The cp.async pipeline of the matrix-product kernels.
#pragma once

#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

// Runs `steps` chunks through X::stages stages of shared memory, X::stage elements each: load(step, a, b) enqueues the copies
// of a chunk of A and, X::stage_a elements on, of B; use(a, b) computes. At the end every thread is done with shared memory.
template <class X, class T, class Load, class Use>
FASTCONV_DEVICE void pipeline(T* shared, int64_t steps, const Load& load, const Use& use) {
  const auto stage = [&](int64_t step) { return shared + step % X::stages * X::stage; };
  const auto enqueue = [&](int64_t step) {
    if (step < steps) load(step, stage(step), stage(step) + X::stage_a);
    device::copy_async_commit();  // an empty group at the end keeps the count
  };
  for (int s = 0; s < X::stages - 1; ++s) enqueue(s);
  for (int64_t step = 0; step < steps; ++step) {
    device::copy_async_wait<X::stages - 2>();
    __syncthreads();  // this stage has arrived for all, and the one about to be refilled has been read by all
    enqueue(step + X::stages - 1);
    use(stage(step), stage(step) + X::stage_a);
  }
  device::copy_async_wait<0>();
  __syncthreads();
}

}  // namespace fastconv::FASTCONV_BACKEND
