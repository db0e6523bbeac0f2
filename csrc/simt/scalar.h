// float16, bfloat16 and TF32 on one value, in plain C++: what the GPU's conversion instructions do.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../dtype.h"

namespace fastconv::simt {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
inline float widen(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return std::copysign(std::ldexp(float(mantissa), -24), float_of(sign | 0x3f800000));
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Round to nearest, ties to even; NaN stays NaN.
inline BFloat16 narrow_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline Half narrow_half(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to 2^16 or beyond
  if (magnitude < 0x38800000) return {uint16_t(sign | uint32_t(std::nearbyint(std::ldexp(float_of(magnitude), 24))))};
  return {uint16_t(sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}
// cvt.rna.tf32: 10 bits of mantissa, ties away from zero.
inline float round_tf32(float x) { return std::isfinite(x) ? float_of((bits_of(x) + 0x1000) & 0xffffe000) : x; }
// What the tensor core reads of a float operand.
inline float truncate_tf32(float x) { return float_of(bits_of(x) & 0xffffe000); }

}  // namespace fastconv::simt
