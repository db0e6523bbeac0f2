// Pooling kernels.
#include "pool.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const PoolKernels pool = {};

}  // namespace fastconv::cpu::FASTCONV_ISA
