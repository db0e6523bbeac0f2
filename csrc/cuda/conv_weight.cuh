// What the weight-gradient kernels share: the cut of the sum over pixels into slices (split-K), and its end: slices are added
// in their order, so the bits do not depend on which block finished first.
#pragma once

#include "conv_gather.cuh"

namespace fastconv::FASTCONV_BACKEND {

// The sum over pixels of one (group, tap) is cut into `count` slices of `length` pixels.
struct Slices {
  int count;
  int64_t length;
};

// About two waves of blocks, but at least `least` pixels a slice. A function of the problem and the GPU alone.
inline Slices slices_for(int64_t pixels, int64_t blocks, int multiprocessors, int64_t least) {
  int64_t count = (2 * int64_t(multiprocessors) + blocks - 1) / blocks;
  const int64_t most = (pixels + least - 1) / least;
  count = count < 1 ? 1 : count;
  count = count > most ? most : count;
  int64_t length = (pixels + count - 1) / count;
  length = (length + 31) / 32 * 32;
  return {int((pixels + length - 1) / length), length};
}

// Partial sums: [slice][group][tap][k][c], then [slice][group][k] for the bias. C is the type of the sums.
template <class C>
struct Partials {
  C* weights;
  C* bias;  // null: no bias gradient is wanted
};

// A block sums 32 neighbouring elements, 8 threads each every 8th slice.
template <class T, class C>
__global__ void __launch_bounds__(256)
    reduce_slices(const C* partial, T* out, WeightStrides strides, int slices, int64_t groups, int taps, int k, int c) {
  constexpr int width = 32, share = 8;
  FASTCONV_SHARED(C[share][width], sums);
  const int lane = int(threadIdx.x) % width, part = int(threadIdx.x) / width;
  const int64_t count = groups * taps * k * c, step = int64_t(gridDim.x) * width;
  for (int64_t first = int64_t(blockIdx.x) * width; first < count; first += step) {
    const int64_t i = first + lane;
    C sum = 0;
    for (int slice = part; slice < slices && i < count; slice += share) sum += partial[slice * count + i];
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && i < count) {
      for (int other = 1; other < share; ++other) sum += sums[other][lane];
      const int64_t channel = i % c, output = i / c % k, tap = i / c / k % taps, group = i / c / k / taps;
      device::narrow(sum, out[(group * k + output) * strides.k + channel * strides.c + tap * strides.tap]);
    }
    __syncthreads();
  }
}

template <class C>
int64_t partial_bytes(const ConvProblem& p, const Slices& slices) {
  return int64_t(slices.count) * (p.k * (p.c / p.groups) * p.r * p.s + p.k) * int64_t(sizeof(C));
}
template <class C>
Partials<C> partials_in(const ConvProblem& p, const Slices& slices, void* workspace, bool bias) {
  C* weights = static_cast<C*>(workspace);
  return {weights, bias ? weights + int64_t(slices.count) * p.k * (p.c / p.groups) * p.r * p.s : nullptr};
}

template <class T, class C>
void reduce_bias(const ConvProblem& p, const Slices& slices, const Partials<C>& partials, T* gb, void* stream) {
  device::launch("reduce_slices", reduce_slices<T, C>, dim3(device::blocks_for(p.k, 32)), dim3(256), 0, stream, partials.bias,
                 gb, WeightStrides{1, 1, 1}, slices.count, 1, 1, int(p.k), 1);
}

template <class T, class C>
void finish_weight_gradient(const ConvProblem& p, const Slices& slices, const Partials<C>& partials, T* gw, T* gb,
                            void* stream) {
  const int64_t c = p.c / p.groups, taps = p.r * p.s;
  device::launch("reduce_slices", reduce_slices<T, C>, dim3(device::blocks_for(p.k * c * taps, 32)), dim3(256), 0, stream,
                 partials.weights, gw, weight_strides(p), slices.count, p.groups, int(taps), int(p.k / p.groups), int(c));
  if (gb) reduce_bias(p, slices, partials, gb, stream);
}

}  // namespace fastconv::FASTCONV_BACKEND
