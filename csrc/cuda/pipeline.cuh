// The cp.async pipeline of the matrix-product kernels.
#pragma once

#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

// Runs `steps` chunks through X::stages stages of shared memory, X::stage elements each: load(a, b) enqueues the copies of the
// next chunk of A and, X::stage_a elements on, of B; use(a, b) computes. At the end every thread is done with shared memory.
template <class X, class T, class Load, class Use>
FASTCONV_DEVICE void pipeline(T* shared, int64_t steps, const Load& load, const Use& use) {
  T *filled = shared, *used = shared;
  const auto turn = [&](T*& stage) { stage = stage == shared + (X::stages - 1) * X::stage ? shared : stage + X::stage; };
  int64_t left = steps;
  const auto enqueue = [&] {
    if (left-- > 0) load(filled, filled + X::stage_a);
    turn(filled);
    device::copy_async_commit();  // an empty group at the end keeps the count
  };
#pragma unroll
  for (int s = 0; s < X::stages - 1; ++s) enqueue();
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    device::copy_async_wait<X::stages - 2>();
    __syncthreads();  // this stage has arrived for all, and the one about to be refilled has been read by all
    enqueue();
    use(used, used + X::stage_a);
    turn(used);
  }
  device::copy_async_wait<0>();
  __syncthreads();
}

}  // namespace fastconv::FASTCONV_BACKEND
