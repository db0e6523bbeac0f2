// Max, average and adaptive pooling of one instruction set.
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const PoolKernels pool;

}  // namespace fastconv::cpu::FASTCONV_ISA
