// Algorithm "depthwise": convolution with one input channel a group. Forward, input gradient, weight gradient.
#include "conv_depthwise.h"

#include "conv.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <Primitive PRIMITIVE>
bool applies(const ConvProblem& q) {
  return q.c == q.groups && worth_padding(q, PRIMITIVE);
}
bool preferred(const ConvProblem&) { return true; }

template <class T>
int64_t workspace_of(const ConvProblem& q, Primitive primitive, int threads) {
  if (primitive == Primitive::weight_gradient) return depthwise_gradient_bytes<T>(q, threads);
  const bool last = q.layout == Layout::channels_last, forward = primitive == Primitive::forward;
  return (last ? depthwise_pixels_bytes<T> : depthwise_planes_bytes<T>)(q, forward, threads);
}

template <class T>
void run_of(const ConvProblem& q, Primitive primitive, const ConvArgs& a) {
  auto in = [](const void* p) { return static_cast<const T*>(p); };
  auto out = [](void* p) { return static_cast<T*>(p); };
  if (primitive == Primitive::weight_gradient)
    return depthwise_gradient<T>(q, in(a.gy), in(a.x), out(a.gw), out(a.gb), a.workspace, a.threads);
  const bool last = q.layout == Layout::channels_last, forward = primitive == Primitive::forward;
  (last ? depthwise_pixels<T> : depthwise_planes<T>)(q, forward, in(forward ? a.x : a.gy), in(a.w), in(a.b),
                                                     out(forward ? a.y : a.gx), a.workspace, a.threads);
}

template <Primitive PRIMITIVE>
int64_t workspace_bytes(const ConvProblem& q, int threads) {
  return q.dtype == Dtype::float64 ? workspace_of<double>(q, PRIMITIVE, threads) : workspace_of<float>(q, PRIMITIVE, threads);
}

template <Primitive PRIMITIVE>
void run(const ConvProblem& q, const ConvArgs& a) {
  q.dtype == Dtype::float64 ? run_of<double>(q, PRIMITIVE, a) : run_of<float>(q, PRIMITIVE, a);
}

template <Primitive PRIMITIVE>
constexpr ConvAlgorithm algorithm = {"depthwise",   PRIMITIVE, applies<PRIMITIVE>, preferred, workspace_bytes<PRIMITIVE>,
                                     run<PRIMITIVE>};

}  // namespace

const ConvAlgorithm depthwise_forward = algorithm<Primitive::forward>;
const ConvAlgorithm depthwise_input_gradient = algorithm<Primitive::input_gradient>;
const ConvAlgorithm depthwise_weight_gradient = algorithm<Primitive::weight_gradient>;

}  // namespace fastconv::cpu::FASTCONV_ISA
