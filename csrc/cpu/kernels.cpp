// The table of one instruction set.
#include "kernels.h"

#include "ceiling.h"
#include "conv.h"
#include "convert.h"
#include "lrn.h"
#include "pool.h"

namespace fastconv::cpu::FASTCONV_ISA {

#define FASTCONV_STRING(x) #x
#define FASTCONV_NAME(x) FASTCONV_STRING(x)

const Kernels& kernels() {
  static const ConvAlgorithm conv[] = {depthwise_forward,
                                       depthwise_input_gradient,
                                       depthwise_weight_gradient,
                                       winograd_forward,
                                       winograd_input_gradient,
                                       winograd_weight_gradient,
                                       winograd_5x5_forward,
                                       winograd_5x5_input_gradient,
                                       grouped_forward,
                                       grouped_input_gradient,
                                       grouped_weight_gradient,
                                       winograd_5x5_weight_gradient,
                                       narrow_forward,
                                       narrow_input_gradient,
                                       direct_forward,
                                       direct_input_gradient,
                                       direct_weight_gradient,
                                       implicit_gemm_forward,
                                       implicit_gemm_input_gradient,
                                       implicit_gemm_weight_gradient};
  static const Kernels table = {FASTCONV_NAME(FASTCONV_ISA), conv, int(sizeof(conv) / sizeof(conv[0])), pool, lrn, convert,
                                multiply_add_ceiling};
  return table;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
