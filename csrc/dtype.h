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

// Returns from the enclosing function with `call`, in which T is the storage type of `dtype`.
#define FASTCONV_FOR_DTYPE(dtype, ...)  \
  switch (dtype) {                      \
    case ::fastconv::Dtype::float32: {  \
      using T = float;                  \
      return __VA_ARGS__;               \
    }                                   \
    case ::fastconv::Dtype::float64: {  \
      using T = double;                 \
      return __VA_ARGS__;               \
    }                                   \
    case ::fastconv::Dtype::float16: {  \
      using T = ::fastconv::Half;       \
      return __VA_ARGS__;               \
    }                                   \
    case ::fastconv::Dtype::bfloat16: { \
      using T = ::fastconv::BFloat16;   \
      return __VA_ARGS__;               \
    }                                   \
  }                                     \
  __builtin_unreachable();

}  // namespace fastconv
