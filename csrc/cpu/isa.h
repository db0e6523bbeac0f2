// Vectors of the instruction set this file is compiled for. Kernels are written once against it.
//
// CMake compiles each kernel source per instruction set with FASTCONV_ISA (the namespace) and FASTCONV_VECTOR_BYTES (64, 32,
// 16). Vectors are GCC's own: + - * / < and __builtin_shuffle work on them; what GCC has no operator for is below. 64-byte
// vectors compile for any instruction set (GCC splits them), so that the AVX-512 kernels can be executed, slowly, on a machine
// without it.
//
// Everything is compiled with -ffp-contract=off: a product is fused with a sum where the source says fma() and nowhere else, so
// the vector body and the tail of a loop round alike.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../dtype.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int vector_bytes = FASTCONV_VECTOR_BYTES;

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
  typedef T unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int lanes = vector_bytes / int(sizeof(T));

// The vector of lane masks a comparison of Vec<T> gives: all ones or all zeros.
template <class T>
using Mask = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;

// Unlike std::min and std::max these have one definition per instruction set, which the linker cannot exchange for another's.
template <class T>
constexpr T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T maximum(T a, T b) {
  return a < b ? b : a;
}

inline __attribute__((always_inline)) float fma(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
inline __attribute__((always_inline)) double fma(double a, double b, double c) {
#ifdef __FMA__
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline __attribute__((always_inline)) Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
  Vec<float> out;
  for (int i = 0; i < lanes<float>; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}
inline __attribute__((always_inline)) Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__FMA__)
  Vec<double> out;
  for (int i = 0; i < lanes<double>; ++i) out[i] = __builtin_fma(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}

template <class T>
inline __attribute__((always_inline)) Vec<T> splat(T value) {
  return value - Vec<T>{};  // GCC turns this into one broadcast; 0 - (-0.0) keeps the sign because value comes first
}

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <class T>
inline __attribute__((always_inline)) void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

#if FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
// A window of this table that starts at 8 - n selects the first n of 8 lanes.
alignas(64) static const int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#endif

// The first n lanes (0 <= n <= lanes) from memory, zeros elsewhere; nothing beyond them is touched.
inline __attribute__((always_inline)) Vec<float> load_first(const float* p, int n) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1u), p);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (Vec<float>)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - n)));
#else
  Vec<float> v{};
  std::memcpy(&v, p, size_t(n) * sizeof(float));
  return v;
#endif
}
inline __attribute__((always_inline)) Vec<double> load_first(const double* p, int n) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1u), p);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (Vec<double>)_mm256_maskload_pd(p, _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - 2 * n)));
#else
  Vec<double> v{};
  std::memcpy(&v, p, size_t(n) * sizeof(double));
  return v;
#endif
}
inline __attribute__((always_inline)) void store_first(float* p, Vec<float> v, int n) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1u), (__m512)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  _mm256_maskstore_ps(p, _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - n)), (__m256)v);
#else
  std::memcpy(p, &v, size_t(n) * sizeof(float));
#endif
}
inline __attribute__((always_inline)) void store_first(double* p, Vec<double> v, int n) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1u), (__m512d)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  _mm256_maskstore_pd(p, _mm256_loadu_si256((const __m256i*)(first_lanes + 8 - 2 * n)), (__m256d)v);
#else
  std::memcpy(p, &v, size_t(n) * sizeof(double));
#endif
}

// float16 and bfloat16 are computed in float: load and store convert, rounding to nearest even; NaN stays NaN.

typedef uint16_t Vec16 __attribute__((vector_size(vector_bytes / 2)));  // as many as there are lanes<float>
typedef uint16_t Vec16Unaligned __attribute__((vector_size(vector_bytes / 2), aligned(2), may_alias));

inline __attribute__((always_inline)) Vec<float> widened(Half, Vec16 v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)v);
#else
  const Vec<int32_t> bits = __builtin_convertvector(v, Vec<int32_t>), magnitude = bits & 0x7fff;
  const Vec<int32_t> normal = (magnitude << 13) + (112 << 23);
  const Vec<int32_t> special = (magnitude << 13) | 0x7f800000 | ((magnitude > 0x7c00) & 0x400000);
  const Vec<int32_t> subnormal = (Vec<int32_t>)(__builtin_convertvector(magnitude, Vec<float>) * 0x1p-24f);
  const Vec<int32_t> out = magnitude >= 0x7c00 ? special : magnitude >= 0x400 ? normal : subnormal;
  return (Vec<float>)(out | (bits & 0x8000) << 16);
#endif
}
inline __attribute__((always_inline)) Vec16 narrowed(Half, Vec<float> v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec16)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__F16C__)
  return (Vec16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vec<int32_t> bits = (Vec<int32_t>)v, magnitude = bits & 0x7fffffff;
  const Vec<int32_t> normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5, whose last place is 2^-24, rounds at the last place of float16's subnormals.
  const Vec<int32_t> subnormal = (Vec<int32_t>)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const Vec<int32_t> nan = 0x7e00 | ((magnitude >> 13) & 0x1ff);
  Vec<int32_t> out = magnitude < 0x38800000 ? subnormal : normal;
  out = magnitude >= 0x47800000 ? Vec<int32_t>{} + 0x7c00 : out;
  out = magnitude > 0x7f800000 ? nan : out;
  return __builtin_convertvector((Vec<uint32_t>)(out | (bits >> 16 & 0x8000)), Vec16);
#endif
}
inline __attribute__((always_inline)) Vec<float> widened(BFloat16, Vec16 v) {
  return (Vec<float>)(__builtin_convertvector(v, Vec<uint32_t>) << 16);
}
inline __attribute__((always_inline)) Vec16 narrowed(BFloat16, Vec<float> v) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)v;
  const Vec<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Vec<uint32_t> out = v != v ? bits >> 16 | 0x40 : rounded;
  return __builtin_convertvector(out, Vec16);
}

#define FASTCONV_CONVERTING_ACCESS(T)                                                              \
  inline __attribute__((always_inline)) Vec<float> load(const T* p) {                              \
    return widened(T{}, *reinterpret_cast<const Vec16Unaligned*>(p));                              \
  }                                                                                                \
  inline __attribute__((always_inline)) void store(T* p, Vec<float> v) {                           \
    *reinterpret_cast<Vec16Unaligned*>(p) = narrowed(T{}, v);                                      \
  }                                                                                                \
  inline __attribute__((always_inline)) Vec<float> load_first(const T* p, int n) {                 \
    Vec16 v{};                                                                                     \
    std::memcpy(&v, p, size_t(n) * sizeof(T));                                                     \
    return widened(T{}, v);                                                                        \
  }                                                                                                \
  inline __attribute__((always_inline)) void store_first(T* p, Vec<float> v, int n) {              \
    const Vec16 out = narrowed(T{}, v);                                                            \
    std::memcpy(p, &out, size_t(n) * sizeof(T));                                                   \
  }                                                                                                \
  inline __attribute__((always_inline)) float load_one(const T* p) { return load_first(p, 1)[0]; } \
  inline __attribute__((always_inline)) void store_one(T* p, float value) { store_first(p, splat(value), 1); }
FASTCONV_CONVERTING_ACCESS(Half)
FASTCONV_CONVERTING_ACCESS(BFloat16)
#undef FASTCONV_CONVERTING_ACCESS

// One element, converted likewise.
template <class T>
inline __attribute__((always_inline)) T load_one(const T* p) {
  return *p;
}
template <class T>
inline __attribute__((always_inline)) void store_one(T* p, T value) {
  *p = value;
}

// Lane i of the result is lane INDEX::lane(i) of a, or of b from the number of lanes on.
template <class INDEX, class T, int... I>
inline __attribute__((always_inline)) Vec<T> shuffle_lanes(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr Mask<T> index = {INDEX::lane(I)...};
  return __builtin_shuffle(a, b, index);
}
template <class INDEX, class T>
inline __attribute__((always_inline)) Vec<T> shuffle_lanes(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<INDEX, T>(a, b, std::make_integer_sequence<int, lanes<T>>{});
}

template <int FIRST>
struct EverySecond {
  static constexpr int lane(int i) { return FIRST + 2 * i; }
};
// The low or the high halves of two vectors, their elements alternating.
template <int LANES, bool HIGH>
struct Interleaved {
  static constexpr int lane(int i) { return i / 2 + (HIGH ? LANES / 2 : 0) + (i % 2 ? LANES : 0); }
};

// Every second of the 2 * lanes values a, b; and a and b interleaved.
template <class T>
inline __attribute__((always_inline)) Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<EverySecond<0>, T>(a, b);
}
template <class T>
inline __attribute__((always_inline)) Vec<T> odd_lanes(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<EverySecond<1>, T>(a, b);
}
template <class T>
inline __attribute__((always_inline)) Vec<T> interleaved_low(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<Interleaved<lanes<T>, false>, T>(a, b);
}
template <class T>
inline __attribute__((always_inline)) Vec<T> interleaved_high(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<Interleaved<lanes<T>, true>, T>(a, b);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
