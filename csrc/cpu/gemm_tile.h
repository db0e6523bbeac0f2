// The register tile that the dense kernels are built of, and transposition in registers.
#pragma once

#include <utility>

#include "isa.h"

namespace fastconv::cpu::FASTCONV_ISA {

// acc[i][v] = the sum over e of a[e][i] * b[e][v]: `b` holds as many numbers a step as fit in `vectors` vectors, `a` has `rows`
// of them, `row` apart, and the next ones after `step`.
template <class T, int rows, int vectors, int64_t row = 1, int64_t step = rows>
inline __attribute__((always_inline)) void multiply_tile(int64_t count, const T* a, const T* b, Vec<T> (&acc)[rows][vectors]) {
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) acc[i][v] = Vec<T>{};
  for (int64_t e = 0; e < count; ++e) {
    Vec<T> column[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) column[v] = load(b + v * lanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vec<T> value = splat(a[i * row]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[i][v] = fma(value, column[v], acc[i][v]);
    }
    a += step;
    b += vectors * lanes<T>;
  }
}

namespace transposition {

// Exchanges the off-diagonal halves of blocks of 2 * half lanes of the vectors a and b.
template <class T, int half, size_t... lane>
inline __attribute__((always_inline)) void exchange(Vec<T>& a, Vec<T>& b, std::index_sequence<lane...>) {
  const Mask<T> low = {(int(lane) & half ? int(lane) - half + lanes<T> : int(lane))...};
  const Mask<T> high = {(int(lane) & half ? int(lane) + lanes<T> : int(lane) + half)...};
  const Vec<T> first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
  a = first, b = second;
}

template <class T, int half>
inline __attribute__((always_inline)) void stage(Vec<T> (&v)[lanes<T>]) {
  if constexpr (half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i)
      if (!(i & half)) exchange<T, half>(v[i], v[i + half], std::make_index_sequence<size_t(lanes<T>)>{});
    stage<T, half / 2>(v);
  }
}

}  // namespace transposition

// Transposes the square matrix whose rows are v.
template <class T>
inline __attribute__((always_inline)) void transpose(Vec<T> (&v)[lanes<T>]) {
  transposition::stage<T, lanes<T> / 2>(v);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
