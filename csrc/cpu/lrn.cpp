// Local response normalisation, forward and backward.
#include "lrn.h"

#include <cmath>

#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

// k + alpha * sum of x^2 over the window of channel c of one pixel.
template <class T>
Compute<T> base(const LrnProblem& problem, const T* pixel, int64_t step, int64_t c) {
  using C = Compute<T>;
  const int64_t begin = maximum<int64_t>(c - problem.size / 2, 0), end = minimum(c + (problem.size - 1) / 2 + 1, problem.c);
  C sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const C value = load_one(pixel + i * step);
    sum = fma(value, value, sum);
  }
  return fma(C(problem.alpha), sum, C(problem.k));
}

template <class T, class Body>
void each_pixel(const LrnProblem& problem, int threads, const Body& body) {
  const bool last = problem.layout == Layout::channels_last;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.spatial, id, parts);
    for (int64_t i = mine.begin; i < mine.end; ++i)
      body(last ? i * problem.c : i / problem.spatial * problem.c * problem.spatial + i % problem.spatial,
           last ? 1 : problem.spatial);
  });
}

template <class T>
void forward_of(const LrnProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  each_pixel<T>(problem, threads, [&](int64_t offset, int64_t step) {
    for (int64_t c = 0; c < problem.c; ++c)
      store_one(y + offset + c * step,
                load_one(x + offset + c * step) * C(::pow(base(problem, x + offset, step, c), -problem.beta)));
  });
}

// With d the base: gx[i] = gy[i] d[i]^-beta - 2 alpha beta x[i] sum over j whose window has i of gy[j] x[j] d[j]^(-beta - 1).
template <class T>
void backward_of(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  each_pixel<T>(problem, threads, [&](int64_t offset, int64_t step) {
    for (int64_t c = 0; c < problem.c; ++c) {
      const int64_t begin = maximum<int64_t>(c - (problem.size - 1) / 2, 0), end = minimum(c + problem.size / 2 + 1, problem.c);
      C sum = 0, own = 0;
      for (int64_t j = begin; j < end; ++j) {
        const C d = base(problem, x + offset, step, j), g = load_one(gy + offset + j * step) * C(::pow(d, -problem.beta));
        if (j == c) own = g;
        sum += g * load_one(x + offset + j * step) / d;
      }
      store_one(gx + offset + c * step, fma(C(-2 * problem.alpha * problem.beta) * sum, load_one(x + offset + c * step), own));
    }
  });
}

}  // namespace

void lrn_forward(const LrnProblem& problem, const void* x, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_of<T>(problem, static_cast<const T*>(x), static_cast<T*>(y), threads))
}

void lrn_backward(const LrnProblem& problem, const void* x, const void* gy, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype,
                     backward_of<T>(problem, static_cast<const T*>(x), static_cast<const T*>(gy), static_cast<T*>(gx), threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
