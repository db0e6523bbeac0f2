// Average pooling, forward and backward. The divisor of a window follows torch: with count_include_pad what the window covers
// of the padded input, otherwise what it covers of the input.
#include "pool.h"
#include "pool_reduce.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

// The sum over the windows `above` of one column q of the gradient, each divided by its divisor.
template <class T>
FASTCONV_INLINE Vec<Compute<T>> column_terms(const PoolProblem& problem, const Axis& rows, const Range& above, const T* gy,
                                             Vec<Compute<T>> factor, int n) {
  using C = Compute<T>;
  Vec<C> sum{};
  for (int64_t p = above.begin; p < above.end; ++p)
    sum += load_part(gy + p * problem.q, n) / (splat(row_factor<C>(problem, rows.window(p))) * factor);
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
          fill_line(line, length, start, problem.q, C(0), [&](int64_t q, int n) FASTCONV_INLINE_LAMBDA {
            return column_terms(problem, rows, above, in + q, load(factors + (q - start)), n);
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

// NHWC, any windows: each pixel sums the windows that cover it.
template <class T>
void backward_channels_last(const PoolProblem& problem, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const bool past = put_past_caches(gx, problem.n * problem.h * problem.w, problem.c);
  struct Row {
    const T* image;
    Range above;
  };
  struct Column {
    Range beside;
    C common;   // the windows' divisor, if they all have
    bool same;  // the same: then one division is enough
  };
  const auto factor = [&](int64_t p, int64_t q) {
    return row_factor<C>(problem, rows.window(p)) * column_factor<C>(problem, columns.window(q));
  };
  share_channel_blocks<C>(
      problem.n, problem.h, problem.w, problem.c, threads,
      [&](int64_t n, int64_t h) { return Row{gy + n * problem.p * problem.q * problem.c, rows.covering(h)}; },
      [&](const Row& row, int64_t w) {
        const Range above = row.above, beside = columns.covering(w);
        if (above.begin >= above.end || beside.begin >= beside.end) return Column{beside, 1, true};
        const C common = factor(above.begin, beside.begin);
        bool same = true;
        for (int64_t p = above.begin + 1; p < above.end; ++p) same &= factor(p, beside.begin) == common;
        for (int64_t q = beside.begin + 1; q < beside.end; ++q) same &= factor(above.begin, q) == common;
        return Column{beside, common, same};
      },
      [&](int64_t in, const Row& row, const Column& column, int64_t c, int64_t count) FASTCONV_INLINE_LAMBDA {
        each_vector<C>(count, [&](auto vectors, int64_t i, int m) FASTCONV_INLINE_LAMBDA {
          Vec<C> sums[vectors.count] = {};
          for (int64_t p = row.above.begin; p < row.above.end; ++p) {
            const T* from = row.image + (p * problem.q + column.beside.begin) * problem.c + c + i;
            for (int64_t q = column.beside.begin; q < column.beside.end; ++q, from += problem.c) {
              if (column.same) {
                for (int v = 0; v < vectors.count; ++v) sums[v] += load_part(from + v * step, m);
              } else {
                const Vec<C> divisor = splat(factor(p, q));
                for (int v = 0; v < vectors.count; ++v) sums[v] += load_part(from + v * step, m) / divisor;
              }
            }
          }
          const Vec<C> divisor = splat(column.common);
          for (int v = 0; v < vectors.count; ++v)
            put(gx + in * problem.c + c + i + v * step, column.same ? sums[v] / divisor : sums[v], m, past);
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
