// Transposes matrices in registers, square after square of vectors: between planes and pixels.
#pragma once

#include "isa.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Within each 16 bytes: the low or the high halves of two vectors, their elements alternating.
template <int LANES, int PART, bool HIGH>
struct InterleavedParts {
  static constexpr int lane(int i) { return i / PART * PART + i % PART / 2 + (HIGH ? PART / 2 : 0) + (i % 2 ? LANES : 0); }
};
// The off-diagonal quarters of blocks of 2 SIZE by 2 SIZE, exchanged.
template <int LANES, int SIZE, bool LOWER>
struct Exchanged {
  static constexpr int lane(int i) { return LOWER ? i & SIZE ? LANES + i : i + SIZE : i & SIZE ? LANES + i - SIZE : i; }
};

template <class T, int DISTANCE>
inline __attribute__((always_inline)) void interleave_rows(Vec<T> (&block)[lanes<T>]) {
  constexpr int L = lanes<T>, part = 16 / int(sizeof(T));
  Vec<T> out[L];
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) {
    const int first = k / (2 * DISTANCE) * (2 * DISTANCE) + k % DISTANCE, second = first + DISTANCE;
    // In: rows first and second. Out: low halves, then high halves, of each pair.
    out[k] = k % (2 * DISTANCE) < DISTANCE ? shuffle_lanes<InterleavedParts<L, part, false>, T>(block[first], block[second])
                                           : shuffle_lanes<InterleavedParts<L, part, true>, T>(block[first], block[second]);
  }
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) block[k] = out[k];
}

template <class T, int SIZE>
inline __attribute__((always_inline)) void exchange(Vec<T> (&block)[lanes<T>]) {
  constexpr int L = lanes<T>;
  if constexpr (SIZE < L) {
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) {
      if (k & SIZE) continue;
      const Vec<T> a = block[k], b = block[k + SIZE];
      block[k] = shuffle_lanes<Exchanged<L, SIZE, false>, T>(a, b);
      block[k + SIZE] = shuffle_lanes<Exchanged<L, SIZE, true>, T>(a, b);
    }
    exchange<T, 2 * SIZE>(block);
  }
}

// Transposes a square of vectors: the 16-byte parts by interleaving, then the parts as wholes.
template <class T>
inline __attribute__((always_inline)) void transpose_block(Vec<T> (&block)[lanes<T>]) {
  if constexpr (sizeof(T) == 4) interleave_rows<T, 2>(block);
  interleave_rows<T, 1>(block);
  exchange<T, 16 / int(sizeof(T))>(block);
}

// out[j * out_pitch + i] = in[i * in_pitch + j] for i < rows, j < columns. WHOLE_IN: up to a vector may be read beyond the end
// of a row of `in`; WHOLE_OUT: and written, of `out`. Elsewhere the last square of many overlaps the one before.
template <class T, bool WHOLE_IN, bool WHOLE_OUT>
void transpose(const T* in, int64_t in_pitch, int64_t rows, int64_t columns, T* out, int64_t out_pitch) {
  constexpr int L = lanes<T>;
  const int height = int(minimum<int64_t>(L, rows)), width = int(minimum<int64_t>(L, columns));
  for (int64_t row = 0; row < rows; row += L) {
    const int64_t i = minimum(row, rows - height);
    for (int64_t column = 0; column < columns; column += L) {
      const int64_t j = minimum(column, columns - width);
      const T* from = in + i * in_pitch + j;
      T* to = out + j * out_pitch + i;
      Vec<T> block[L];
      if (height == L && (WHOLE_IN || width == L)) {
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) block[k] = load(from + k * in_pitch);
      } else {
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) block[k] = k < height ? load_first(from + k * in_pitch, width) : Vec<T>{};
      }
      transpose_block<T>(block);
      if (width == L && (WHOLE_OUT || height == L)) {
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) store<T>(to + k * out_pitch, block[k]);
      } else {
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) {
          if (k >= width) break;
          if (WHOLE_OUT || height == L)
            store<T>(to + k * out_pitch, block[k]);
          else
            store_first(to + k * out_pitch, block[k], height);
        }
      }
    }
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
