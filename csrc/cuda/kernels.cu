// The table of one backend.
#include "kernels.h"

#include <array>
#include <iterator>
#include <vector>

#include "conv.h"
#include "lrn.h"
#include "pool.h"

namespace fastconv::FASTCONV_BACKEND {

const cuda::Kernels& kernels() {
  static const std::vector<ConvAlgorithm> conv = [] {
    std::vector<ConvAlgorithm> all = {depthwise_forward,      depthwise_input_gradient, depthwise_weight_gradient,
                                      stem_forward,           stem_weight_gradient,     grouped_forward,
                                      grouped_input_gradient, grouped_weight_gradient,  direct_forward,
                                      direct_input_gradient,  direct_weight_gradient};
    const auto add = [&](const auto& algorithms) { all.insert(all.end(), std::begin(algorithms), std::end(algorithms)); };
    add(tensor_core_forward);
    add(tensor_core_input_gradient);
    add(tensor_core_weight_gradient);
    add(std::array{winograd_forward, winograd_input_gradient});
    add(std::array{implicit_gemm_forward, implicit_gemm_input_gradient, implicit_gemm_weight_gradient});
    return all;
  }();
  static const cuda::Kernels table = {conv.data(),
                                      int(conv.size()),
                                      {max_forward, max_backward, max_gather, average_forward, average_backward},
                                      {lrn_forward, lrn_backward}};
  return table;
}

}  // namespace fastconv::FASTCONV_BACKEND
