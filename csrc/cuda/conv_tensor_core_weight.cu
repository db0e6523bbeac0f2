// Weight gradient as a matrix product on tensor cores. The sum over pixels is cut into slices, each a block of its own.
#include "conv.h"
#include "conv_tensor_core.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

// ---- weight gradient: rows are output channels, columns input channels of one tap, the sum runs over pixels ----

template <class X>
__global__ void __launch_bounds__(X::threads, X::blocks)
    weight_tensor_core(Gather g, int in_padded, int out_padded, Slices slices, int64_t blocks, const typename X::T* gy,
                       const typename X::T* x, Partials<float> partials) {
  using T = typename X::T;
  constexpr int pack = X::E::pack, chunks = X::rows / pack, own = X::depth * chunks / X::threads;
  static_assert(X::rows == X::columns, "a thread copies the same pixels of both operands");
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const int tid = int(threadIdx.x);
  const int row_tiles = (g.out_channels + X::rows - 1) / X::rows, column_tiles = (g.in_channels + X::columns - 1) / X::columns;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int column0 = int(block % column_tiles) * X::columns, row0 = int(block / column_tiles % row_tiles) * X::rows;
    const int tap = int(block / column_tiles / row_tiles % g.taps),
              group = int(block / column_tiles / row_tiles / g.taps % g.groups);
    const int64_t slice = block / column_tiles / row_tiles / g.taps / g.groups;
    const int64_t begin = slice * slices.length, all = g.positions();
    const int64_t end = begin + slices.length < all ? begin + slices.length : all;

    const int channel = tid % chunks * pack;
    const bool row_inside = row0 + channel < out_padded, column_inside = column0 + channel < in_padded;
    const T *gy_channel = gy + int64_t(group) * out_padded + row0 + channel,
            *x_channel = x + int64_t(group) * in_padded + column0 + channel;
    const int tap_row = tap / g.kernel_columns, tap_column = tap % g.kernel_columns;
    const PositionStep stride = step_of(g, X::depth);
    Position at[own];
    int64_t left[own];  // pixels of the slice from this one on
#pragma unroll
    for (int i = 0; i < own; ++i) {
      left[i] = end - begin - (tid / chunks + i * (X::threads / chunks));
      at[i] = position_of(g, end - left[i]);
    }
    const auto load = [&](T* a, T* b) {
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const int k = tid / chunks + i * (X::threads / chunks);
        const bool a_inside = left[i] > 0 && row_inside;
        copy_async<16>(a + X::E::template at<X::rows>(k, channel), a_inside ? gy_channel + output_of(g, at[i]) : gy,
                       a_inside ? 16 : 0);
        const int64_t pixel = left[i] > 0 && column_inside ? input_of(g, at[i], tap_row, tap_column) : -1;
        copy_async<16>(b + X::E::template at<X::columns>(k, channel), pixel >= 0 ? x_channel + pixel : x, pixel >= 0 ? 16 : 0);
        left[i] -= X::depth;
        advance(g, stride, at[i]);
      }
    };

    Sums<X> sums = {};
    float bias_sum = 0;
    const bool sums_bias = partials.bias && tap == 0 && column0 == 0 && tid < X::rows;
    pipeline<X>(shared, (end - begin + X::depth - 1) / X::depth, load, [&](const T* a, const T* b) {
      multiply_chunk<X, true>(sums, a, b, warp_row<X>(), warp_column<X>());
      if (sums_bias)
#pragma unroll 1
        for (int k = 0; k < X::depth; ++k) bias_sum += widen(a[X::E::template at<X::rows>(k, tid)]);
    });

    float* out = partials.weights + ((slice * g.groups + group) * g.taps + tap) * g.out_channels * g.in_channels;
    each_sum<X>(sums, [&](int row, int column, float sum) {
      if (row0 + row < g.out_channels && column0 + column < g.in_channels)
        out[(row0 + row) * g.in_channels + column0 + column] = sum;
    });
    if (sums_bias && row0 + tid < g.out_channels)
      partials.bias[(slice * g.groups + group) * g.out_channels + row0 + tid] = bias_sum;
  }
}

// ---- launches ----

// A prediction: large tiles where both channel counts fill them.
bool is_large(TileShape tile, int64_t k, int64_t c) {
  return tile == TileShape::by_rule ? k > 64 && c > 64 : tile == TileShape::large;
}

template <class X>
void launch_weight(const char* name, const Gather& g, int in_padded, int out_padded, const Slices& slices,
                   const typename X::T* gy, const typename X::T* x, const Partials<float>& partials, void* stream) {
  const int64_t rows = (g.out_channels + X::rows - 1) / X::rows, columns = (g.in_channels + X::columns - 1) / X::columns;
  const int64_t blocks = rows * columns * g.taps * g.groups * slices.count;
  launch(name, weight_tensor_core<X>, dim3(blocks_for(blocks, 1)), dim3(X::threads), X::shared_bytes, stream, g, in_padded,
         out_padded, slices, blocks, gy, x, partials);
}

}  // namespace

Slices tensor_core_slices(int64_t pixels, int64_t k, int64_t c, int64_t taps_and_groups, int multiprocessors, TileShape tile) {
  const int64_t side = is_large(tile, k, c) ? 128 : 64;
  return slices_for(pixels, (k + side - 1) / side * ((c + side - 1) / side) * taps_and_groups, multiprocessors, 256);
}

template <class T>
void tensor_core_weight(const char* name, const Gather& g, int in_padded, int out_padded, const Slices& slices, const T* gy,
                        const T* x, const Partials<float>& partials, void* stream, TileShape tile) {
  const auto launch_tile = is_large(tile, g.out_channels, g.in_channels) ? launch_weight<Large<T>> : launch_weight<Small<T>>;
  launch_tile(name, g, in_padded, out_padded, slices, gy, x, partials, stream);
}
template void tensor_core_weight(const char*, const Gather&, int, int, const Slices&, const Half*, const Half*,
                                 const Partials<float>&, void*, TileShape);
template void tensor_core_weight(const char*, const Gather&, int, int, const Slices&, const BFloat16*, const BFloat16*,
                                 const Partials<float>&, void*, TileShape);
template void tensor_core_weight(const char*, const Gather&, int, int, const Slices&, const float*, const float*,
                                 const Partials<float>&, void*, TileShape);

namespace {

Slices weight_slices(const ConvProblem& p, int multiprocessors, TileShape tile) {
  return tensor_core_slices(p.n * p.p * p.q, p.k / p.groups, p.c / p.groups, p.r * p.s * p.groups, multiprocessors, tile);
}

template <class T>
void run_weight(const ConvProblem& p, const ConvArgs& args, TileShape tile) {
  const Operand<T> in = x_of<T>(p), out = y_of<T>(p);
  const Slices slices = weight_slices(p, args.threads, tile);
  const Partials<float> partials = partials_in<float>(p, slices, args.workspace, args.gb != nullptr);
  char* workspace = static_cast<char*>(args.workspace) + aligned(partial_bytes<float>(p, slices));
  const T* x = in.ready(args.x, workspace, args.stream);
  const T* gy = out.ready(args.gy, workspace + in.copy_bytes(), args.stream);
  Gather g = forward_gather(p, Element<T>::pack);
  g.in = in.strides();
  g.out = out.strides();
  tensor_core_weight<T>("conv_weight_gradient_tensor_core", g, int(in.padded()), int(out.padded()), slices, gy, x, partials,
                        args.stream, tile);
  finish_weight_gradient<T>(p, slices, partials, static_cast<T*>(args.gw), static_cast<T*>(args.gb), args.stream);
}

template <TileShape tile>
void run(const ConvProblem& p, const ConvArgs& args) {
  with_type(p, [&](auto type) { run_weight<decltype(type)>(p, args, tile); });
}

template <TileShape tile>
int64_t workspace(const ConvProblem& p, int multiprocessors) {
  return with_type(p, [&](auto type) {
    using T = decltype(type);
    return aligned(partial_bytes<float>(p, weight_slices(p, multiprocessors, tile))) + x_of<T>(p).copy_bytes() +
           y_of<T>(p).copy_bytes();
  });
}

bool always(const ConvProblem&) { return true; }
bool never(const ConvProblem&) { return false; }

template <TileShape tile>
constexpr ConvAlgorithm algorithm(const char* name) {
  return {
      name,     Primitive::weight_gradient, tensor_core_applies, tile == TileShape::by_rule ? always : never, workspace<tile>,
      run<tile>};
}

}  // namespace

const ConvAlgorithm tensor_core_weight_gradient[3] = {algorithm<TileShape::by_rule>("tensor_core"),
                                                      algorithm<TileShape::large>("tensor_core_128x128"),
                                                      algorithm<TileShape::small>("tensor_core_64x64")};

}  // namespace fastconv::FASTCONV_BACKEND
