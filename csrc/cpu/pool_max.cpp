// Max pooling, forward.
//
// As in torch, a NaN is greater than anything, also than an earlier NaN; of equal maxima the first in row-major order counts;
// a window that lies wholly in the padding gives -inf.
#include "pool.h"
#include "pool_reduce.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

// What a position is called while the maximum is sought: `row` times its tap in the window's rows plus `column` times its tap
// in the columns. This is the window index itself, or the distance in the plane from where the window starts.
template <MaxIndex kind>
struct Codes {
  int64_t row, column;

  explicit Codes(const PoolProblem& p)
      : row(kind == MaxIndex::window ? horizontal(p).positions()
            : p.adaptive             ? p.w
                                     : p.dilation_h * p.w),
        column(kind == MaxIndex::window || p.adaptive ? 1 : p.dilation_w) {}
};

// Whether every code fits the integers that go with floats, and is far from the limits of 64 bits.
bool codes_fit(const PoolProblem& p) {
  const auto reach = [](const Axis& axis) {
    return axis.adaptive ? double(axis.positions())
                         : double(axis.kernel) * double(axis.dilation) + double(axis.before) + double(axis.dilation);
  };
  return reach(vertical(p)) * double(p.w) + reach(horizontal(p)) < double(1 << 30);
}

template <class C>
FASTCONV_INLINE void take_larger(Vec<C>& best, Mask<C>& code, Vec<C> value, Mask<C> its_code) {
  const Mask<C> larger = (value > best) | (value != value);
  best = larger ? value : best;
  code = larger ? its_code : code;
}

// Codes of n outputs as indices: for a plane index, `origin` + lane * `stride` is where their windows start.
template <MaxIndex kind, class C>
FASTCONV_INLINE void store_index(IndexType<kind>* index, Mask<C> codes, int64_t origin, int64_t stride, int n) {
  constexpr int step = lanes<C>;
  if constexpr (kind == MaxIndex::window) {
    if (n == step) return store_codes<C>(index, codes);
    uint8_t bytes[step];
    store_codes<C>(bytes, codes);
    for (int i = 0; i < n; ++i) index[i] = bytes[i];
  } else {
    for (int i = 0; i < n; ++i) index[i] = origin + i * stride + codes[i];
  }
}

// Any problem, one output at a time.
template <class T, MaxIndex kind>
void forward_any(const PoolProblem& problem, const T* x, T* y, IndexType<kind>* index, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t pitch = columns.positions();
  const bool last = problem.layout == Layout::channels_last;
  const int64_t images = last ? problem.n : problem.n * problem.c, inner = last ? problem.c : 1;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(images * problem.p, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t image = item / problem.p, p = item % problem.p;
      const T* in = x + image * problem.h * problem.w * inner;
      const Span across = rows.window(p);
      for (int64_t q = 0; q < problem.q; ++q) {
        const Span along = columns.window(q);
        for (int64_t c = 0; c < inner; ++c) {
          C best = -C(__builtin_inf());
          // Of an empty window: where its first tap beyond the leading padding would be, which may exceed 64 bits.
          int64_t at = int64_t(uint64_t(across.first) * uint64_t(problem.w) + uint64_t(along.first));
          int64_t tap = int64_t(uint64_t(across.tap) * uint64_t(pitch) + uint64_t(along.tap));
          for (int64_t i = 0; i < across.count; ++i)
            for (int64_t j = 0; j < along.count; ++j) {
              const int64_t position = (across.first + i * across.step) * problem.w + along.first + j * along.step;
              const C value = load_one(in + position * inner + c);
              if (value > best || value != value) {
                best = value;
                at = position;
                tap = (across.tap + i) * pitch + along.tap + j;
              }
            }
          const int64_t out = (item * problem.q + q) * inner + c;
          store_one(y + out, best);
          index[out] = IndexType<kind>(kind == MaxIndex::plane ? at : tap);
        }
      }
    }
  });
}

constexpr int64_t ring_rows = 16;  // rows of a window that are kept as lines

// How many outputs of a row can be computed with all the rows of their windows kept as lines; 0: too many rows or columns.
template <class C>
int64_t ring_columns(const Axis& rows, const Axis& columns) {
  if (rows.adaptive || rows.kernel > ring_rows || rows.dilation > ring_rows) return 0;
  const int64_t slots = (rows.kernel - 1) * rows.dilation + 1;
  return slots > ring_rows ? 0 : tile_columns<C>(columns, 2 * line_capacity<C> / slots - 8 * lanes<C>);
}

// NCHW, fixed windows: vectorised along the width, with the rows of the windows kept as lines with borders. With a stride of 2
// a line is kept as its even and its odd columns, so that every tap is a vector of neighbours. `taps` is the width of a kernel
// without dilation if known beforehand, else 0.
template <class T, MaxIndex kind, int fixed_stride, int taps>
void forward_lines(const PoolProblem& problem, const T* x, T* y, IndexType<kind>* index, int threads) {
  using C = Compute<T>;
  using Code = CodeOf<C>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Codes<kind> codes(problem);
  const int64_t width = problem.w, slots = (rows.kernel - 1) * rows.dilation + 1, tile = ring_columns<C>(rows, columns);
  const int64_t pitch = 2 * line_capacity<C> / slots / (4 * step) * (4 * step);
  const int64_t kernel = taps ? taps : columns.kernel;
  parallel(threads, [&](int id, int parts) {
    alignas(64) C lines[2 * line_capacity<C>];
    alignas(64) C whole[fixed_stride == 2 ? 2 * line_capacity<C> : 1];
    alignas(64) Code first_taps[line_capacity<C> + step];
    int64_t kept[ring_rows];  // which row of the input each line has
    const Range mine = share(problem.n * problem.c * problem.p, id, parts);
    for (int64_t first = 0; first < problem.q; first += tile) {
      const int64_t count = minimum(minimum(tile, line_capacity<C>), problem.q - first), start = columns.start(first);
      const int64_t length =
          ((count + step - 1) / step * step - 1) * columns.stride + (columns.kernel - 1) * columns.dilation + 1 + step;
      for (int64_t j = 0; j < count + step; ++j)
        first_taps[j] = j < count ? Code(columns.window(first + j).tap * codes.column) : 0;
      int64_t kept_plane = -1;
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const int64_t plane = item / problem.p, p = item % problem.p;
        const Span across = rows.window(p);
        if (plane != kept_plane)
          for (int64_t i = 0; i < slots; ++i) kept[i] = -1;
        kept_plane = plane;
        for (int64_t i = 0; i < across.count; ++i) {
          const int64_t row = across.first + i * across.step, slot = row % slots;
          if (kept[slot] == row) continue;
          kept[slot] = row;
          const T* from = x + (plane * problem.h + row) * width;
          C* line = lines + slot * pitch;
          fill_line(fixed_stride == 2 ? whole : line, length, start, width, -C(__builtin_inf()),
                    [&](int64_t column, int n) FASTCONV_INLINE_LAMBDA { return load_part(from + column, n); });
          if constexpr (fixed_stride == 2)
            for (int64_t i = 0; i < length; i += 2 * step) {
              const Vec<C> a = load(whole + i), b = load(whole + i + step);
              store(line + i / 2, even_lanes<C>(a, b));
              store(line + pitch / 2 + i / 2, odd_lanes<C>(a, b));
            }
        }
        const C* line_of[ring_rows];
        for (int64_t i = 0; i < across.count; ++i) line_of[i] = lines + (across.first + i * across.step) % slots * pitch;
        const int64_t out = item * problem.q + first;
        for (int64_t j = 0; j < count; j += step) {
          Vec<C> best = splat(-C(__builtin_inf()));
          Mask<C> code = load(first_taps + j) + Code(across.tap * codes.row);
          for (int64_t i = 0; i < across.count; ++i) {
            Mask<C> its_code = splat_code<C>((across.tap + i) * codes.row);
#pragma GCC unroll 3
            for (int64_t s = 0; s < kernel; ++s) {
              const int64_t t = taps ? s : s * columns.dilation;
              const Vec<C> value = fixed_stride == 2
                                       ? load(line_of[i] + j + t % 2 * (pitch / 2) + t / 2)
                                       : load_strided<fixed_stride>(line_of[i] + j * columns.stride + t, columns.stride);
              take_larger<C>(best, code, value, its_code);
              its_code += splat_code<C>(codes.column);
            }
          }
          const int n = int(minimum<int64_t>(step, count - j));
          store_part(y + out + j, best, n);
          store_index<kind, C>(index + out + j, code, rows.start(p) * width + start + j * columns.stride, columns.stride, n);
        }
      }
    }
  });
}

// NHWC, any windows whose codes fit.
template <class T, MaxIndex kind>
void forward_channels_last(const PoolProblem& problem, const T* x, T* y, IndexType<kind>* index, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Codes<kind> codes(problem);
  const int64_t pixel = problem.c, row = problem.w * pixel;
  struct Row {
    const T* image;
    Span across;
    int64_t start;  // of the windows, in the plane
  };
  struct Column {
    Span along;
    int64_t start;
  };
  share_channel_blocks<C>(
      problem.n, problem.p, problem.q, problem.c, threads,
      [&](int64_t n, int64_t p) { return Row{x + n * problem.h * row, rows.window(p), rows.start(p) * problem.w}; },
      [&](const Row&, int64_t q) { return Column{columns.window(q), columns.start(q)}; },
      [&](int64_t out, const Row& at, const Column& column, int64_t c, int64_t count) FASTCONV_INLINE_LAMBDA {
        const Span across = at.across, along = column.along;
        each_vector<C>(count, [&](auto vectors, int64_t i, int m) FASTCONV_INLINE_LAMBDA {
          Vec<C> best[vectors.count];
          Mask<C> code[vectors.count];
          for (int v = 0; v < vectors.count; ++v) {
            best[v] = splat(-C(__builtin_inf()));
            code[v] = splat_code<C>(across.tap * codes.row + along.tap * codes.column);
          }
          for (int64_t r = 0; r < across.count; ++r) {
            const T* from = at.image + (across.first + r * across.step) * row + along.first * pixel + c + i;
            const int64_t row_code = (across.tap + r) * codes.row;
            for (int64_t s = 0; s < along.count; ++s, from += along.step * pixel) {
              const Mask<C> its_code = splat_code<C>(row_code + (along.tap + s) * codes.column);
              for (int v = 0; v < vectors.count; ++v) take_larger<C>(best[v], code[v], load_part(from + v * step, m), its_code);
            }
          }
          for (int v = 0; v < vectors.count; ++v) {
            const int64_t to = out * pixel + c + i + v * step;
            store_part(y + to, best[v], m);
            store_index<kind, C>(index + to, code[v], at.start + column.start, 0, m);
          }
        });
      });
}

template <class T, MaxIndex kind>
void forward_with_index(const PoolProblem& problem, const T* x, T* y, IndexType<kind>* index, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  if (!codes_fit(problem)) return forward_any<T, kind>(problem, x, y, index, threads);
  if (problem.layout == Layout::channels_last) return forward_channels_last<T, kind>(problem, x, y, index, threads);
  const bool wide = problem.q < lanes<C> / 2 && problem.s >= lanes<C>;  // would leave lanes empty
  if (ring_columns<C>(rows, columns) <= 0 || wide) return forward_any<T, kind>(problem, x, y, index, threads);
  if constexpr (sizeof(T) == 4) {  // the usual kernels in the usual type
    const int64_t taps = columns.dilation == 1 ? columns.kernel : 0;
    if (columns.stride == 1 && taps == 3) return forward_lines<T, kind, 1, 3>(problem, x, y, index, threads);
    if (columns.stride == 2 && taps == 2) return forward_lines<T, kind, 2, 2>(problem, x, y, index, threads);
    if (columns.stride == 2 && taps == 3) return forward_lines<T, kind, 2, 3>(problem, x, y, index, threads);
  }
  if (columns.stride == 1) return forward_lines<T, kind, 1, 0>(problem, x, y, index, threads);
  if (columns.stride == 2) return forward_lines<T, kind, 2, 0>(problem, x, y, index, threads);
  return forward_lines<T, kind, 0, 0>(problem, x, y, index, threads);
}

template <class T>
void forward_of(const PoolProblem& problem, const void* x, void* y, void* index, MaxIndex kind, int threads) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  if (kind == MaxIndex::none) reduce<T, Maximum<Compute<T>>>(problem, from, to, threads);
  if (kind == MaxIndex::window)
    forward_with_index<T, MaxIndex::window>(problem, from, to, static_cast<uint8_t*>(index), threads);
  if (kind == MaxIndex::plane) forward_with_index<T, MaxIndex::plane>(problem, from, to, static_cast<int64_t*>(index), threads);
}

}  // namespace

void max_forward(const PoolProblem& problem, const void* x, void* y, void* index, MaxIndex kind, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_of<T>(with_fixed_windows(problem), x, y, index, kind, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
