// The multiply-add rate of one instruction set.
#pragma once

#include <cstdint>

namespace fastconv::cpu::FASTCONV_ISA {

// Runs `steps` rounds of independent float32 multiply-adds on each thread; returns how many operations that were in all (a
// multiply-add counts 2).
int64_t multiply_add_ceiling(int64_t steps, int threads);

}  // namespace fastconv::cpu::FASTCONV_ISA
