// Makes a ConvAlgorithm of two kernels, templates over float and double. A::gather computes a forward or an input gradient,
// which are one computation over different taps (conv_axis.h): `in` is x or gy, `out` is y or gx. A::reduce computes a weight
// gradient. A::gather_bytes and A::reduce_bytes say how much workspace they need.
#pragma once

#include "conv.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class A, Primitive PRIMITIVE>
struct GatherOrReduce {
  static constexpr bool forward = PRIMITIVE == Primitive::forward, weights = PRIMITIVE == Primitive::weight_gradient;

  template <class T>
  static int64_t bytes_of(const ConvProblem& q, int threads) {
    if constexpr (weights)
      return A::template reduce_bytes<T>(q, threads);
    else
      return A::template gather_bytes<T>(q, forward, threads);
  }

  template <class T>
  static void run_of(const ConvProblem& q, const ConvArgs& a) {
    const auto in = [](const void* p) { return static_cast<const T*>(p); };
    const auto out = [](void* p) { return static_cast<T*>(p); };
    if constexpr (weights)
      A::template reduce<T>(q, in(a.gy), in(a.x), out(a.gw), out(a.gb), a.workspace, a.threads);
    else
      A::template gather<T>(q, forward, in(forward ? a.x : a.gy), in(a.w), in(a.b), out(forward ? a.y : a.gx), a.workspace,
                            a.threads);
  }

  static bool applies(const ConvProblem& q) { return A::applies(q, PRIMITIVE); }
  static bool preferred(const ConvProblem& q) { return A::preferred(q, PRIMITIVE); }
  static int64_t workspace_bytes(const ConvProblem& q, int threads) {
    return q.dtype == Dtype::float64 ? bytes_of<double>(q, threads) : bytes_of<float>(q, threads);
  }
  static void run(const ConvProblem& q, const ConvArgs& a) {
    q.dtype == Dtype::float64 ? run_of<double>(q, a) : run_of<float>(q, a);
  }
};

template <class A, Primitive PRIMITIVE>
constexpr ConvAlgorithm algorithm() {
  using Of = GatherOrReduce<A, PRIMITIVE>;
  return {A::name, PRIMITIVE, Of::applies, Of::preferred, Of::workspace_bytes, Of::run};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
