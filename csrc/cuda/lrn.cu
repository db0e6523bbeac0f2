// Local response normalisation, forward and backward. Bound by memory: a block copies a tile of channels x pixels, with the
// channels that its windows reach beyond it, into shared memory, and each value of the tensors is moved once from or to device
// memory.
//
// With d = k + alpha * (sum of x^2 over the window): y = x d^-beta, and
//   gx[i] = gy[i] d[i]^-beta - 2 alpha beta x[i] (sum over j whose window has i of gy[j] x[j] d[j]^(-beta - 1)).
// Sums run from the lowest channel up and are not updated by sliding: no drift, the same bits wherever a tile begins.
#include "lrn.h"

#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int threads_a_block = 256;
constexpr int own_channels = 32;  // results of a tile along the channels
constexpr int own_pixels = 32;
constexpr int64_t most_shared = 96 << 10;

template <class T>
constexpr int pack = 16 / int(sizeof(T));

// The problem in 64 bits for addresses and 32 bits inside a tile.
template <class C>
struct Normalisation {
  int64_t batch, channels, pixels;
  int64_t channel_step, pixel_step;  // element distances
  int before, after;                 // the window of channel i is i - before .. i + after
  int halo;  // channels of a tile beyond its own, on each side: a multiple of 8, so that packs stay aligned
  C alpha, beta, k;
};

// d^-beta.
template <class C>
FASTCONV_DEVICE C inverse_power(C d, C beta) {
  return beta == C(0.75)  ? C(1) / (square_root(d) * square_root(square_root(d)))
         : beta == C(0.5) ? C(1) / square_root(d)
                          : power(d, -beta);
}

// A tile in shared memory: `reach` channels from `first_channel` - halo, own_pixels pixels. The axis that is contiguous in
// device memory is contiguous here.
template <class C, bool last>
struct Tile {
  C* values;
  int reach;
  FASTCONV_DEVICE C& operator()(int channel, int pixel) const {
    return last ? values[pixel * reach + channel] : values[channel * own_pixels + pixel];
  }
};

// Copies the tile whose first channel (of the halo) is c0 and first pixel p0 of image `x`; zeros outside the tensor.
template <class T, class C, bool last>
FASTCONV_DEVICE void fill(const Normalisation<C>& of, const Tile<C, last>& tile, const T* x, int64_t c0, int64_t p0,
                          bool packs) {
  constexpr int width = pack<T>;
  const int fast = last ? tile.reach : own_pixels, slow = last ? own_pixels : tile.reach;
  for (int i = int(threadIdx.x) * width; i < fast * slow; i += int(blockDim.x) * width) {
    const int along = i % fast, row = i / fast;
    const int64_t channel = c0 + (last ? along : row), pixel = p0 + (last ? row : along);
    const int64_t offset = channel * of.channel_step + pixel * of.pixel_step;
    const bool row_inside = last ? pixel < of.pixels : channel >= 0 && channel < of.channels;
    const int64_t first = last ? channel : pixel, limit = last ? of.channels : of.pixels;
    if (packs && row_inside && first >= 0 && first + width <= limit) {
      const auto values = load_pack<width>(x + offset);
      for (int k = 0; k < width; ++k) tile(last ? along + k : row, last ? row : along + k) = widen(values.at[k]);
    } else {
      for (int k = 0; k < width; ++k) {
        const bool inside = row_inside && first + k >= 0 && first + k < limit;
        tile(last ? along + k : row, last ? row : along + k) = inside ? widen(x[offset + k]) : C(0);
      }
    }
  }
}

// k + alpha * sum of squares over the window of a channel of the tile.
template <class C, bool last>
FASTCONV_DEVICE C base(const Normalisation<C>& of, const Tile<C, last>& x, int channel, int pixel) {
  C sum = 0;
  for (int c = channel - of.before; c <= channel + of.after; ++c) {
    const C value = x(c, pixel);
    sum = multiply_add(value, value, sum);
  }
  return multiply_add(of.alpha, sum, of.k);
}

// Calls result(channel in the tile, pixel in the tile) for the tile's own elements and stores what it gives.
template <class T, class C, bool last, class Result>
FASTCONV_DEVICE void store_own(const Normalisation<C>& of, T* y, int64_t c0, int64_t p0, bool packs, const Result& result) {
  constexpr int width = pack<T>;
  const int fast = last ? own_channels : own_pixels;
  for (int i = int(threadIdx.x) * width; i < own_channels * own_pixels; i += int(blockDim.x) * width) {
    const int along = i % fast, row = i / fast;
    const int channel = last ? along : row, pixel = last ? row : along;
    const int64_t offset = (c0 + channel) * of.channel_step + (p0 + pixel) * of.pixel_step;
    const bool row_inside = last ? p0 + pixel < of.pixels : c0 + channel < of.channels;
    const int64_t left = last ? of.channels - c0 - channel : of.pixels - p0 - pixel;
    if (!row_inside || left <= 0) continue;
    const auto value = [&](int k) { return result(of.halo + channel + (last ? k : 0), pixel + (last ? 0 : k)); };
    if (packs) {  // then whole packs are left
      Pack<T, width> out;
#pragma unroll
      for (int k = 0; k < width; ++k) narrow(value(k), out.at[k]);
      store_global(y + offset, out);
    } else {
#pragma unroll 1
      for (int k = 0; k < width && k < left; ++k) narrow(value(k), y[offset + k]);
    }
  }
}

// A block's tile: blockIdx.x counts pixel tiles, y channel tiles, z images.
template <class Body>
FASTCONV_DEVICE void each_tile(int64_t batch, int64_t channels, int64_t pixels, const Body& body) {
  for (int64_t n = blockIdx.z; n < batch; n += gridDim.z)
    for (int64_t c0 = int64_t(blockIdx.y) * own_channels; c0 < channels; c0 += int64_t(gridDim.y) * own_channels)
      for (int64_t p0 = int64_t(blockIdx.x) * own_pixels; p0 < pixels; p0 += int64_t(gridDim.x) * own_pixels) body(n, c0, p0);
}

template <class T, bool last>
__global__ void __launch_bounds__(threads_a_block)
    lrn_forward_tile(Normalisation<Compute<T>> of, bool packs, const T* x, T* y) {
  using C = Compute<T>;
  FASTCONV_DYNAMIC_SHARED(C, shared);
  const Tile<C, last> tile{shared, own_channels + 2 * of.halo};
  each_tile(of.batch, of.channels, of.pixels, [&](int64_t n, int64_t c0, int64_t p0) {
    const int64_t image = n * of.channels * of.pixels;
    fill(of, tile, x + image, c0 - of.halo, p0, packs);
    __syncthreads();
    store_own<T, C, last>(of, y + image, c0, p0, packs,
                          [&](int c, int p) { return tile(c, p) * inverse_power(base(of, tile, c, p), of.beta); });
    __syncthreads();
  });
}

template <class T, bool last>
__global__ void __launch_bounds__(threads_a_block)
    lrn_backward_tile(Normalisation<Compute<T>> of, bool packs, const T* x, const T* gy, T* gx) {
  using C = Compute<T>;
  FASTCONV_DYNAMIC_SHARED(C, shared);
  const int reach = own_channels + 2 * of.halo;
  const Tile<C, last> values{shared, reach}, gradients{shared + reach * own_pixels, reach},
      terms{shared + 2 * reach * own_pixels, reach};
  each_tile(of.batch, of.channels, of.pixels, [&](int64_t n, int64_t c0, int64_t p0) {
    const int64_t image = n * of.channels * of.pixels;
    fill(of, values, x + image, c0 - of.halo, p0, packs);
    fill(of, gradients, gy + image, c0 - of.halo, p0, packs);
    __syncthreads();
    // The terms of the tile's own channels and of those whose windows reach into it; `gradients` becomes gy d^-beta.
    const int margin = of.before > of.after ? of.before : of.after, first = of.halo - margin, count = own_channels + 2 * margin;
    for (int i = int(threadIdx.x); i < count * own_pixels; i += int(blockDim.x)) {
      const int channel = first + (last ? i % count : i / own_pixels), pixel = last ? i / count : i % own_pixels;
      const int64_t c = c0 - of.halo + channel;
      const bool inside = c >= 0 && c < of.channels;
      const C d = base(of, values, channel, pixel),
              scaled = inside ? gradients(channel, pixel) * inverse_power(d, of.beta) : C(0);
      gradients(channel, pixel) = scaled;
      terms(channel, pixel) = inside ? scaled * values(channel, pixel) / d : C(0);
    }
    __syncthreads();
    store_own<T, C, last>(of, gx + image, c0, p0, packs, [&](int c, int p) {
      C sum = 0;
      for (int j = c - of.after; j <= c + of.before; ++j) sum += terms(j, p);
      return multiply_add(C(-2) * of.alpha * of.beta * sum, values(c, p), gradients(c, p));
    });
    __syncthreads();
  });
}

// Windows too wide for shared memory: one result a thread, each term computed anew.
template <class T>
__global__ void __launch_bounds__(threads_a_block)
    lrn_any(Normalisation<Compute<T>> of, bool backward, const T* x, const T* gy, T* out) {
  using C = Compute<T>;
  const int64_t count = of.batch * of.channels * of.pixels, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t c = i / of.channel_step % of.channels, origin = i - c * of.channel_step;
    const auto at = [&](const T* p, int64_t channel) { return widen(p[origin + channel * of.channel_step]); };
    const auto base_of = [&](int64_t channel) {
      C sum = 0;
      for (int64_t j = channel - of.before; j <= channel + of.after; ++j)
        if (j >= 0 && j < of.channels) sum = multiply_add(at(x, j), at(x, j), sum);
      return multiply_add(of.alpha, sum, of.k);
    };
    const C own = inverse_power(base_of(c), of.beta);
    if (!backward) {
      narrow(at(x, c) * own, out[i]);
      continue;
    }
    C sum = 0;
    for (int64_t j = c - of.after; j <= c + of.before; ++j) {
      if (j < 0 || j >= of.channels) continue;
      const C d = base_of(j);
      sum += at(gy, j) * inverse_power(d, of.beta) * at(x, j) / d;
    }
    narrow(multiply_add(C(-2) * of.alpha * of.beta * sum, at(x, c), at(gy, c) * own), out[i]);
  }
}

template <class T>
Normalisation<Compute<T>> normalisation_of(const LrnProblem& p) {
  using C = Compute<T>;
  const bool last = p.layout == Layout::channels_last;
  // A window wider than the channels sees them all.
  const int before = int(p.size / 2 < p.c ? p.size / 2 : p.c), after = int((p.size - 1) / 2 < p.c ? (p.size - 1) / 2 : p.c);
  const int margin = before > after ? before : after;
  return {p.n,        p.c,       p.spatial, last ? 1 : p.spatial, last ? p.c : 1, before, after, (2 * margin + 7) / 8 * 8,
          C(p.alpha), C(p.beta), C(p.k)};
}

template <class T>
dim3 grid_of(const LrnProblem& p) {
  const auto most = [](int64_t count) { return unsigned(count < 65535 ? count : 65535); };
  return {blocks_for(p.spatial, own_pixels), most((p.c + own_channels - 1) / own_channels), most(p.n)};
}

// Whether rows of the contiguous axis begin at multiples of 16 bytes.
template <class T>
bool packs_of(const LrnProblem& p, std::initializer_list<const void*> pointers) {
  const int64_t contiguous = p.layout == Layout::channels_last ? p.c : p.spatial;
  bool aligned = contiguous % pack<T> == 0;
  for (const void* q : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(q) % 16 == 0;
  return aligned;
}

template <class T>
void forward_of(const LrnProblem& p, const T* x, T* y, void* stream) {
  const auto of = normalisation_of<T>(p);
  const size_t shared = size_t(own_channels + 2 * of.halo) * own_pixels * sizeof(Compute<T>);
  if (shared > most_shared)
    return launch("lrn_any", lrn_any<T>, dim3(blocks_for(p.n * p.c * p.spatial, threads_a_block)), dim3(threads_a_block), 0,
                  stream, of, false, x, nullptr, y);
  const auto kernel = p.layout == Layout::channels_last ? lrn_forward_tile<T, true> : lrn_forward_tile<T, false>;
  launch("lrn_forward_tile", kernel, grid_of<T>(p), dim3(threads_a_block), shared, stream, of, packs_of<T>(p, {x, y}), x, y);
}

template <class T>
void backward_of(const LrnProblem& p, const T* x, const T* gy, T* gx, void* stream) {
  const auto of = normalisation_of<T>(p);
  const size_t shared = size_t(own_channels + 2 * of.halo) * own_pixels * 3 * sizeof(Compute<T>);
  if (shared > most_shared)
    return launch("lrn_any", lrn_any<T>, dim3(blocks_for(p.n * p.c * p.spatial, threads_a_block)), dim3(threads_a_block), 0,
                  stream, of, true, x, gy, gx);
  const auto kernel = p.layout == Layout::channels_last ? lrn_backward_tile<T, true> : lrn_backward_tile<T, false>;
  launch("lrn_backward_tile", kernel, grid_of<T>(p), dim3(threads_a_block), shared, stream, of, packs_of<T>(p, {x, gy, gx}), x,
         gy, gx);
}

}  // namespace

void lrn_forward(const LrnProblem& p, const void* x, void* y, void* stream) {
  FASTCONV_FOR_DTYPE(p.dtype, forward_of<T>(p, static_cast<const T*>(x), static_cast<T*>(y), stream))
}

void lrn_backward(const LrnProblem& p, const void* x, const void* gy, void* gx, void* stream) {
  FASTCONV_FOR_DTYPE(p.dtype,
                     backward_of<T>(p, static_cast<const T*>(x), static_cast<const T*>(gy), static_cast<T*>(gx), stream))
}

}  // namespace fastconv::FASTCONV_BACKEND
