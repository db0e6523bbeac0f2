// Average pooling, forward and backward. The divisor of a window follows torch: with count_include_pad what the window covers
// of the padded input, otherwise what it covers of the input.
#include "pool.h"
#include "pool_reduce.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

// The sum over the windows `above` of one column q of the gradient, each divided by its divisor. `known` is the number of the
// windows if it is known beforehand, with their rows' factors, else 0.
template <int known, class T>
FASTCONV_INLINE Vec<Compute<T>> column_terms(const PoolProblem& problem, const Axis& rows, const Range& above,
                                             const Compute<T>* row_factors, const T* gy, Vec<Compute<T>> factor, int n) {
  using C = Compute<T>;
  Vec<C> sum{};
  for (int64_t p = 0; p < (known ? known : above.end - above.begin); ++p) {
    const C row = known ? row_factors[p] : row_factor<C>(problem, rows.window(above.begin + p));
    sum += load_part(gy + (above.begin + p) * problem.q, n) / (splat(row) * factor);
  }
  return sum;
}

// NCHW, fixed windows of stride 1 or 2. A row of the gradient: first the windows' rows are summed into a line with borders,
// then for each of the positions congruent modulo the stride the windows' columns.
template <class T, int stride, int taps>
void backward_lines(const PoolProblem& problem, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t kernel = taps ? taps : columns.kernel;
  const int64_t before = (kernel - 1) / stride;  // a position sees the windows q - before … q
  const int64_t tile = (line_capacity<C> - before) / step * step / stride - 2 * step;
  const int64_t first = columns.before / stride, last = (problem.w - 1 + columns.before) / stride + 1;
  const bool past = std::is_same_v<T, C> && past_caches(gx, problem.n * problem.c * problem.h * problem.w * int64_t(sizeof(T)));
  parallel(threads, [&](int id, int parts) {
    alignas(64) C line[line_capacity<C>];
    alignas(64) C factors[line_capacity<C>];
    alignas(64) C out[line_capacity<C>];
    const Range mine = share(problem.n * problem.c * problem.h, id, parts);
    for (int64_t begin = first; begin < last; begin += tile) {
      const int64_t count = minimum(tile, last - begin), start = begin - before;
      const int64_t length = (count + step - 1) / step * step + before;
      for (int64_t i = 0; i < length + step; ++i)
        factors[i] = start + i >= 0 && start + i < problem.q ? column_factor<C>(problem, columns.window(start + i)) : C(1);
      // The columns of gx this tile gives.
      const int64_t from = maximum<int64_t>(begin * stride - columns.before, 0);
      const int64_t to = minimum((begin + count) * stride - columns.before, problem.w);
      int64_t plane = mine.begin / problem.h, h = mine.begin % problem.h;
      CoveringWalk covering(rows, h);
      Range summed = {-1, -1};  // the windows whose sums `out` has: rows that the same ones cover are alike
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const Range above = covering.range();
        const T* in = gy + plane * problem.p * problem.q;
        const bool same = above.begin == summed.begin && above.end == summed.end;
        summed = above;
        if (!same)
          with_counts(above.end - above.begin, 1, [&](auto known, auto) FASTCONV_INLINE_LAMBDA {
            C row_factors[known ? int(known) : 1];
            for (int p = 0; p < known; ++p) row_factors[p] = row_factor<C>(problem, rows.window(above.begin + p));
            fill_line(line, length, start, problem.q, C(0), [&](int64_t q, int n) FASTCONV_INLINE_LAMBDA {
              return column_terms<known>(problem, rows, above, row_factors, in + q, load(factors + (q - start)), n);
            });
          });
        for (int64_t j = 0; j < count && !same; j += step) {
          Vec<C> sums[stride] = {};
#pragma GCC unroll 2
          for (int phase = 0; phase < stride; ++phase)
#pragma GCC unroll 4
            for (int64_t s = last_tap(kernel, phase, stride); s >= 0; s -= stride)
              sums[phase] += load(line + j + before - s / stride);
          if constexpr (stride == 1) {
            store(out + j, sums[0]);
          } else {
            store(out + 2 * j, interleaved_low<C>(sums[0], sums[1]));
            store(out + 2 * j + step, interleaved_high<C>(sums[0], sums[1]));
          }
        }
        put_row(out + columns.before - begin * stride + from, gx + item * problem.w + from, to - from, past);
        if (++h == problem.h) ++plane, h = 0, summed = {-1, -1};
        covering.advance(h);
      }
    }
    end_stream();
  });
}

// NCHW, any windows: each adds its term to the columns it covers.
template <class T>
void backward_wide(const PoolProblem& problem, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  constexpr int64_t tile = line_capacity<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  parallel(threads, [&](int id, int parts) {
    alignas(64) C out[tile];
    const Range mine = share(problem.n * problem.c * problem.h, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t plane = item / problem.h, h = item % problem.h;
      const Range above = rows.covering(h);
      for (int64_t begin = 0; begin < problem.w; begin += tile) {
        const int64_t end = minimum(begin + tile, problem.w);
        for (int64_t w = 0; w < end - begin; ++w) out[w] = 0;
        for (int64_t q = columns.covering(begin).begin; q < columns.covering(end - 1).end; ++q) {
          const Span along = columns.window(q);
          C term = 0;
          for (int64_t p = above.begin; p < above.end; ++p)
            term += load_one(gy + (plane * problem.p + p) * problem.q + q) /
                    (row_factor<C>(problem, rows.window(p)) * column_factor<C>(problem, along));
          const int64_t stop = minimum(along.first + along.count, end) - begin;
          for (int64_t w = maximum(along.first, begin) - begin; w < stop; ++w) out[w] += term;
        }
        T* target = gx + item * problem.w + begin;
        for (int64_t w = 0; w < end - begin; w += lanes<C>)
          store_part(target + w, load(out + w), int(minimum<int64_t>(lanes<C>, end - begin - w)));
      }
    }
  });
}

// The windows that cover a position along one axis, and what they contribute to the divisor if all contribute the same.
template <class C>
struct Covering {
  Range windows;
  C factor;
  bool same;

  template <class Factor>
  Covering(const Range& covering, const Factor& factor_of) : windows(covering), factor(1), same(true) {
    if (windows.begin < windows.end) factor = factor_of(windows.begin);
    for (int64_t i = windows.begin + 1; i < windows.end; ++i) same &= factor_of(i) == factor;
  }
  Covering() = default;
};

// NHWC, any windows: each pixel sums the windows that cover it.
template <class T>
void backward_channels_last(const PoolProblem& problem, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const bool past = put_past_caches(gx, problem.n * problem.h * problem.w, problem.c);
  const auto factor_of_row = [&](int64_t p) { return row_factor<C>(problem, rows.window(p)); };
  const auto factor_of_column = [&](int64_t q) { return column_factor<C>(problem, columns.window(q)); };
  struct Row {
    const T* image;
    Covering<C> above;
  };
  const auto beside_at = [&](int64_t w) { return Covering<C>(columns.covering(w), factor_of_column); };
  const Lookup beside_of(problem.w, beside_at);
  share_channel_blocks<C>(
      problem.n, problem.h, problem.w, problem.c, threads,
      [&](int64_t n, int64_t h) {
        return Row{gy + n * problem.p * problem.q * problem.c, Covering<C>(rows.covering(h), factor_of_row)};
      },
      [&](const Row&, int64_t w) { return beside_of(w); },
      [&](int64_t in, const Row& row, const Covering<C>& beside, int64_t c, int64_t count) FASTCONV_INLINE_LAMBDA {
        const Covering<C>& above = row.above;
        const bool same = above.same && beside.same;  // then one division is enough
        each_vector<C>(count, [&](auto vectors, int64_t i, int m) FASTCONV_INLINE_LAMBDA {
          const Range down = above.windows, along = beside.windows;
          const auto at = [&](int64_t p, int64_t q) { return row.image + (p * problem.q + q) * problem.c + c + i; };
          T* const to = gx + in * problem.c + c + i;
          Vec<C> sums[vectors.count] = {};
          if (!same) {
            for (int64_t p = down.begin; p < down.end; ++p)
              for (int64_t q = along.begin; q < along.end; ++q) {
                const Vec<C> divisor = splat(factor_of_row(p) * factor_of_column(q));
                for (int v = 0; v < vectors.count; ++v) sums[v] += load_part(at(p, q) + v * step, m) / divisor;
              }
            for (int v = 0; v < vectors.count; ++v) put(to + v * step, sums[v], m, past);
            return;
          }
          with_counts(down.end - down.begin, along.end - along.begin, [&](auto high, auto wide) FASTCONV_INLINE_LAMBDA {
            for (int64_t p = down.begin; p < (high ? down.begin + high : down.end); ++p)
              for (int64_t q = along.begin; q < (wide ? along.begin + wide : along.end); ++q)
                for (int v = 0; v < vectors.count; ++v) sums[v] += load_part(at(p, q) + v * step, m);
          });
          const Vec<C> divisor = splat(above.factor * beside.factor);
          for (int v = 0; v < vectors.count; ++v) put(to + v * step, sums[v] / divisor, m, past);
        });
      });
}

template <class T>
void forward_of(const PoolProblem& problem, const void* x, void* y, int threads) {
  reduce<T, Mean<Compute<T>>>(problem, static_cast<const T*>(x), static_cast<T*>(y), threads);
}

template <class T>
void backward_of(const PoolProblem& problem, const void* gy, void* gx, int threads) {
  const T* from = static_cast<const T*>(gy);
  T* to = static_cast<T*>(gx);
  if (problem.layout == Layout::channels_last) return backward_channels_last(problem, from, to, threads);
  const bool lines = !problem.adaptive && problem.q >= lanes<Compute<T>> && problem.s <= line_capacity<Compute<T>> / 4;
  if constexpr (sizeof(T) == 4) {  // the usual kernels in the usual type
    if (lines && problem.stride_w == 1 && problem.s == 3) return backward_lines<T, 1, 3>(problem, from, to, threads);
    if (lines && problem.stride_w == 2 && problem.s == 2) return backward_lines<T, 2, 2>(problem, from, to, threads);
    if (lines && problem.stride_w == 2 && problem.s == 3) return backward_lines<T, 2, 3>(problem, from, to, threads);
  }
  if (lines && problem.stride_w == 1) return backward_lines<T, 1, 0>(problem, from, to, threads);
  if (lines && problem.stride_w == 2) return backward_lines<T, 2, 0>(problem, from, to, threads);
  return backward_wide(problem, from, to, threads);
}

}  // namespace

void average_forward(const PoolProblem& problem, const void* x, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_of<T>(with_fixed_windows(problem), x, y, threads))
}

void average_backward(const PoolProblem& problem, const void* gy, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, backward_of<T>(with_fixed_windows(problem), gy, gx, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
