// The convolution algorithms of one instruction set. They compute in float32 and float64; float16 and bfloat16 problems are
// converted around them (convert.h).
#pragma once

#include "kernels.h"

namespace fastconv::cpu::FASTCONV_ISA {

extern const ConvAlgorithm depthwise_forward, depthwise_input_gradient, depthwise_weight_gradient;
extern const ConvAlgorithm grouped_forward, grouped_input_gradient, grouped_weight_gradient;
extern const ConvAlgorithm direct_forward, direct_input_gradient, direct_weight_gradient;
extern const ConvAlgorithm narrow_forward, narrow_input_gradient;
extern const ConvAlgorithm implicit_gemm_forward, implicit_gemm_input_gradient, implicit_gemm_weight_gradient;
extern const ConvAlgorithm winograd_forward, winograd_input_gradient, winograd_weight_gradient;
extern const ConvAlgorithm winograd_5x5_forward, winograd_5x5_input_gradient, winograd_5x5_weight_gradient;

}  // namespace fastconv::cpu::FASTCONV_ISA
