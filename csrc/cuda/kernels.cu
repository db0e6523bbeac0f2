// The table of one backend.
#include "kernels.h"

#include "conv.h"
#include "lrn.h"
#include "pool.h"

namespace fastconv::FASTCONV_BACKEND {

const cuda::Kernels& kernels() {
  static const ConvAlgorithm conv[] = {depthwise_forward,
                                       depthwise_input_gradient,
                                       depthwise_weight_gradient,
                                       stem_forward,
                                       stem_weight_gradient,
                                       direct_forward,
                                       direct_input_gradient,
                                       direct_weight_gradient,
                                       tensor_core_forward,
                                       tensor_core_input_gradient,
                                       tensor_core_weight_gradient,
                                       implicit_gemm_forward,
                                       implicit_gemm_input_gradient,
                                       implicit_gemm_weight_gradient};
  static const cuda::Kernels table = {conv,
                                      int(sizeof(conv) / sizeof(conv[0])),
                                      {max_forward, max_backward, max_gather, average_forward, average_backward},
                                      {lrn_forward, lrn_backward}};
  return table;
}

}  // namespace fastconv::FASTCONV_BACKEND
