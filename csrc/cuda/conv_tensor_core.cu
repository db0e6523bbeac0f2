// Convolution as a matrix product on tensor cores: forward and input gradient.
//
// A block computes a tile of positions x output channels, walking over taps and chunks of input channels with cp.async, three
// chunks in flight.
#include "conv.h"
#include "conv_tensor_core.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

// ---- forward and input gradient ----

// `in_padded` channels a group lie densely in x, of which g.in_channels are real and the rest zeros.
template <class X>
__global__ void __launch_bounds__(X::threads, X::blocks)
    gather_tensor_core(Gather g, int in_padded, int64_t row_tiles, const typename X::T* x, const typename X::T* weights,
                       const typename X::T* bias, typename X::T* y) {
  using T = typename X::T;
  constexpr int pack = X::E::pack, row_chunks = X::depth / pack, column_chunks = X::columns / pack;
  constexpr int own = X::rows * row_chunks / X::threads;
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const int tid = int(threadIdx.x);
  const int column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  const int64_t tiles = row_tiles * column_tiles * g.groups;
  const int64_t steps = int64_t(g.rows.taps) * g.columns.taps * ((in_padded + X::depth - 1) / X::depth);

  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int column0 = int(tile % column_tiles) * X::columns;
    const int64_t row0 = tile / column_tiles % row_tiles * X::rows;
    const int group = int(tile / column_tiles / row_tiles);

    Position at[own];
#pragma unroll
    for (int i = 0; i < own; ++i) at[i] = position_of(g, row0 + tid / row_chunks + i * (X::threads / row_chunks));

    const int in_chunk = tid % row_chunks * pack, row = tid / row_chunks, column = tid % column_chunks * pack;
    TapWalk walk;
    int64_t from[own];
    const auto aim = [&] {
#pragma unroll
      for (int i = 0; i < own; ++i) from[i] = input_of(g, at[i], walk.row, walk.column);
    };
    aim();
    const bool column_inside = column0 + column < g.out_padded;
    const T* panel = weights + int64_t(group) * g.taps * in_padded * g.out_padded + column0 + column;

    const auto load = [&](T* a, T* b) {
      const int channel = walk.channel + in_chunk;
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const bool inside = from[i] >= 0 && channel < in_padded;
        copy_async<16>(a + X::E::template at<X::depth>(row + i * (X::threads / row_chunks), in_chunk),
                       inside ? x + from[i] + int64_t(group) * in_padded + channel : x, inside ? 16 : 0);
      }
#pragma unroll
      for (int i = 0; i < X::depth * column_chunks / X::threads; ++i) {
        const int k = tid / column_chunks + i * (X::threads / column_chunks), weight_channel = walk.channel + k;
        const bool inside = weight_channel < in_padded && column_inside;
        copy_async<16>(b + X::E::template at<X::columns>(k, column),
                       inside ? panel + (int64_t(walk.tap(g)) * in_padded + weight_channel) * g.out_padded : weights,
                       inside ? 16 : 0);
      }
      if (walk.next(g, in_padded, X::depth)) aim();
    };

    Sums<X> sums = {};
    pipeline<X>(shared, steps, load,
                [&](const T* a, const T* b) { multiply_chunk<X, false>(sums, a, b, warp_row<X>(), warp_column<X>()); });

    // Results go through shared memory, so that they leave in whole lines in either layout.
    each_sum<X>(sums, [&](int row, int column, float sum) {
      const int channel = column0 + column;
      if (bias && channel < g.out_channels) sum += widen(bias[group * g.out_channels + channel]);
      narrow(activate(sum, g.relu), shared[row * X::result_pitch + column]);
    });
    __syncthreads();
    const bool by_channels = g.out.c == 1;
    if (by_channels) {
      const bool packs = g.out_channels % pack == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
      for (int i = tid; i < X::rows * column_chunks; i += X::threads) {
        const int row = i / column_chunks, column = i % column_chunks * pack, channel = column0 + column;
        const Position position = position_of(g, row0 + row);
        if (position.image < 0 || channel >= g.out_channels) continue;
        T* out = y + output_of(g, position) + int64_t(group) * g.out_channels + channel;
        const T* from = shared + row * X::result_pitch + column;
        if (packs) {
          store_pack(out, load_pack<pack>(from));
        } else {
          for (int k = 0; k < pack && channel + k < g.out_channels; ++k) out[k] = from[k];
        }
      }
    } else {
      for (int i = tid; i < X::rows * X::columns; i += X::threads) {
        const int row = i % X::rows, column = i / X::rows, channel = column0 + column;
        const Position position = position_of(g, row0 + row);
        if (position.image >= 0 && channel < g.out_channels)
          y[output_of(g, position) + (int64_t(group) * g.out_channels + channel) * g.out.c] =
              shared[row * X::result_pitch + column];
      }
    }
    __syncthreads();  // the next tile refills shared memory
  }
}

// ---- launches ----

template <class X>
void launch_gather(const char* name, const Gather& g, int in_padded, const typename X::T* x, const typename X::T* weights,
                   const typename X::T* bias, typename X::T* y, void* stream) {
  const int64_t row_tiles = (g.positions() + X::rows - 1) / X::rows,
                column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  launch(name, gather_tensor_core<X>, dim3(blocks_for(row_tiles * column_tiles * g.groups, 1)), dim3(X::threads),
         X::shared_bytes, stream, g, in_padded, row_tiles, x, weights, bias, y);
}

}  // namespace

namespace {

// A prediction: the largest tile of which there is one for each multiprocessor, since it reads least from the L2 for a product.
TileShape tile_by_rule(const Gather& g, int multiprocessors) {
  const int64_t down = (g.positions() + 127) / 128 * g.groups;
  if (g.out_channels > 64 && down * ((g.out_channels + 127) / 128) >= multiprocessors) return TileShape::large;
  return down * ((g.out_channels + 63) / 64) >= multiprocessors ? TileShape::medium : TileShape::small;
}

}  // namespace

template <class T>
void tensor_core_gather(const char* name, const Gather& g, int in_padded, const T* x, const T* packed, const T* bias, T* out,
                        int multiprocessors, void* stream, TileShape tile) {
  if (tile == TileShape::by_rule) tile = tile_by_rule(g, multiprocessors);
  const auto launch_tile = tile == TileShape::large    ? launch_gather<Large<T>>
                           : tile == TileShape::deep   ? launch_gather<Deep<T>>
                           : tile == TileShape::medium ? launch_gather<Medium<T>>
                                                       : launch_gather<Small<T>>;
  launch_tile(name, g, in_padded, x, packed, bias, out, stream);
}
template void tensor_core_gather(const char*, const Gather&, int, const Half*, const Half*, const Half*, Half*, int, void*,
                                 TileShape);
template void tensor_core_gather(const char*, const Gather&, int, const BFloat16*, const BFloat16*, const BFloat16*, BFloat16*,
                                 int, void*, TileShape);
template void tensor_core_gather(const char*, const Gather&, int, const float*, const float*, const float*, float*, int, void*,
                                 TileShape);

namespace {

template <class T>
Gather gather_of(const ConvProblem& p, Primitive primitive, int64_t phase_h, int64_t phase_w) {
  constexpr int pack = Element<T>::pack;
  Gather g = primitive == Primitive::input_gradient ? phase_gather(p, phase_h, phase_w, pack) : forward_gather(p, pack);
  g.in = (primitive == Primitive::input_gradient ? y_of<T>(p) : x_of<T>(p)).strides();
  return g;
}

template <class T>
int64_t weights_bytes(const Gather& g, int64_t in_padded) {
  return aligned(packed_count(g, int(in_padded)) * int64_t(sizeof(T)));
}

template <class T>
void run_gather(const ConvProblem& p, const ConvArgs& args, Primitive primitive, TileShape tile) {
  const bool forward = primitive == Primitive::forward;
  const Operand<T> operand = forward ? x_of<T>(p) : y_of<T>(p);
  const int64_t in_padded = operand.padded();
  const Gather any = gather_of<T>(p, primitive, 0, 0);
  const T* packed = packed_weights<T>(static_cast<const T*>(args.w), packing_of(p, any, !forward, int(in_padded)),
                                      args.workspace, args.stream);
  const T* in = operand.ready(forward ? args.x : args.gy, static_cast<char*>(args.workspace) + weights_bytes<T>(any, in_padded),
                              args.stream);
  T* out = static_cast<T*>(forward ? args.y : args.gx);
  for (int64_t h = 0; h < (forward ? 1 : p.stride_h); ++h)
    for (int64_t w = 0; w < (forward ? 1 : p.stride_w); ++w) {
      const Gather g = gather_of<T>(p, primitive, h, w);
      if (g.positions() == 0) continue;
      tensor_core_gather<T>(forward ? "conv_forward_tensor_core" : "conv_input_gradient_tensor_core", g, int(in_padded), in,
                            packed, static_cast<const T*>(args.b), out, args.threads, args.stream, tile);
    }
}

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int) {
  return with_type(p, [&](auto type) {
    using T = decltype(type);
    const Operand<T> operand = primitive == Primitive::forward ? x_of<T>(p) : y_of<T>(p);
    // Whether a copy is needed also depends on the operand's address: room for it is always asked.
    return weights_bytes<T>(gather_of<T>(p, primitive, 0, 0), operand.padded()) + operand.copy_bytes();
  });
}

template <Primitive primitive, TileShape tile>
void run(const ConvProblem& p, const ConvArgs& args) {
  with_type(p, [&](auto type) { run_gather<decltype(type)>(p, args, primitive, tile); });
}

bool always(const ConvProblem&) { return true; }
bool never(const ConvProblem&) { return false; }

template <Primitive primitive, TileShape tile>
constexpr ConvAlgorithm algorithm(const char* name) {
  return {name,
          primitive,
          tensor_core_applies,
          tile == TileShape::by_rule ? always : never,
          workspace<primitive>,
          run<primitive, tile>};
}

}  // namespace

#define FASTCONV_TILES(primitive)                                                                                         \
  algorithm<primitive, TileShape::by_rule>("tensor_core"), algorithm<primitive, TileShape::large>("tensor_core_128x128"), \
      algorithm<primitive, TileShape::deep>("tensor_core_128x128_deep"),                                                  \
      algorithm<primitive, TileShape::medium>("tensor_core_128x64"),                                                      \
      algorithm<primitive, TileShape::small>("tensor_core_64x64")
const ConvAlgorithm tensor_core_forward[5] = {FASTCONV_TILES(Primitive::forward)};
const ConvAlgorithm tensor_core_input_gradient[5] = {FASTCONV_TILES(Primitive::input_gradient)};
#undef FASTCONV_TILES

}  // namespace fastconv::FASTCONV_BACKEND
