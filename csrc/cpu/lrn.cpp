// Local response normalisation kernels.
#include "lrn.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const LrnKernels lrn = {};

}  // namespace fastconv::cpu::FASTCONV_ISA
