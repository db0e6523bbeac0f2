// What pooling kernels do with vectors beyond isa.h: lines of a plane with borders, strided loads, byte indices.
#pragma once

#include "kernels.h"
#include "parallel.h"
#include "stream.h"
#include "vectors.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Bytes, as many as there are lanes<C>.
template <class C>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(lanes<C>)));
  typedef uint8_t unaligned __attribute__((vector_size(lanes<C>), aligned(1), may_alias));
};

// What MaxIndex's kinds are stored as.
template <MaxIndex kind>
using IndexType = std::conditional_t<kind == MaxIndex::window, uint8_t, int64_t>;

// Position codes are integers as wide as the values they belong to, so that a comparison's mask selects both.
template <class C>
FASTCONV_INLINE Mask<C> load_codes(const uint8_t* p) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) return (Mask<C>)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  return (Mask<C>)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return (Mask<C>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return (Mask<C>)_mm256_cvtepu8_epi64(_mm_loadu_si32(p));
#else
  return __builtin_convertvector(typename BytesOf<C>::type(*(const typename BytesOf<C>::unaligned*)p), Mask<C>);
#endif
}
template <class C>
FASTCONV_INLINE void store_codes(uint8_t* p, Mask<C> codes) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)codes));
  else
    _mm_storel_epi64((__m128i*)p, _mm512_cvtepi64_epi8((__m512i)codes));
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
  const __m128i low = _mm256_castsi256_si128((__m256i)codes), high = _mm256_extracti128_si256((__m256i)codes, 1);
  const __m128i words = _mm_packs_epi32(low, high);  // of 64-bit codes: each followed by a zero
  if constexpr (sizeof(C) == 4)
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
  else
    _mm_storeu_si32(p, _mm_shuffle_epi8(words, _mm_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12)));
#else
  *(typename BytesOf<C>::unaligned*)p = __builtin_convertvector(codes, typename BytesOf<C>::type);
#endif
}

// The first n < 8 bytes as a number. A load that spans several recent stores waits for them, so they are put together here.
FASTCONV_INLINE uint64_t load_bytes(const uint8_t* p, int n) {
  uint64_t out = 0;
  int shift = 0;
  const auto take = [&](auto part) FASTCONV_INLINE_LAMBDA {
    if (!(n & int(sizeof(part)))) return;
    std::memcpy(&part, p + shift / 8, sizeof(part));
    out |= uint64_t(part) << shift;
    shift += 8 * int(sizeof(part));
  };
  take(uint32_t{}), take(uint16_t{}), take(uint8_t{});
  return out;
}

template <class C>
FASTCONV_INLINE Mask<C> load_codes_part(const uint8_t* p, int n) {
  if (n == lanes<C>) return load_codes<C>(p);
  uint64_t words[2] = {};
  if (n < 8) {
    words[0] = load_bytes(p, n);
  } else {
    std::memcpy(words, p, 8);
    words[1] = load_bytes(p + 8, n - 8);
  }
  return load_codes<C>(reinterpret_cast<const uint8_t*>(words));
}

// Lane i from p[i * stride]. `fixed` is the stride if it is 1 or 2, where vectors are loaded (2 * lanes values for 2), else 0.
template <int fixed, class C>
FASTCONV_INLINE Vec<C> load_strided(const C* p, int64_t stride) {
  if constexpr (fixed == 1) return load(p);
  if constexpr (fixed == 2) return even_lanes<C>(load(p), load(p + lanes<C>));
  Vec<C> out{};
  for (int i = 0; i < lanes<C>; ++i) out[i] = p[i * stride];
  return out;
}

constexpr int64_t line_bytes = 16 * 1024;  // of a line with borders, on the stack: stays in the L1 cache
template <class C>
constexpr int64_t line_capacity = line_bytes / int64_t(sizeof(C));

// line[i] = value(column + i) for columns inside [0, width), `border` elsewhere, 0 <= i < length. value(at, n) gives the n
// columns from `at` on. Vectors are stored whole: the line has room for `lanes` more.
template <class C, class Value>
FASTCONV_INLINE void fill_line(C* line, int64_t length, int64_t column, int64_t width, C border, const Value& value) {
  constexpr int step = lanes<C>;
  const int64_t begin = minimum(maximum<int64_t>(-column, 0), length);
  const int64_t end = minimum(maximum(width - column, begin), length);
  for (int64_t i = 0; i < begin; i += step) store(line + i, splat(border));
  int64_t i = begin;
  if (i + step <= end) {
    // Then on multiples of the lanes, where the line will be read: a load that spans two recent stores has to wait for both.
    store(line + i, value(column + i, step));
    for (i = (begin + step) / step * step; i + step <= end; i += step) store(line + i, value(column + i, step));
  }
  if (i < end) {
    const int n = int(end - i);
    const Mask<C> inside = lane_numbers<C>() < splat_code<C>(n);
    store(line + i, inside ? value(column + i, n) : splat(border));
    i += step;
  }
  for (; i < length; i += step) store(line + i, splat(border));
}

// NHWC: calls body(pixel, row, column, c, count) for blocks of channels of every pixel of `images` images: block_vectors whole
// vectors, or what is left of them. `row` is what at_row(image, h) gave and `column` what at_column(row, w) gave.
constexpr int block_vectors = 4;
template <class C, class AtRow, class AtColumn, class Body>
void share_channel_blocks(int64_t images, int64_t height, int64_t width, int64_t channels, int threads, const AtRow& at_row,
                          const AtColumn& at_column, const Body& body) {
  constexpr int64_t block = block_vectors * lanes<C>;
  const int64_t blocks = (channels + block - 1) / block;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(images * height * width * blocks, id, parts);
    int64_t item = mine.begin, first = item % blocks, pixel = item / blocks, w = pixel % width, line = pixel / width;
    for (; item < mine.end; ++line, w = 0) {
      const auto row = at_row(line / height, line % height);
      for (; w < width && item < mine.end; ++w, ++pixel, first = 0) {
        const auto column = at_column(row, w);
        for (int64_t i = first; i < blocks && item < mine.end; ++i, ++item)
          body(pixel, row, column, i * block, minimum(block, channels - i * block));
      }
    }
    end_stream();  // where body() stores past the caches
  });
}

// Calls body(Vectors<v>, offset, n) over a block of `count` channels: once for a whole block, else vector by vector.
template <int v>
struct Vectors {
  static constexpr int count = v;
};
template <class C, class Body>
FASTCONV_INLINE void each_vector(int64_t count, const Body& body) {
  constexpr int step = lanes<C>;
  if (count == block_vectors * step) return body(Vectors<block_vectors>{}, 0, step);
  int64_t i = 0;
  for (; i + step <= count; i += step) body(Vectors<1>{}, i, step);
  if (i < count) body(Vectors<1>{}, i, int(count - i));
}

}  // namespace fastconv::cpu::FASTCONV_ISA
