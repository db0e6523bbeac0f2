// The four storage types. isa.h converts between the 16-bit ones and float.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastconv {

enum class Dtype : int32_t { float32, float64, float16, bfloat16 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// The type in which sums are formed: float for the 16-bit types, otherwise the storage type.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

}  // namespace fastconv
