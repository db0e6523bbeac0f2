// The matrix products of Winograd's convolution: 36 independent ones, D[e] = A[e] * B[e], of operands that lie in cache.
//
// A holds rows that are broadcast number by number, B panels of two vectors:
//   A[e][row][depth] (or [depth][row]),  B[e][panel][depth][2 vectors],  D[e][row][panel][2 vectors].
// Where images are NCHW, rows are output channels and a lane of a vector is a tile; in NHWC rows are tiles and a lane is a
// channel.
#pragma once

#include "vectors.h"

namespace fastconv::cpu::FASTCONV_ISA::winograd {

constexpr bool wide = FASTCONV_VECTOR_BYTES == 64;  // 32 registers instead of 16
constexpr int L = lanes<float>;
constexpr int panel_vectors = 2;
constexpr int panel = panel_vectors * L;
constexpr int most_rows = wide ? 12 : 6;  // in registers: 12 or 24 sums
// So many steps are summed in registers, and chunk after chunk added up before D is: rounding errors of one long sum would be
// greater. A weight gradient amplifies them more, that of five taps most.
constexpr int64_t chunk = 64, gradient_chunk = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Strides count floats.
struct Operand {
  const float* data;
  int64_t product;  // from one e to the next
  int64_t step;     // A: from row to row, or from depth to depth where it lies [depth][row]; B: from panel to panel
};
struct Result {
  float* data;
  int64_t product, row;
};

// D's tile of `rows` rows and `vectors` vectors. `rows_adjacent`: A lies [depth][row].
template <bool rows_adjacent, int rows, int vectors>
inline __attribute__((noinline)) void multiply_tile(int64_t depth, int64_t chunk, const float* a, int64_t a_step,
                                                    const float* b, float* d, int64_t d_row, bool add) {
  Vec<float> total[rows][vectors];
  for (int64_t begin = 0; begin < depth; begin += chunk) {
    Vec<float> sum[rows][vectors];
#pragma GCC unroll 12
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] = Vec<float>{};
    const int64_t count = minimum(chunk, depth - begin);
    for (int64_t c = 0; c < count; ++c) {
      Vec<float> column[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) column[v] = load(b + v * L);
#pragma GCC unroll 12
      for (int i = 0; i < rows; ++i) {
        const Vec<float> value = splat(rows_adjacent ? a[i] : a[i * a_step]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[i][v] = fma(value, column[v], sum[i][v]);
      }
      a += rows_adjacent ? a_step : 1;
      b += panel;
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) total[i][v] = begin == 0 ? sum[i][v] : total[i][v] + sum[i][v];
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* to = d + i * d_row + v * L;
      store(to, add ? load(to) + total[i][v] : total[i][v]);
    }
}

template <bool rows_adjacent, int rows = most_rows>
FASTCONV_INLINE void multiply_rows(int count, int vectors, int64_t depth, int64_t chunk, const float* a, int64_t a_step,
                                   const float* b, float* d, int64_t d_row, bool add) {
  if constexpr (rows > 1)
    if (count < rows) return multiply_rows<rows_adjacent, rows - 1>(count, vectors, depth, chunk, a, a_step, b, d, d_row, add);
  if (vectors == panel_vectors)
    multiply_tile<rows_adjacent, rows, panel_vectors>(depth, chunk, a, a_step, b, d, d_row, add);
  else
    multiply_tile<rows_adjacent, rows, 1>(depth, chunk, a, a_step, b, d, d_row, add);
}

// Rows of the next tile: as many as there are registers for, but no tile of very few rows at the end.
inline int rows_of_tile(int64_t left) {
  return int(left > most_rows && left < most_rows + most_rows / 2 ? (left + 1) / 2 : minimum<int64_t>(left, most_rows));
}

// D[e] = A[e] * B[e], or D[e] += ..., for e in [begin, end), `rows` rows and `vectors` vectors (of panels).
template <bool rows_adjacent = false>
inline void multiply(int begin, int end, int64_t rows, int64_t vectors, int64_t depth, const Operand& a, const Operand& b,
                     const Result& d, int64_t chunk, bool add = false) {
  for (int e = begin; e < end; ++e)
    for (int64_t row = 0, count; row < rows; row += count) {
      count = rows_of_tile(rows - row);
      const float* a_rows = a.data + e * a.product + row * (rows_adjacent ? 1 : a.step);
      for (int64_t v = 0; v < vectors; v += panel_vectors)
        multiply_rows<rows_adjacent>(int(count), int(minimum<int64_t>(vectors - v, panel_vectors)), depth, chunk, a_rows,
                                     a.step, b.data + e * b.product + v / panel_vectors * b.step,
                                     d.data + e * d.product + row * d.row + v * L, d.row, add);
    }
}

// The distance between the 36 parts of an operand: an odd number of cache lines, so that they do not fall on the same sets.
inline int64_t product_stride(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// The distance between rows that are read side by side.
inline int64_t row_stride(int64_t floats) {
  const int64_t lines = ceil_div(floats, 16);
  return (lines % 16 ? lines : lines + 1) * 16;
}

}  // namespace fastconv::cpu::FASTCONV_ISA::winograd
