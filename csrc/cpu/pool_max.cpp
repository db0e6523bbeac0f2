// Max pooling: forward with the positions of the maxima, and the two derivatives that use them.
//
// As in torch, a NaN is greater than anything, also than an earlier NaN; of equal maxima the first in row-major order counts;
// a window that lies wholly in the padding gives -inf.
#include "parallel.h"
#include "pool.h"
#include "pool_windows.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

template <MaxIndex kind>
struct IndexOf {
  using type = int64_t;
};
template <>
struct IndexOf<MaxIndex::window> {
  using type = uint8_t;
};

// Any problem, one output at a time.
template <class T, MaxIndex kind>
void forward_any(const PoolProblem& problem, const T* x, T* y, typename IndexOf<kind>::type* index, int threads) {
  using C = Compute<T>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Planes from = input_planes(problem), to = output_planes(problem);
  const int64_t pitch = columns.positions();
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c * problem.p, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t plane = item / problem.p, p = item % problem.p;
      const T* in = x + from.offset(plane);
      const Span across = rows.window(p);
      for (int64_t q = 0; q < problem.q; ++q) {
        const Span along = columns.window(q);
        C best = -C(__builtin_inf());
        int64_t at = across.first * problem.w + along.first, tap = across.tap * pitch + along.tap;
        for (int64_t i = 0; i < across.count; ++i)
          for (int64_t j = 0; j < along.count; ++j) {
            const int64_t position = (across.first + i * across.step) * problem.w + along.first + j * along.step;
            const C value = load_one(in + position * from.pixel());
            if (value > best || value != value) {
              best = value;
              at = position;
              tap = (across.tap + i) * pitch + along.tap + j;
            }
          }
        const int64_t out = to.offset(plane) + (p * problem.q + q) * to.pixel();
        store_one(y + out, best);
        if (kind == MaxIndex::plane) index[out] = at;
        if (kind == MaxIndex::window) index[out] = uint8_t(tap);
      }
    }
  });
}

// Where an index of output (p, q) points in the input plane: -1 if nowhere.
template <MaxIndex kind>
int64_t position_of(const PoolProblem& problem, const Axis& rows, const Axis& columns, int64_t p, int64_t q, int64_t index) {
  if (kind == MaxIndex::plane) return index < 0 || index >= problem.h * problem.w ? -1 : index;
  const int64_t pitch = columns.positions();
  const Span across = rows.window(p), along = columns.window(q);
  const int64_t i = index / pitch - across.tap, j = index % pitch - along.tap;
  if (i < 0 || i >= across.count || j < 0 || j >= along.count) return -1;
  return (across.first + i * across.step) * problem.w + along.first + j * along.step;
}

// Any problem and any indices inside the plane, one plane at a time, in the order of the outputs.
template <class T, MaxIndex kind>
bool backward_any(const PoolProblem& problem, const T* gy, const typename IndexOf<kind>::type* index, T* gx, int threads) {
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Planes from = output_planes(problem), to = input_planes(problem);
  bool valid = true;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c, id, parts);
    bool mine_valid = true;
    for (int64_t plane = mine.begin; plane < mine.end; ++plane) {
      T* out = gx + to.offset(plane);
      for (int64_t i = 0; i < to.size; ++i) out[i * to.pixel()] = T{};
      for (int64_t p = 0; p < problem.p; ++p)
        for (int64_t q = 0; q < problem.q; ++q) {
          if (rows.window(p).count == 0 || columns.window(q).count == 0) continue;
          const int64_t in = from.offset(plane) + (p * problem.q + q) * from.pixel();
          const int64_t position = position_of<kind>(problem, rows, columns, p, q, index[in]);
          if (position < 0) {
            mine_valid = false;
            continue;
          }
          T* target = out + position * to.pixel();
          store_one(target, load_one(target) + load_one(gy + in));
        }
    }
    if (!mine_valid) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

template <class T, MaxIndex kind>
bool gather_any(const PoolProblem& problem, const T* v, const typename IndexOf<kind>::type* index, T* y, int threads) {
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Planes from = input_planes(problem), to = output_planes(problem);
  bool valid = true;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * problem.c, id, parts);
    bool mine_valid = true;
    for (int64_t plane = mine.begin; plane < mine.end; ++plane)
      for (int64_t p = 0; p < problem.p; ++p)
        for (int64_t q = 0; q < problem.q; ++q) {
          const int64_t out = to.offset(plane) + (p * problem.q + q) * to.pixel();
          if (rows.window(p).count == 0 || columns.window(q).count == 0) {
            y[out] = T{};
            continue;
          }
          const int64_t position = position_of<kind>(problem, rows, columns, p, q, index[out]);
          if (position < 0)
            mine_valid = false;
          else
            y[out] = v[from.offset(plane) + position * from.pixel()];
        }
    if (!mine_valid) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

template <class T>
void forward_of(const PoolProblem& problem, const void* x, void* y, void* index, MaxIndex kind, int threads) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  if (kind == MaxIndex::none) forward_any<T, MaxIndex::none>(problem, from, to, nullptr, threads);
  if (kind == MaxIndex::window) forward_any<T, MaxIndex::window>(problem, from, to, static_cast<uint8_t*>(index), threads);
  if (kind == MaxIndex::plane) forward_any<T, MaxIndex::plane>(problem, from, to, static_cast<int64_t*>(index), threads);
}

template <class T>
bool backward_of(const PoolProblem& problem, const void* gy, const void* index, MaxIndex kind, void* gx, int threads) {
  const T* from = static_cast<const T*>(gy);
  T* to = static_cast<T*>(gx);
  return kind == MaxIndex::window
             ? backward_any<T, MaxIndex::window>(problem, from, static_cast<const uint8_t*>(index), to, threads)
             : backward_any<T, MaxIndex::plane>(problem, from, static_cast<const int64_t*>(index), to, threads);
}

template <class T>
bool gather_of(const PoolProblem& problem, const void* v, const void* index, MaxIndex kind, void* y, int threads) {
  const T* from = static_cast<const T*>(v);
  T* to = static_cast<T*>(y);
  return kind == MaxIndex::window
             ? gather_any<T, MaxIndex::window>(problem, from, static_cast<const uint8_t*>(index), to, threads)
             : gather_any<T, MaxIndex::plane>(problem, from, static_cast<const int64_t*>(index), to, threads);
}

}  // namespace

void max_forward(const PoolProblem& problem, const void* x, void* y, void* index, MaxIndex kind, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_of<T>(problem, x, y, index, kind, threads))
}

bool max_backward(const PoolProblem& problem, const void* gy, const void* index, MaxIndex kind, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, backward_of<T>(problem, gy, index, kind, gx, threads))
}

bool max_gather(const PoolProblem& problem, const void* v, const void* index, MaxIndex kind, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, gather_of<T>(problem, v, index, kind, y, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
