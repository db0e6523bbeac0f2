// Kernels with a planted bug and their correct twins. `planted` lists the cases; `planted CASE bug|clean ORDER SEED` runs one
// and prints "clean" or the fault. Compiled like the real kernels (see CMakeLists.txt).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.cuh"

using namespace fastconv;
using namespace fastconv::device;

namespace {

constexpr unsigned all = 0xffffffffu;

template <bool bug>
__global__ void read_after_write(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!bug) __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

template <bool bug>
__global__ void write_after_read(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
  if (!bug) __syncthreads();
  tile[threadIdx.x] = 0;
}

template <bool bug>
__global__ void write_after_write(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  tile[threadIdx.x] = x[threadIdx.x];
  if (bug) tile[(threadIdx.x + 1) % 64] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// Within a warp __syncwarp is enough; between warps it is not.
template <bool bug>
__global__ void warp_barrier(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = tile[bug ? threadIdx.x ^ 32 : threadIdx.x ^ 1];
}

template <bool bug>
__global__ void uninitialised_shared(const float* x, float* y) {
  FASTCONV_SHARED(float[65], tile);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[bug ? threadIdx.x + 1 : threadIdx.x];
}

template <bool bug>
__global__ void shared_bounds(const float* x, float* y) {
  FASTCONV_DYNAMIC_SHARED(float, tile);
  tile[bug ? threadIdx.x + 1 : threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool bug>
__global__ void async_wait(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
  copy_async_commit();
  if (bug)
    copy_async_wait<1>();
  else
    copy_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
  copy_async_wait<0>();
}

template <bool bug>
__global__ void async_barrier(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
  if (!bug) __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

template <bool bug>
__global__ void async_exit(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
  copy_async_commit();
  if (!bug) copy_async_wait<0>();
  y[threadIdx.x] = x[threadIdx.x];
}

// Two stages: a stage is refilled while another thread may still read it.
template <bool bug>
__global__ void async_pipeline(const float* x, float* y) {
  FASTCONV_SHARED(float[2][64], tile);
  float sum = 0;
  copy_async<4>(&tile[0][threadIdx.x], x + threadIdx.x);
  copy_async_commit();
  for (int i = 0; i < 4; ++i) {
    copy_async_wait<0>();
    if (!bug) __syncthreads();
    if (i < 3) copy_async<4>(&tile[(i + 1) % 2][threadIdx.x], x + threadIdx.x);
    copy_async_commit();
    if (bug) __syncthreads();
    sum += tile[i % 2][63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

template <bool bug>
__global__ void read_bounds(const float* x, float* y) {
  y[threadIdx.x] = x[bug ? threadIdx.x + 1 : threadIdx.x];
}

template <bool bug>
__global__ void write_bounds(const float* x, float* y) {
  y[int(threadIdx.x) - bug] = x[threadIdx.x];
}

// One byte beyond: bounds are exact.
template <bool bug>
__global__ void byte_bounds(const float* x, float* y) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(x);
  y[threadIdx.x] = bytes[4 * threadIdx.x + 3 + bug];
}

template <bool bug>
__global__ void vector_bounds(const float* x, float* y) {
  Pack<float, 4> v = load_pack<4>(x + 4 * (threadIdx.x % 16) + (bug ? 4 : 0));
  y[threadIdx.x] = v.at[threadIdx.x % 4];
}

template <bool bug>
__global__ void misaligned_vector(const float* x, float* y) {
  Pack<float, 4> v = load_pack<4>(x + 4 * (threadIdx.x % 15) + bug);
  y[threadIdx.x] = v.at[0];
}

// A thread's local variables are its own, however near in memory: the deep frame of one lies beside the next one's stack.
template <bool bug>
__global__ void local_of_another(const float* x, float* y) {
  FASTCONV_SHARED(float* [64], where);
  float* local = static_cast<float*>(__builtin_alloca(threadIdx.x % 2 ? 4 : 32768));
  *local = x[threadIdx.x];
  where[threadIdx.x] = local;
  __syncthreads();
  y[threadIdx.x] = *where[bug ? threadIdx.x & ~1u : threadIdx.x];
  __syncthreads();
}

template <bool bug>
__global__ void misaligned_plain(const float* x, float* y) {
  const auto* p = reinterpret_cast<const double*>(x + 2 * (threadIdx.x % 31) + bug);
  y[threadIdx.x] = float(*p);
}

template <bool bug>
__global__ void misaligned_async(const float* x, float* y) {
  FASTCONV_SHARED(float[64], tile);
  if (threadIdx.x < 15) copy_async<16>(tile + 4 * threadIdx.x, x + 4 * threadIdx.x + bug);
  copy_async_commit();
  copy_async_wait<0>();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool bug>
__global__ void read_only(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (bug) const_cast<float*>(x)[threadIdx.x] = 0;
}

template <bool bug>
__global__ void never_written(const float* x, float* y) {
  if (!bug || threadIdx.x != 17) y[threadIdx.x] = x[threadIdx.x];
}

template <bool bug>
__global__ void unwritten_global(const float* x, float* y) {
  if (!bug) y[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] += x[threadIdx.x];
}

template <bool bug>
__global__ void divergent_barrier(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (bug) {
    if (threadIdx.x < 16)
      __syncthreads();
    else
      __syncthreads();
  } else {
    __syncthreads();
  }
}

template <bool bug>
__global__ void exit_before_barrier(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (bug && threadIdx.x == 5) return;
  __syncthreads();
}

template <bool bug>
__global__ void wrong_mask(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(bug ? all : 0xffffu, v, 1);
  y[threadIdx.x] = v;
}

template <bool bug>
__global__ void not_in_mask(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + float(__ballot_sync(bug ? 0xfffffffeu : all, 1) != 0);
}

template <bool bug>
__global__ void shuffle_from_outside(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffffu, v, bug ? 20 : 3);
  y[threadIdx.x] = v;
}

template <bool bug>
__global__ void divergent_warp(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (bug && threadIdx.x % 2)
    v += __shfl_xor_sync(all, v, 2);
  else
    v += __shfl_xor_sync(all, v, 1);
  y[threadIdx.x] = v;
}

// Half of a warp waits for the block, half for the warp.
template <bool bug>
__global__ void deadlock(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (bug && threadIdx.x % 32 < 16)
    __syncwarp();
  else
    __syncthreads();
  if (bug && threadIdx.x % 32 < 16) __syncthreads();
}

template <bool bug>
__global__ void ldmatrix_race(const float* x, float* y) {
  FASTCONV_SHARED(float[256], tile);
  for (int i = threadIdx.x; i < 256; i += 64) tile[i] = x[i % 64];
  if (!bug) __syncthreads();
  uint32_t r[4];
  load_matrix<false>(r, tile + 4 * (threadIdx.x % 32));
  y[threadIdx.x] = __uint_as_float(r[0]);
}

struct Setup {
  const float* x;
  float* y;
};
using Run = void (*)(const Setup&, bool bug);

#define CASE(name, shared)                                                                        \
  {#name, [](const Setup& s, bool bug) {                                                          \
     launch(#name, bug ? name<true> : name<false>, dim3(2), dim3(64), shared, nullptr, s.x, s.y); \
   }}

// The launch limits have no kernel body to plant a bug in.
void too_many_threads(const Setup& s, bool bug) {
  launch("read_bounds", read_bounds<false>, dim3(1), dim3(bug ? 1056 : 64), 0, nullptr, s.x, s.y);
}
void too_much_shared(const Setup& s, bool bug) {
  launch("read_bounds", read_bounds<false>, dim3(1), dim3(64), simt::architecture().dynamic_shared + bug, nullptr, s.x, s.y);
}
void too_large_grid(const Setup& s, bool bug) {
  launch("read_bounds", read_bounds<false>, dim3(1, bug ? 65536 : 1), dim3(64), 0, nullptr, s.x, s.y);
}

const struct {
  const char* name;
  Run run;
} cases[] = {CASE(read_after_write, 0),
             CASE(write_after_read, 0),
             CASE(write_after_write, 0),
             CASE(warp_barrier, 0),
             CASE(uninitialised_shared, 0),
             CASE(shared_bounds, 256),
             CASE(async_wait, 0),
             CASE(async_barrier, 0),
             CASE(async_exit, 0),
             CASE(async_pipeline, 0),
             CASE(read_bounds, 0),
             CASE(write_bounds, 0),
             CASE(byte_bounds, 0),
             CASE(vector_bounds, 0),
             CASE(misaligned_vector, 0),
             CASE(misaligned_plain, 0),
             CASE(local_of_another, 0),
             CASE(misaligned_async, 0),
             CASE(read_only, 0),
             CASE(never_written, 0),
             CASE(unwritten_global, 0),
             CASE(divergent_barrier, 0),
             CASE(exit_before_barrier, 0),
             CASE(wrong_mask, 0),
             CASE(not_in_mask, 0),
             CASE(shuffle_from_outside, 0),
             CASE(divergent_warp, 0),
             CASE(deadlock, 0),
             CASE(ldmatrix_race, 0),
             {"too_many_threads", too_many_threads},
             {"too_much_shared", too_much_shared},
             {"too_large_grid", too_large_grid}};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& c : cases) std::puts(c.name);
    return 0;
  }
  if (argc != 5) return std::fputs("usage: planted [CASE bug|clean forward|reverse|random SEED]\n", stderr), 2;
  const std::string order = argv[3];
  simt::options().order = order == "reverse"  ? simt::Order::reverse
                          : order == "random" ? simt::Order::random
                                              : simt::Order::forward;
  simt::options().seed = unsigned(std::atoi(argv[4]));
  const std::vector<float> input(80, 1.0f);
  std::vector<float> output(64);
  const float* x = input.data();  // aligned to 16 by the allocator; the buffer is its first 64 elements
  float* y = output.data();
  for (const auto& c : cases) {
    if (std::string(c.name) != argv[1]) continue;
    try {
      simt::DeviceMemory memory({{"x", x, 256, simt::Access::read_only, false}, {"y", y, 256, simt::Access::read_write, true}});
      c.run({x, y}, std::strcmp(argv[2], "bug") == 0);
      memory.finish();
      std::puts("clean");
    } catch (const simt::KernelFault& fault) {
      std::puts(fault.what());
    }
    return 0;
  }
  return std::fputs("no such case\n", stderr), 2;
}
