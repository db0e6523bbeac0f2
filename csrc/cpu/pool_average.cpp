// Average pooling, forward and backward. The divisor of a window follows torch: with count_include_pad what the window covers
// of the padded input, otherwise what it covers of the input.
#include "parallel.h"
#include "pool.h"
#include "pool_windows.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

template <class C>
C divisor_of(const PoolProblem& problem, const Span& across, const Span& along) {
  return C(problem.divisor ? problem.divisor : across.divisor * along.divisor);
}

// Any problem, one output at a time.
template <class T>
void forward_any(const PoolProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Planes from = input_planes(problem), to = output_planes(problem);
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c * problem.p, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t plane = item / problem.p, p = item % problem.p;
      const T* in = x + from.offset(plane);
      const Span across = rows.window(p);
      for (int64_t q = 0; q < problem.q; ++q) {
        const Span along = columns.window(q);
        C sum = 0;
        for (int64_t i = 0; i < across.count; ++i) {
          C row = 0;
          for (int64_t j = 0; j < along.count; ++j)
            row += load_one(in + ((across.first + i) * problem.w + along.first + j) * from.pixel());
          sum += row;
        }
        const bool empty = across.count == 0 || along.count == 0;
        store_one(y + to.offset(plane) + (p * problem.q + q) * to.pixel(),
                  empty ? C(0) : sum / divisor_of<C>(problem, across, along));
      }
    }
  });
}

template <class T>
void backward_any(const PoolProblem& problem, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Planes from = output_planes(problem), to = input_planes(problem);
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c * problem.h, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t plane = item / problem.h, h = item % problem.h;
      const T* in = gy + from.offset(plane);
      const Range above = rows.covering(h);
      for (int64_t w = 0; w < problem.w; ++w) {
        const Range beside = columns.covering(w);
        C sum = 0;
        for (int64_t p = above.begin; p < above.end; ++p)
          for (int64_t q = beside.begin; q < beside.end; ++q)
            sum +=
                load_one(in + (p * problem.q + q) * from.pixel()) / divisor_of<C>(problem, rows.window(p), columns.window(q));
        store_one(gx + to.offset(plane) + (h * problem.w + w) * to.pixel(), sum);
      }
    }
  });
}

template <class T>
void forward_of(const PoolProblem& problem, const void* x, void* y, int threads) {
  forward_any<T>(problem, static_cast<const T*>(x), static_cast<T*>(y), threads);
}

template <class T>
void backward_of(const PoolProblem& problem, const void* gy, void* gx, int threads) {
  backward_any<T>(problem, static_cast<const T*>(gy), static_cast<T*>(gx), threads);
}

}  // namespace

void average_forward(const PoolProblem& problem, const void* x, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_of<T>(problem, x, y, threads))
}

void average_backward(const PoolProblem& problem, const void* gy, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, backward_of<T>(problem, gy, gx, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
