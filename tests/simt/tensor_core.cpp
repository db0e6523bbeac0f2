// A matrix product through cp.async, ldmatrix and mma in every element type, compared exactly on small integers. Prints a line
// a case.
#include <cstdio>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/device.cuh"

using namespace fastconv;
using namespace fastconv::device;

namespace {

constexpr int rows = 16, columns = 8, depth = 32;

// D[16, 8] = A[16, 32] * B[32, 8] by one warp, 16-bit types. B is stored [depth][columns] and loaded transposed.
template <class T>
__global__ void product16(const T* a, const T* b, float* d) {
  FASTCONV_SHARED(T[rows * depth], tile_a);
  FASTCONV_SHARED(T[depth * columns], tile_b);
  const int lane = threadIdx.x;
  for (int i = lane; i < rows * depth / 8; i += 32) copy_async<16>(tile_a + 8 * i, a + 8 * i);
  for (int i = lane; i < depth * columns / 8; i += 32) copy_async<16>(tile_b + 8 * i, b + 8 * i);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  float sum[4] = {};
  for (int k = 0; k < depth; k += 16) {
    uint32_t ra[4], rb[2];
    load_matrix<false>(ra, tile_a + (lane % 16) * depth + k + lane / 16 * 8);
    load_matrix<true>(rb, tile_b + (k + lane % 16) * columns);
    multiply_matrix<T>(sum, ra, rb);
  }
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * columns + lane % 4 * 2 + i % 2] = sum[i];
}

__global__ void product_tf32(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x, group = lane / 4, within = lane % 4;
  float sum[4] = {};
  for (int k = 0; k < depth; k += 8) {
    const auto at_a = [&](int i, int j) { return __float_as_uint(round_tf32(a[i * depth + k + j])); };
    const auto at_b = [&](int i, int j) { return __float_as_uint(round_tf32(b[(k + i) * columns + j])); };
    const uint32_t ra[4] = {at_a(group, within), at_a(group + 8, within), at_a(group, within + 4), at_a(group + 8, within + 4)};
    const uint32_t rb[2] = {at_b(within, group), at_b(within + 4, group)};
    multiply_matrix<float>(sum, ra, rb);
  }
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * columns + within * 2 + i % 2] = sum[i];
}

__global__ void product_f64(const double* a, const double* b, double* d) {
  const int lane = threadIdx.x;
  for (int top = 0; top < rows; top += 8) {
    double sum[2] = {};
    for (int k = 0; k < depth; k += 4)
      multiply_matrix(sum, a[(top + lane / 4) * depth + k + lane % 4], b[(k + lane % 4) * columns + lane / 4]);
    for (int i = 0; i < 2; ++i) d[(top + lane / 4) * columns + lane % 4 * 2 + i] = sum[i];
  }
}

template <class T, class Out>
bool agrees(void (*kernel)(const T*, const T*, Out*)) {
  std::vector<T> a(rows * depth), b(depth * columns);
  std::vector<Out> d(rows * columns);
  const auto set = [](T& out, int value) {
    if constexpr (std::is_same_v<T, double>)
      out = value;
    else
      narrow(float(value), out);
  };
  for (size_t i = 0; i < a.size(); ++i) set(a[i], int(i * 7 % 11) - 5);
  for (size_t i = 0; i < b.size(); ++i) set(b[i], int(i * 5 % 13) - 6);
  simt::DeviceMemory memory({{"a", a.data(), a.size() * sizeof(T), simt::Access::read_only, false},
                             {"b", b.data(), b.size() * sizeof(T), simt::Access::read_only, false},
                             {"d", d.data(), d.size() * sizeof(Out), simt::Access::read_write, true}});
  launch("product", kernel, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), d.data());
  memory.finish();
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      double expected = 0;
      for (int k = 0; k < depth; ++k)
        expected += double(widen(a[size_t(i * depth + k)])) * double(widen(b[size_t(k * columns + j)]));
      if (d[size_t(i * columns + j)] != Out(expected)) return false;
    }
  return true;
}

// Every float16 and bfloat16 survives widening and narrowing; halfway cases go to even.
bool conversions() {
  for (uint32_t i = 0; i < 65536; ++i) {
    const Half h{uint16_t(i)};
    const BFloat16 b{uint16_t(i)};
    if ((i & 0x7fff) <= 0x7c00 && simt::narrow_half(simt::widen(h)).bits != i) return false;
    if ((i & 0x7fff) <= 0x7f80 && simt::narrow_bfloat16(simt::widen(b)).bits != i) return false;
  }
  return simt::narrow_half(2049.0f).bits == simt::narrow_half(2048.0f).bits &&
         simt::narrow_half(2051.0f).bits == simt::narrow_half(2052.0f).bits && simt::narrow_half(65519.0f).bits == 0x7bff &&
         simt::narrow_half(65520.0f).bits == 0x7c00 && simt::narrow_half(0x1.8p-25f).bits == 1 &&
         simt::narrow_half(0x1p-25f).bits == 0 && simt::narrow_bfloat16(257.0f).bits == simt::narrow_bfloat16(256.0f).bits &&
         simt::round_tf32(2049.0f) == 2050.0f && simt::truncate_tf32(2049.0f) == 2048.0f;
}

}  // namespace

int main() {
  std::printf("float16 %d\n", agrees(product16<Half>));
  std::printf("bfloat16 %d\n", agrees(product16<BFloat16>));
  std::printf("tf32 %d\n", agrees(product_tf32));
  std::printf("float64 %d\n", agrees(product_f64));
  std::printf("conversions %d\n", conversions());
  return 0;
}
