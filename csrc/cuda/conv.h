// The convolution algorithms of one backend.
#pragma once

#include "kernels.h"

namespace fastconv::FASTCONV_BACKEND {

using cpu::ConvAlgorithm;
using cpu::ConvArgs;

extern const ConvAlgorithm depthwise_forward, depthwise_input_gradient, depthwise_weight_gradient;
extern const ConvAlgorithm direct_forward, direct_input_gradient, direct_weight_gradient;
extern const ConvAlgorithm grouped_forward, grouped_input_gradient, grouped_weight_gradient;
extern const ConvAlgorithm stem_forward, stem_weight_gradient;
extern const ConvAlgorithm winograd_forward, winograd_input_gradient;
extern const ConvAlgorithm implicit_gemm_forward, implicit_gemm_input_gradient, implicit_gemm_weight_gradient;
// The choice of a tile by rule, then each tile by name.
extern const ConvAlgorithm tensor_core_forward[5], tensor_core_input_gradient[5], tensor_core_weight_gradient[3];

}  // namespace fastconv::FASTCONV_BACKEND
