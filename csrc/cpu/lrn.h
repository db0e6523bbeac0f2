// Local response normalisation of one instruction set.
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

void lrn_forward(const LrnProblem&, const void* x, void* y, int threads);
void lrn_backward(const LrnProblem&, const void* x, const void* gy, void* gx, int threads);

constexpr LrnKernels lrn = {lrn_forward, lrn_backward};

}  // namespace fastconv::cpu::FASTCONV_ISA
