// How fast this instruction set multiplies and adds when nothing else is in the way: what kernels are measured against.
#include "ceiling.h"

#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {

int64_t multiply_add_ceiling(int64_t steps, int threads) {
  // More independent sums than latency times throughput (4 cycles, 2 a cycle) asks for, few enough to stay in 16 registers.
  constexpr int sums = 12;
  int team = 1;
  parallel(threads, [&](int id, int parts) {
    Vec<float> sum[sums];
#pragma GCC unroll 12
    for (int i = 0; i < sums; ++i) sum[i] = splat(float(i));
    const Vec<float> a = splat(0.999f), b = splat(0.001f);
    for (int64_t step = 0; step < steps; ++step) {
      asm volatile("" ::: "memory");  // keeps the loop as it is
#pragma GCC unroll 12
      for (int i = 0; i < sums; ++i) sum[i] = fma(sum[i], a, b);
    }
#pragma GCC unroll 12
    for (int i = 1; i < sums; ++i) sum[0] += sum[i];
    volatile float keep = sum[0][0];
    (void)keep;
    if (id == 0) team = parts;
  });
  return steps * sums * lanes<float> * 2 * team;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
