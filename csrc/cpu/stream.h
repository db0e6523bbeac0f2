// Stores past the caches: of whole cache lines, which then are not read from memory first. memory.h says where they pay.
#pragma once

#include "../memory.h"
#include "vectors.h"

namespace fastconv::cpu::FASTCONV_ISA {

// One vector, aligned.
inline __attribute__((always_inline)) void stream_vector(float* p, Vec<float> v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif FASTCONV_VECTOR_BYTES == 16
  _mm_stream_ps(p, (__m128)v);
#else
  for (int i = 0; i < lanes<float>; i += 4) _mm_stream_ps(p + i, __m128{v[i], v[i + 1], v[i + 2], v[i + 3]});
#endif
}
inline __attribute__((always_inline)) void stream_vector(double* p, Vec<double> v) {
  stream_vector(reinterpret_cast<float*>(p), (Vec<float>)v);
}
inline __attribute__((always_inline)) void stream_one(float* p, float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  _mm_stream_si32(reinterpret_cast<int*>(p), bits);
}
inline __attribute__((always_inline)) void stream_one(double* p, double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  _mm_stream_si64(reinterpret_cast<long long*>(p), bits);
}

// Copies `count` elements. Lines that are begun here and ended by the next copy go to memory whole, too.
template <class T>
inline void stream(const T* from, T* to, int64_t count) {
  constexpr int L = lanes<T>;
  int64_t i = 0;
  const int64_t head = minimum(count, int64_t(-reinterpret_cast<uintptr_t>(to) % vector_bytes / sizeof(T)));
  for (; i < head; ++i) stream_one(to + i, from[i]);
  for (; i + L <= count; i += L) stream_vector(to + i, load(from + i));
  for (; i < count; ++i) stream_one(to + i, from[i]);
}

// Copies a row of sums to where they belong.
template <class T>
inline void put_row(const Compute<T>* from, T* to, int64_t count, bool past) {
  constexpr int step = lanes<Compute<T>>;
  if constexpr (std::is_same_v<T, Compute<T>>)
    if (past) return stream(from, to, count);
  int64_t i = 0;
  for (; i + step <= count; i += step) store(to + i, load(from + i));
  if (i < count) store_part(to + i, load(from + i), int(count - i));
}

// Whether `rows` rows of results can be written past the caches by put(): vectors that follow each other, all of them whole.
template <class T>
inline bool put_past_caches(T* to, int64_t rows, int64_t row, bool even_fresh = false) {
  return std::is_same_v<T, Compute<T>> && row % lanes<T> == 0 && reinterpret_cast<uintptr_t>(to) % vector_bytes == 0 &&
         past_caches(to, rows * row * int64_t(sizeof(T)), even_fresh);
}
template <class T>
FASTCONV_INLINE void put(T* to, Vec<Compute<T>> v, int n, bool past) {
  if constexpr (std::is_same_v<T, Compute<T>>)
    if (past) return stream_vector(to, v);
  store_part(to, v, n);
}

// What a thread calls after its last of these stores: nothing else orders them before what it does next.
inline void end_stream() { _mm_sfence(); }

}  // namespace fastconv::cpu::FASTCONV_ISA
