// Local response normalisation of one instruction set.
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const LrnKernels lrn;

}  // namespace fastconv::cpu::FASTCONV_ISA
