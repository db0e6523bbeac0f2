// What a CUDA kernel sees when it is compiled as C++: the keywords, the thread's coordinates, barriers, warp operations, shared
// memory. Each CUDA thread is a fiber (fiber.h) and all threads of a block run on one OS thread, block after block. Every
// access to shared and global memory is checked (memory.h). The PTX instructions the kernels use are in tensor_core.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "fault.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static_assert(false, "declare shared memory with FASTCONV_SHARED or FASTCONV_DYNAMIC_SHARED");

namespace fastconv::simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  uint64_t count() const { return uint64_t{x} * y * z; }
};

// Coordinates of the running thread. By value: the runtime's memory is not the kernel's to read.
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
int lane_index();

// ---- launching ----

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;  // in which ready threads, and blocks, are run
  unsigned seed = 1;             // of the random order
};
Options& options();

// The limits of the GPU that is simulated.
struct Architecture {
  const char* name;
  int threads_a_block;
  size_t static_shared;   // bytes a kernel may declare
  size_t dynamic_shared;  // bytes a launch may ask for after opting in
  Dim3 grid;
};
constexpr Architecture sm_80 = {"sm_80", 1024, 48 << 10, 163 << 10, {2147483647u, 65535u, 65535u}};
constexpr Architecture sm_90 = {"sm_90", 1024, 48 << 10, 227 << 10, {2147483647u, 65535u, 65535u}};
Architecture& architecture();

// What one thread does: a kernel with its arguments, which lie in `bytes` from `arguments` and are the thread's to read.
struct Body {
  void (*call)(const void* arguments);
  const void* arguments;
  size_t bytes;
};

// Runs `body` once for each thread of the grid. Throws KernelFault.
void run_grid(const char* kernel, Dim3 grid, Dim3 block, size_t dynamic_shared, const Body& body);

template <class Call>
void run_grid(const char* kernel, Dim3 grid, Dim3 block, size_t dynamic_shared, const Call& call) {
  run_grid(kernel, grid, block, dynamic_shared,
           Body{[](const void* p) { (*static_cast<const Call*>(p))(); }, &call, sizeof(Call)});
}

// ---- block and warp operations; every one is a place where the running thread may be exchanged for another ----

void sync_block(Site site);
void sync_warp(unsigned mask, Site site);

// All lanes of `mask` meet; the last to arrive runs `operation` on the operands of all, then all go on. Lanes outside the mask
// have null operands.
using WarpOperation = void (*)(void* const (&operands)[32]);
void warp_operation(unsigned mask, WarpOperation operation, void* operand, Site site);

// ---- shared memory ----

// Address of a static shared variable; `key` tells the variables of a kernel apart.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();

// ---- warp intrinsics ----

namespace detail {

struct Shuffle {
  uint64_t value;
  int source;
};
void shuffle(void* const (&operands)[32]);

struct Vote {
  unsigned value;
};
void ballot(void* const (&operands)[32]);

enum class Reduction { add, min, max, bit_and, bit_or, bit_xor };
struct Reduce {
  int64_t value;
  Reduction kind;
};
void reduce(void* const (&operands)[32]);

template <class T>
T shuffle(unsigned mask, T value, int source, int width, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  if (width <= 0 || width > 32 || (width & (width - 1)))
    fault("shuffle: width " + std::to_string(width) + " is not a power of two up to 32", site);
  Shuffle operand{0, source};
  std::memcpy(&operand.value, &value, sizeof(T));
  warp_operation(mask, shuffle, &operand, site);
  std::memcpy(&value, &operand.value, sizeof(T));
  return value;
}
inline unsigned ballot(unsigned mask, bool predicate, Site site) {
  Vote operand{predicate};
  warp_operation(mask, ballot, &operand, site);
  return operand.value;
}
inline int64_t reduce(unsigned mask, int64_t value, Reduction kind, Site site) {
  Reduce operand{value, kind};
  warp_operation(mask, reduce, &operand, site);
  return operand.value;
}

}  // namespace detail
}  // namespace fastconv::simt

using dim3 = fastconv::simt::Dim3;

#define threadIdx (::fastconv::simt::thread_index())
#define blockIdx (::fastconv::simt::block_index())
#define blockDim (::fastconv::simt::block_size())
#define gridDim (::fastconv::simt::grid_size())

// A static shared variable: FASTCONV_SHARED(float[2][64], tile).
#define FASTCONV_SHARED(T, name)    \
  using name##_type = T;            \
  static const char name##_key = 0; \
  name##_type& name = *static_cast<name##_type*>(::fastconv::simt::static_shared(&name##_key, sizeof(name##_type), 16))
#define FASTCONV_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::fastconv::simt::dynamic_shared())

// The intrinsics by CUDA's names. The defaulted last argument is the place of the call.
#define FASTCONV_SITE ::fastconv::simt::Site site = ::fastconv::simt::Site::here(__builtin_FILE(), __builtin_LINE())

inline void __syncthreads(FASTCONV_SITE) { fastconv::simt::sync_block(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTCONV_SITE) { fastconv::simt::sync_warp(mask, site); }

// A source lane outside the segment of `width` lanes is replaced as CUDA does: idx wraps, up and down keep the lane's own
// value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTCONV_SITE) {
  const int lane = fastconv::simt::lane_index();
  return fastconv::simt::detail::shuffle(mask, value, (lane & -width) + (source & (width - 1)), width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCONV_SITE) {
  const int lane = fastconv::simt::lane_index(), source = lane - int(delta);
  return fastconv::simt::detail::shuffle(mask, value, source < (lane & -width) ? lane : source, width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCONV_SITE) {
  const int lane = fastconv::simt::lane_index(), source = lane + int(delta);
  return fastconv::simt::detail::shuffle(mask, value, source >= (lane & -width) + width ? lane : source, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FASTCONV_SITE) {
  const int lane = fastconv::simt::lane_index(), source = lane ^ lanes;
  return fastconv::simt::detail::shuffle(mask, value, source >= (lane & -width) + width ? lane : source, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTCONV_SITE) {
  return fastconv::simt::detail::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, FASTCONV_SITE) {
  return fastconv::simt::detail::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTCONV_SITE) {
  return fastconv::simt::detail::ballot(mask, predicate != 0, site) == mask;
}

#define FASTCONV_REDUCTION(name, kind)                                                                    \
  template <class T>                                                                                      \
  T name(unsigned mask, T value, FASTCONV_SITE) {                                                         \
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "warp reductions take 32-bit integers");       \
    return T(fastconv::simt::detail::reduce(mask, value, fastconv::simt::detail::Reduction::kind, site)); \
  }
FASTCONV_REDUCTION(__reduce_add_sync, add)
FASTCONV_REDUCTION(__reduce_min_sync, min)
FASTCONV_REDUCTION(__reduce_max_sync, max)
FASTCONV_REDUCTION(__reduce_and_sync, bit_and)
FASTCONV_REDUCTION(__reduce_or_sync, bit_or)
FASTCONV_REDUCTION(__reduce_xor_sync, bit_xor)
#undef FASTCONV_REDUCTION

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __int_as_float(int x) {
  float out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline int __float_as_int(float x) {
  int out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __uint_as_float(unsigned x) { return __int_as_float(int(x)); }
