// The kernel that the benchmark gives CuPy, run under the simulation's checks on i * 7 % 5 - 2 as x, w and b; prints y.
// Arguments: n c h w, k r s, p q, stride, padding and dilation of rows and columns, groups.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/device.cuh"
#include "convolution.cu"

using namespace fastconv;

int main(int argc, char** argv) {
  int n[16] = {};
  if (argc != 17) return 2;
  for (int i = 0; i < 16; ++i) n[i] = std::atoi(argv[i + 1]);
  const auto filled = [](int count) {
    std::vector<float> values(size_t(count) + 1);  // never empty
    for (size_t i = 0; i < values.size(); ++i) values[i] = float(int(i * 7 % 5) - 2);
    return values;
  };
  const int counts[] = {n[0] * n[1] * n[2] * n[3], n[4] * (n[1] / n[15]) * n[5] * n[6], n[4], n[0] * n[4] * n[7] * n[8]};
  const std::vector<float> x = filled(counts[0]), w = filled(counts[1]), b = filled(counts[2]);
  std::vector<float> y = filled(counts[3] - 1);
  const auto input = [](const char* name, const std::vector<float>& t, int count) {
    return simt::Buffer{name, t.data(), size_t(count) * 4, simt::Access::read_only, false};
  };
  try {
    simt::DeviceMemory memory({input("x", x, counts[0]),
                               input("w", w, counts[1]),
                               input("b", b, counts[2]),
                               {"y", y.data(), y.size() * 4, simt::Access::read_write, true}});
    device::launch("convolution", convolution, dim3(device::blocks_for(counts[3], 32)), dim3(32), 0, nullptr, x.data(),
                   w.data(), b.data(), y.data(), n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11],
                   n[12], n[13], n[14], n[15]);
    memory.finish();
  } catch (const simt::KernelFault& fault) {
    std::puts(fault.what());
    return 1;
  }
  for (float value : y) std::printf("%g ", double(value));
}
