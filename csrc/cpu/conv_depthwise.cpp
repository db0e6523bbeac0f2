// Algorithm "depthwise": convolution with one input channel a group. Forward, input gradient, weight gradient.
#include "conv_depthwise.h"

#include "conv_algorithm.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

struct Depthwise {
  static constexpr const char* name = "depthwise";
  static bool applies(const ConvProblem& q, Primitive primitive) { return q.c == q.groups && worth_padding(q, primitive); }
  static bool preferred(const ConvProblem&, Primitive) { return true; }

  template <class T>
  static int64_t gather_bytes(const ConvProblem& q, bool forward, int threads) {
    const bool last = q.layout == Layout::channels_last;
    return (last ? depthwise_pixels_bytes<T> : depthwise_planes_bytes<T>)(q, forward, threads);
  }
  template <class T>
  static void gather(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                     int threads) {
    const bool last = q.layout == Layout::channels_last;
    (last ? depthwise_pixels<T> : depthwise_planes<T>)(q, forward, in, w, bias, out, workspace, threads);
  }
  template <class T>
  static int64_t reduce_bytes(const ConvProblem& q, int threads) {
    return depthwise_gradient_bytes<T>(q, threads);
  }
  template <class T>
  static void reduce(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads) {
    depthwise_gradient<T>(q, gy, x, gw, gb, workspace, threads);
  }
};

}  // namespace

const ConvAlgorithm depthwise_forward = algorithm<Depthwise, Primitive::forward>();
const ConvAlgorithm depthwise_input_gradient = algorithm<Depthwise, Primitive::input_gradient>();
const ConvAlgorithm depthwise_weight_gradient = algorithm<Depthwise, Primitive::weight_gradient>();

}  // namespace fastconv::cpu::FASTCONV_ISA
