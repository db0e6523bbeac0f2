// TEMPORARY: plain loops, to be removed when implicit_gemm lands.
#include "conv.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class T, class F>
void each_product(const ConvProblem& q, F f) {
  const int64_t cg = q.c / q.groups, kg = q.k / q.groups;
  for (int64_t n = 0; n < q.n; ++n)
    for (int64_t k = 0; k < q.k; ++k)
      for (int64_t i = 0; i < q.p; ++i)
        for (int64_t j = 0; j < q.q; ++j)
          for (int64_t c = 0; c < cg; ++c)
            for (int64_t r = 0; r < q.r; ++r)
              for (int64_t s = 0; s < q.s; ++s) {
                const int64_t h = i * q.stride_h - q.pad_top + r * q.dilation_h,
                              w = j * q.stride_w - q.pad_left + s * q.dilation_w;
                if (h < 0 || h >= q.h || w < 0 || w >= q.w) continue;
                const int64_t ci = k / kg * cg + c;
                const bool last = q.layout == Layout::channels_last;
                f(last ? ((n * q.h + h) * q.w + w) * q.c + ci : ((n * q.c + ci) * q.h + h) * q.w + w,
                  q.weight_layout == Layout::channels_last ? ((k * q.r + r) * q.s + s) * cg + c
                                                           : ((k * cg + c) * q.r + r) * q.s + s,
                  last ? ((n * q.p + i) * q.q + j) * q.k + k : ((n * q.k + k) * q.p + i) * q.q + j);
              }
}

template <class T>
void run(const ConvProblem& q, const ConvArgs& a, Primitive primitive) {
  auto at = [](const void* p) { return static_cast<T*>(const_cast<void*>(p)); };
  const bool last = q.layout == Layout::channels_last;
  if (primitive == Primitive::forward) {
    T *x = at(a.x), *w = at(a.w), *y = at(a.y);
    const int64_t total = q.n * q.k * q.p * q.q, pq = q.p * q.q;
    for (int64_t i = 0; i < total; ++i) y[i] = a.b ? at(a.b)[last ? i % q.k : i / pq % q.k] : T(0);
    each_product<T>(q, [&](int64_t i, int64_t j, int64_t o) { y[o] += x[i] * w[j]; });
  } else if (primitive == Primitive::input_gradient) {
    T *gy = at(a.gy), *w = at(a.w), *gx = at(a.gx);
    const int64_t total = q.n * q.c * q.h * q.w, hw = q.h * q.w;
    for (int64_t i = 0; i < total; ++i) gx[i] = a.b ? at(a.b)[last ? i % q.c : i / hw % q.c] : T(0);
    each_product<T>(q, [&](int64_t i, int64_t j, int64_t o) { gx[i] += gy[o] * w[j]; });
  } else {
    T *gy = at(a.gy), *x = at(a.x), *gw = at(a.gw), *gb = at(a.gb);
    for (int64_t i = 0; i < q.k * (q.c / q.groups) * q.r * q.s; ++i) gw[i] = 0;
    each_product<T>(q, [&](int64_t i, int64_t j, int64_t o) { gw[j] += gy[o] * x[i]; });
    if (gb) {
      const int64_t total = q.n * q.k * q.p * q.q, pq = q.p * q.q;
      for (int64_t i = 0; i < q.k; ++i) gb[i] = 0;
      for (int64_t i = 0; i < total; ++i) gb[last ? i % q.k : i / pq % q.k] += gy[i];
    }
  }
}

template <Primitive primitive>
void naive(const ConvProblem& q, const ConvArgs& a) {
  if (q.dtype == Dtype::float64)
    run<double>(q, a, primitive);
  else
    run<float>(q, a, primitive);
}
bool always(const ConvProblem&) { return true; }
int64_t no_workspace(const ConvProblem&, int) { return 0; }

}  // namespace

const ConvAlgorithm naive_forward = {"naive", Primitive::forward, always, always, no_workspace, naive<Primitive::forward>};
const ConvAlgorithm naive_input_gradient = {"naive",      Primitive::input_gradient,       always, always,
                                            no_workspace, naive<Primitive::input_gradient>};
const ConvAlgorithm naive_weight_gradient = {"naive",      Primitive::weight_gradient,       always, always,
                                             no_workspace, naive<Primitive::weight_gradient>};

}  // namespace fastconv::cpu::FASTCONV_ISA
