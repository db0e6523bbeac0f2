// Forward pooling that needs no positions: each output is the reduction of a window, by maximum or by sum.
//
// NCHW: the rows of a window are combined first, vectorised along the width, into a line with borders; then the line's columns.
// Wide windows are reduced row by row instead. NHWC: vectorised along the channels. No result depends on how outputs are
// shared.
#pragma once

#include "parallel.h"
#include "pool_vectors.h"
#include "pool_windows.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class C>
struct Maximum {
  static C identity() { return -C(__builtin_inf()); }
  static FASTCONV_INLINE Vec<C> combine(Vec<C> best, Vec<C> value) {
    const Vec<C> larger = value > best ? value : best;
    return value != value ? value : larger;
  }
  static FASTCONV_INLINE C combine(C best, C value) { return value > best || value != value ? value : best; }
  static FASTCONV_INLINE Vec<C> finish(Vec<C> best, Vec<C>) { return best; }
};

template <class C>
struct Mean {
  static C identity() { return 0; }
  static FASTCONV_INLINE Vec<C> combine(Vec<C> sum, Vec<C> value) { return sum + value; }
  static FASTCONV_INLINE C combine(C sum, C value) { return sum + value; }
  // A division, not a product with the reciprocal: exact quotients come out exact.
  static FASTCONV_INLINE Vec<C> finish(Vec<C> sum, Vec<C> divisor) { return sum / divisor; }
};

// The divisor of the window at rows `across` and columns `along` is the product of two factors, one of each axis.
template <class C>
C row_factor(const PoolProblem& problem, const Span& across) {
  return problem.divisor ? C(problem.divisor) : C(across.divisor);
}
template <class C>
C column_factor(const PoolProblem& problem, const Span& along) {
  return problem.divisor ? C(1) : C(along.divisor);
}

// How many outputs can be computed from a line of `capacity` elements: a multiple of the lanes. 0: not even one vector.
template <class C>
int64_t tile_columns(const Axis& columns, int64_t capacity) {
  if (columns.adaptive || columns.kernel > capacity || columns.dilation > capacity || columns.stride > capacity) return 0;
  const int64_t room = capacity - (columns.kernel - 1) * columns.dilation - lanes<C> * (columns.stride + 2);
  return room < 0 ? 0 : (room / columns.stride + 1) / lanes<C> * lanes<C>;
}

// NCHW, fixed windows, a line at a time.
template <class T, class Op, int fixed_stride>
void reduce_lines(const PoolProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t width = problem.w, tile = tile_columns<C>(columns, line_capacity<C>);
  const bool past = put_past_caches(y, problem.n * problem.c * problem.p, problem.q);
  parallel(threads, [&](int id, int parts) {
    alignas(64) C line[line_capacity<C>];
    alignas(64) C factors[line_capacity<C>];
    const Range mine = share(problem.n * problem.c * problem.p, id, parts);
    for (int64_t first = 0; first < problem.q; first += tile) {
      const int64_t count = minimum(tile, problem.q - first), start = columns.start(first);
      const int64_t length =
          ((count + step - 1) / step * step - 1) * columns.stride + (columns.kernel - 1) * columns.dilation + 1 + step;
      for (int64_t j = 0; j < count + step; ++j)
        factors[j] = j < count ? column_factor<C>(problem, columns.window(first + j)) : C(1);
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const int64_t plane = item / problem.p, p = item % problem.p;
        const Span across = rows.window(p);
        const T* top = x + (plane * problem.h + across.first) * width;
        fill_line(line, length, start, width, Op::identity(), [&](int64_t column, int n) FASTCONV_INLINE_LAMBDA {
          if (across.count == 0) return splat(Op::identity());
          Vec<C> out = load_part(top + column, n);
          for (int64_t i = 1; i < across.count; ++i)
            out = Op::combine(out, load_part(top + i * across.step * width + column, n));
          return out;
        });
        const Vec<C> factor = splat(row_factor<C>(problem, across));
        T* to = y + item * problem.q + first;
        for (int64_t j = 0; j < count; j += step) {
          Vec<C> out = splat(Op::identity());
          for (int64_t s = 0; s < columns.kernel; ++s)
            out =
                Op::combine(out, load_strided<fixed_stride>(line + j * columns.stride + s * columns.dilation, columns.stride));
          put(to + j, Op::finish(out, factor * load(factors + j)), int(minimum<int64_t>(step, count - j)), past);
        }
      }
    }
    end_stream();
  });
}

// The reduction of n consecutive elements.
template <class T, class Op>
FASTCONV_INLINE Vec<Compute<T>> reduce_row(const T* row, int64_t n, Vec<Compute<T>> identity) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  Vec<C> sums[4] = {identity, identity, identity, identity};
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step)
    for (int j = 0; j < 4; ++j) sums[j] = Op::combine(sums[j], load(row + i + j * step));
  for (; i + step <= n; i += step) sums[0] = Op::combine(sums[0], load(row + i));
  if (i < n) {
    const Mask<C> inside = lane_numbers<C>() < splat_code<C>(n - i);
    sums[1] = Op::combine(sums[1], inside ? load_first(row + i, int(n - i)) : identity);
  }
  return Op::combine(Op::combine(sums[0], sums[1]), Op::combine(sums[2], sums[3]));
}

// NCHW, any windows, one output at a time: for windows of many columns.
template <class T, class Op>
void reduce_wide(const PoolProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c * problem.p, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t plane = item / problem.p, p = item % problem.p;
      const Span across = rows.window(p);
      for (int64_t q = 0; q < problem.q; ++q) {
        const Span along = columns.window(q);
        const T* top = x + (plane * problem.h + across.first) * problem.w + along.first;
        const int64_t row = across.step * problem.w;
        C total = Op::identity();
        if (along.count < lanes<C> || along.step != 1) {
          for (int64_t i = 0; i < across.count; ++i)
            for (int64_t j = 0; j < along.count; ++j) total = Op::combine(total, load_one(top + i * row + j * along.step));
        } else {
          const Vec<C> identity = splat(Op::identity());
          Vec<C> sums = identity;
          if (along.count == row)
            sums = reduce_row<T, Op>(top, across.count * row, identity);  // the rows follow each other
          else
            for (int64_t i = 0; i < across.count; ++i)
              sums = Op::combine(sums, reduce_row<T, Op>(top + i * row, along.count, identity));
          for (int half = lanes<C> / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) sums[i] = Op::combine(C(sums[i]), C(sums[i + half]));
          total = sums[0];
        }
        const C divisor = row_factor<C>(problem, across) * column_factor<C>(problem, along);
        store_one(y + item * problem.q + q, C(Op::finish(splat(total), splat(divisor))[0]));
      }
    }
  });
}

// NHWC: `vectors` vectors of channels of one output, of which the last has n channels if vectors is 1.
template <class T, class Op, int vectors>
FASTCONV_INLINE void reduce_channels(const T* x, int64_t row, const Span& across, int64_t pixel, const Span& along,
                                     Vec<Compute<T>> divisor, T* y, int n, bool past) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  Vec<C> total[vectors];
  for (int v = 0; v < vectors; ++v) total[v] = splat(Op::identity());
  for (int64_t i = 0; i < across.count; ++i) {
    const T* from = x + (across.first + i * across.step) * row + along.first * pixel;
    Vec<C> sums[vectors];
    for (int v = 0; v < vectors; ++v) sums[v] = splat(Op::identity());
    for (int64_t j = 0; j < along.count; ++j, from += along.step * pixel)
      for (int v = 0; v < vectors; ++v) sums[v] = Op::combine(sums[v], load_part(from + v * step, n));
    for (int v = 0; v < vectors; ++v) total[v] = Op::combine(total[v], sums[v]);
  }
  for (int v = 0; v < vectors; ++v) put(y + v * step, Op::finish(total[v], divisor), n, past);
}

template <class T, class Op>
void reduce_channels_last(const PoolProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t pixel = problem.c, row = problem.w * pixel;
  const bool past = put_past_caches(y, problem.n * problem.p * problem.q, pixel);
  struct Row {
    const T* image;
    Span across;
  };
  share_channel_blocks<C>(
      problem.n, problem.p, problem.q, problem.c, threads,
      [&](int64_t n, int64_t p) { return Row{x + n * problem.h * row, rows.window(p)}; },
      [&](const Row&, int64_t q) { return columns.window(q); },
      [&](int64_t out, const Row& at, const Span& along, int64_t c, int64_t count) FASTCONV_INLINE_LAMBDA {
        const Vec<C> divisor = splat(row_factor<C>(problem, at.across) * column_factor<C>(problem, along));
        each_vector<C>(count, [&](auto vectors, int64_t i, int m) FASTCONV_INLINE_LAMBDA {
          reduce_channels<T, Op, vectors.count>(at.image + c + i, row, at.across, pixel, along, divisor,
                                                y + out * pixel + c + i, m, past);
        });
      });
}

template <class T, class Op>
void reduce(const PoolProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  if (problem.layout == Layout::channels_last) return reduce_channels_last<T, Op>(problem, x, y, threads);
  const Axis columns = horizontal(problem);
  const bool lines = tile_columns<C>(columns, line_capacity<C>) > 0;
  const bool few = problem.q < lanes<C> || columns.stride > 2;
  if (!lines || (few && columns.kernel >= lanes<C> && columns.dilation == 1)) return reduce_wide<T, Op>(problem, x, y, threads);
  if (columns.stride == 1) return reduce_lines<T, Op, 1>(problem, x, y, threads);
  if (columns.stride == 2) return reduce_lines<T, Op, 2>(problem, x, y, threads);
  return reduce_lines<T, Op, 0>(problem, x, y, threads);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
