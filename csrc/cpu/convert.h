// Conversion of whole arrays between the 16-bit types and float32, of one instruction set.
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const ConvertKernels convert;

}  // namespace fastconv::cpu::FASTCONV_ISA
