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
