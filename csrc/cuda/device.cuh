// What kernels use beyond plain CUDA: PTX instructions, conversions, vector accesses, launches. Each has a body for nvcc and
// one for the simulation (csrc/simt), which runs the same kernel sources on a CPU and checks them.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A static shared variable: FASTCONV_SHARED(float[2][64], tile).
#define FASTCONV_SHARED(T, name) \
  using name##_type = T;         \
  __shared__ __align__(16) name##_type name
// The launch's dynamic shared memory as T*.
#define FASTCONV_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char fastconv_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(fastconv_dynamic_shared)
#define FASTCONV_SITE int = 0
#else
#include "../simt/memory.h"
#include "../simt/scalar.h"
#include "../simt/simt.h"
#include "../simt/tensor_core.h"
#endif

namespace fastconv::device {

// ---- launches ----

#ifdef __CUDACC__
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#endif

// Keeps a parameter out of template argument deduction.
template <class T>
struct Identity {
  using type = T;
};

// Enqueues kernel(arguments...) on `stream`; `name` is what errors call it. The parameters' types are the kernel's.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared, void* stream,
            typename Identity<Parameters>::type... arguments) {
#ifdef __CUDACC__
  if (dynamic_shared > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(dynamic_shared)), name);
  kernel<<<grid, block, dynamic_shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
#else
  (void)stream;
  simt::run_grid(name, grid, block, dynamic_shared, [=] { kernel(arguments...); });
#endif
}

// Blocks for `count` work items, at most what a grid's x holds; kernels stride over the rest.
inline unsigned blocks_for(int64_t count, int64_t a_block) {
  const int64_t blocks = (count + a_block - 1) / a_block;
  return unsigned(blocks < 1 ? 1 : blocks > 2147483647 ? 2147483647 : blocks);
}

#ifdef __CUDACC__
#define FASTCONV_DEVICE __device__ __forceinline__
#define FASTCONV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTCONV_DEVICE inline
#define FASTCONV_HOST_DEVICE inline
#endif

// ---- arithmetic, by names that mean the same type in CUDA and in C++ ----

FASTCONV_DEVICE float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTCONV_DEVICE double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
FASTCONV_DEVICE float square_root(float x) { return ::sqrtf(x); }
FASTCONV_DEVICE double square_root(double x) { return ::sqrt(x); }
FASTCONV_DEVICE float power(float x, float y) { return ::powf(x, y); }
FASTCONV_DEVICE double power(double x, double y) { return ::pow(x, y); }

// A result after its bias. NaN stays NaN.
template <class C>
FASTCONV_DEVICE C activate(C value, bool relu) {
  return relu && value < C(0) ? C(0) : value;
}

// ---- conversions ----

FASTCONV_DEVICE float widen(float x) { return x; }
FASTCONV_DEVICE double widen(double x) { return x; }
FASTCONV_DEVICE float widen(Half x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  return simt::widen(x);
#endif
}
FASTCONV_DEVICE float widen(BFloat16 x) {
#ifdef __CUDACC__
  return __uint_as_float(uint32_t{x.bits} << 16);
#else
  return simt::widen(x);
#endif
}

FASTCONV_DEVICE void narrow(float x, float& out) { out = x; }
FASTCONV_DEVICE void narrow(double x, double& out) { out = x; }
FASTCONV_DEVICE void narrow(float x, Half& out) {
#ifdef __CUDACC__
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  out = simt::narrow_half(x);
#endif
}
FASTCONV_DEVICE void narrow(float x, BFloat16& out) {
#ifdef __CUDACC__
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  out = simt::narrow_bfloat16(x);
#endif
}
// Rounds to TF32's 10 bits of mantissa, as mma's float operands must be: it would truncate them.
FASTCONV_DEVICE float round_tf32(float x) {
#ifdef __CUDACC__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  return simt::round_tf32(x);
#endif
}

// ---- vector accesses: `count` elements, together 2 to 16 bytes, at an address that is a multiple of their size ----

template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
  static_assert(sizeof(T) * count <= 16, "one access moves at most 16 bytes");
  T at[count];
};

template <int count, class T>
FASTCONV_DEVICE Pack<T, count> load_pack(const T* p, FASTCONV_SITE) {
#ifdef __CUDACC__
  return *reinterpret_cast<const Pack<T, count>*>(p);
#else
  simt::check_access(p, sizeof(T) * count, false, site);
  Pack<T, count> out;
  __builtin_memcpy(&out, p, sizeof out);
  return out;
#endif
}
template <int count, class T>
FASTCONV_DEVICE void store_pack(T* p, const Pack<T, count>& value, FASTCONV_SITE) {
#ifdef __CUDACC__
  *reinterpret_cast<Pack<T, count>*>(p) = value;
#else
  simt::check_access(p, sizeof(T) * count, true, site);
  __builtin_memcpy(p, &value, sizeof value);
#endif
}

// Stores 16 bytes to device memory in one instruction, whatever surrounds it: nvcc takes store_pack apart where values come out
// of branches.
template <int count, class T>
FASTCONV_DEVICE void store_global(T* p, const Pack<T, count>& value, FASTCONV_SITE) {
  static_assert(sizeof(value) == 16);
#ifdef __CUDACC__
  uint4 word;
  __builtin_memcpy(&word, &value, sizeof value);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
#else
  store_pack(p, value, site);
#endif
}

// ---- cp.async ----

#ifdef __CUDACC__
FASTCONV_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
#endif

// Copies `bytes` (4, 8, 16) to shared memory; those beyond `source_bytes` become zeros and are not read.
template <int bytes>
FASTCONV_DEVICE void copy_async(void* shared, const void* global, int source_bytes = bytes, FASTCONV_SITE) {
#ifdef __CUDACC__
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(source_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(bytes),
                 "r"(source_bytes)
                 : "memory");
#else
  simt::copy_async(shared, global, bytes, source_bytes, site);
#endif
}
FASTCONV_DEVICE void copy_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::copy_async_commit();
#endif
}
// Waits until at most `groups_left` of the thread's latest groups are in flight.
template <int groups_left>
FASTCONV_DEVICE void copy_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
#else
  simt::copy_async_wait(groups_left);
#endif
}

// ---- tensor cores ----

// Loads 1, 2 or 4 8x8 matrices of 16-bit elements; lane 8 i + j gives the address of row j of matrix i.
template <bool transposed, int count>
FASTCONV_DEVICE void load_matrix(uint32_t (&r)[count], const void* row, FASTCONV_SITE) {
  static_assert(count == 1 || count == 2 || count == 4);
#ifdef __CUDACC__
  const uint32_t address = shared_address(row);
  if constexpr (count == 4 && transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else if constexpr (count == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else if constexpr (count == 2 && transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else if constexpr (count == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
  else if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
#else
  simt::load_matrix(r, count, transposed, row, site);
#endif
}

// The element type of mma's A and B: Half, BFloat16 (k = 16), or float as TF32 (k = 8, operands rounded by round_tf32).
// d += a * b for A 16 x k row-major, B k x 8 column-major, D 16 x 8.
template <class T>
FASTCONV_DEVICE void multiply_matrix(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTCONV_SITE);

#ifdef __CUDACC__
#define FASTCONV_MMA(T, shape)                                                                                             \
  template <>                                                                                                              \
  __device__ __forceinline__ void multiply_matrix<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int) { \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                      \
  }
FASTCONV_MMA(Half, "m16n8k16.row.col.f32.f16.f16.f32")
FASTCONV_MMA(BFloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FASTCONV_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#else
#define FASTCONV_MMA(T, type)                                                                                      \
  template <>                                                                                                      \
  inline void multiply_matrix<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site) { \
    simt::multiply_matrix(d, a, b, simt::MatrixType::type, site);                                                  \
  }
FASTCONV_MMA(Half, float16)
FASTCONV_MMA(BFloat16, bfloat16)
FASTCONV_MMA(float, tf32)
#endif
#undef FASTCONV_MMA

// m8n8k4 in float64: lane l holds A(l / 4, l % 4), B(l % 4, l / 4), D(l / 4, 2 (l % 4) + {0, 1}).
FASTCONV_DEVICE void multiply_matrix(double (&d)[2], double a, double b, FASTCONV_SITE) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
#else
  simt::multiply_matrix(d, a, b, site);
#endif
}

}  // namespace fastconv::device
