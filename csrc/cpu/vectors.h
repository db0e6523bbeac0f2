// What pooling and normalisation share beyond isa.h: parts of vectors, lane numbers.
#pragma once

#include "isa.h"

namespace fastconv::cpu::FASTCONV_ISA {

#define FASTCONV_INLINE inline __attribute__((always_inline))
#define FASTCONV_INLINE_LAMBDA __attribute__((always_inline))

// The integers of a comparison's lanes.
template <class C>
using CodeOf = std::conditional_t<sizeof(C) == 8, int64_t, int32_t>;

// Lane numbers.
template <class C>
FASTCONV_INLINE Mask<C> lane_numbers() {
  Mask<C> out{};
  for (int i = 0; i < lanes<C>; ++i) out[i] = i;
  return out;
}
template <class C>
FASTCONV_INLINE Mask<C> splat_code(int64_t code) {
  return splat(CodeOf<C>(code));
}

// Whether any lane, or all of them, of a comparison holds.
template <class C>
FASTCONV_INLINE bool any(Mask<C> mask) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  CodeOf<C> all = 0;
  for (int i = 0; i < lanes<C>; ++i) all |= mask[i];
  return all != 0;
#endif
}
template <class C>
FASTCONV_INLINE bool all(Mask<C> mask) {
#if FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  return _mm256_testc_si256((__m256i)mask, _mm256_set1_epi32(-1));
#else
  return !any<C>(~mask);
#endif
}

// The first n elements; n == lanes costs nothing more where n is a constant.
template <class T>
FASTCONV_INLINE Vec<Compute<T>> load_part(const T* p, int n) {
  return n == lanes<Compute<T>> ? load(p) : load_first(p, n);
}
template <class T>
FASTCONV_INLINE void store_part(T* p, Vec<Compute<T>> v, int n) {
  if (n == lanes<Compute<T>>)
    store(p, v);
  else
    store_first(p, v, n);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
