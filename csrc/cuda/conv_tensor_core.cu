// Convolution as a matrix product on tensor cores: float16, bfloat16, and float32 as TF32, by mma.sync with float32 sums.
//
// The kernels want channels_last operands whose channels per group fill whole 16-byte accesses. Others are first copied so,
// transposed tile by tile and padded with zeros; results are written in the caller's layout. A block computes a tile of
// positions x output channels, walking over taps and chunks of input channels with cp.async, three chunks in flight. Shared
// memory is swizzled: 16-byte chunks are exchanged within a row so that neither ldmatrix nor the TF32 loads hit a bank twice.
#include "conv.h"
#include "conv_gather.cuh"
#include "conv_weight.cuh"
#include "pipeline.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

// What depends on the element type. `pack` elements are 16 bytes; `step` is the depth of one mma.
template <class T>
struct Element {
  static constexpr int pack = 8, step = 16, depth = 32;  // depth: of a chunk
  // Element (row, column) of a tile of `width` columns whose rows are read 16 at a time by ldmatrix.
  template <int width>
  FASTCONV_DEVICE static int at(int row, int column) {
    constexpr int chunks = width / pack;
    static_assert(chunks >= 4);
    const int key = chunks == 4 ? row / 2 % 4 : row % 8;  // rows of 64 bytes share a 128-byte line by twos
    return row * width + ((column / pack) ^ key) * pack + column % pack;
  }
};
template <>
struct Element<float> {
  static constexpr int pack = 4, step = 8, depth = 16;
  // The same for scalar loads: the 32 lanes read 8 rows x 4 columns of a narrow tile, or 4 rows x 8 columns of a wide one.
  template <int width>
  FASTCONV_DEVICE static int at(int row, int column) {
    constexpr int chunks = width / pack;
    static_assert(chunks >= 4);
    const int key = chunks == 4 ? row / 2 % 4 : row % 4 * 2;
    return row * width + ((column / pack) ^ key) * pack + column % pack;
  }
};

// A block's tile of `rows` x `columns`, computed by warps of 32 x 32 or 64 x 32 each.
template <class T_, int rows_, int columns_, int warp_rows_>
struct Tile {
  using T = T_;
  using E = Element<T>;
  static constexpr int rows = rows_, columns = columns_, depth = E::depth, stages = 3;
  static constexpr int warp_rows = warp_rows_, warp_columns = 32;
  static constexpr int warps_across = columns / warp_columns, warps = warps_across * (rows / warp_rows), threads = 32 * warps;
  static constexpr int blocks_down = warp_rows / 16, blocks_across = warp_columns / 8;  // mma tiles of a warp
  static constexpr int stage_a = depth * rows, stage = stage_a + depth * columns;
  static constexpr size_t pipeline_bytes = sizeof(T) * stage * stages;
  static constexpr int result_pitch = columns + E::pack;
  static constexpr size_t result_bytes = sizeof(T) * rows * result_pitch;
  static constexpr size_t shared_bytes = pipeline_bytes > result_bytes ? pipeline_bytes : result_bytes;

  static_assert(rows % warp_rows == 0 && columns % warp_columns == 0 && warp_rows % 16 == 0);
  static_assert(rows * depth / E::pack % threads == 0 && columns * depth / E::pack % threads == 0,
                "every thread copies as much");
  static_assert(shared_bytes <= 99 << 10, "two blocks on a multiprocessor of sm_80");
};
template <class T>
using Large = Tile<T, 128, 128, 64>;
template <class T>
using Small = Tile<T, 64, 64, 32>;

template <class X>
using Sums = float[X::blocks_down][X::blocks_across][4];

// ---- fragments ----

// The 16 x step block of A at (row, k). `transposed`: the tile is stored [depth][rows].
template <class X, bool transposed>
FASTCONV_DEVICE void load_a(uint32_t (&a)[4], const typename X::T* tile, int row, int k) {
  using T = typename X::T;
  using E = Element<T>;
  const int lane = int(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    if constexpr (transposed)
      load_matrix<true>(a, tile + E::template at<X::rows>(k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
    else
      load_matrix<false>(a, tile + E::template at<X::depth>(row + lane % 16, k + lane / 16 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + lane / 4 + i % 2 * 8, c = k + lane % 4 + i / 2 * 4;
      a[i] = __float_as_uint(round_tf32(tile[transposed ? E::template at<X::rows>(c, r) : E::template at<X::depth>(r, c)]));
    }
  }
}

// The step x 16 block of B at (k, column), as the operands of two mma. The tile is stored [depth][columns].
template <class X>
FASTCONV_DEVICE void load_b(uint32_t (&b)[2][2], const typename X::T* tile, int k, int column) {
  using T = typename X::T;
  using E = Element<T>;
  const int lane = int(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    uint32_t r[4];
    load_matrix<true>(r, tile + E::template at<X::columns>(k + lane % 16, column + lane / 16 * 8));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      b[i / 2][i % 2] = __float_as_uint(
          round_tf32(tile[E::template at<X::columns>(k + lane % 4 + i % 2 * 4, column + lane / 4 + i / 2 * 8)]));
  }
}

template <class X, bool transposed>
FASTCONV_DEVICE void multiply_chunk(Sums<X>& sums, const typename X::T* a, const typename X::T* b, int row, int column) {
#pragma unroll
  for (int k = 0; k < X::depth; k += X::E::step) {
    uint32_t left[X::blocks_down][4], right[X::blocks_across / 2][2][2];
#pragma unroll
    for (int i = 0; i < X::blocks_down; ++i) load_a<X, transposed>(left[i], a, row + 16 * i, k);
#pragma unroll
    for (int j = 0; j < X::blocks_across / 2; ++j) load_b<X>(right[j], b, k, column + 16 * j);
#pragma unroll
    for (int i = 0; i < X::blocks_down; ++i)
#pragma unroll
      for (int j = 0; j < X::blocks_across; ++j) multiply_matrix<typename X::T>(sums[i][j], left[i], right[j / 2][j % 2]);
  }
}

// Where this warp's part of the tile begins.
template <class X>
FASTCONV_DEVICE int warp_row() {
  return int(threadIdx.x) / 32 / X::warps_across * X::warp_rows;
}
template <class X>
FASTCONV_DEVICE int warp_column() {
  return int(threadIdx.x) / 32 % X::warps_across * X::warp_columns;
}

// Calls put(row, column, sum) for each sum this thread holds; neighbouring columns come in pairs.
template <class X, class Put>
FASTCONV_DEVICE void each_sum(const Sums<X>& sums, const Put& put) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < X::blocks_down; ++i)
#pragma unroll
    for (int j = 0; j < X::blocks_across; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        put(warp_row<X>() + 16 * i + lane / 4 + k / 2 * 8, warp_column<X>() + 8 * j + lane % 4 * 2 + k % 2, sums[i][j][k]);
}

// ---- forward and input gradient ----

// `in_padded` channels a group lie densely in x, of which g.in_channels are real and the rest zeros.
template <class X>
__global__ void __launch_bounds__(X::threads, X::threads == 256 ? 1 : 4)
    gather_tensor_core(Gather g, int in_padded, int64_t row_tiles, const typename X::T* x, const typename X::T* weights,
                       const typename X::T* bias, typename X::T* y) {
  using T = typename X::T;
  constexpr int pack = X::E::pack, row_chunks = X::depth / pack, column_chunks = X::columns / pack;
  constexpr int own = X::rows * row_chunks / X::threads;
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const int tid = int(threadIdx.x);
  const int column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  const int64_t tiles = row_tiles * column_tiles * g.groups;
  const int chunks = (in_padded + X::depth - 1) / X::depth;
  const int64_t steps = int64_t(g.rows.taps) * g.columns.taps * chunks;

  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int column0 = int(tile % column_tiles) * X::columns;
    const int64_t row0 = tile / column_tiles % row_tiles * X::rows;
    const int group = int(tile / column_tiles / row_tiles);

    Position at[own];
#pragma unroll
    for (int i = 0; i < own; ++i) at[i] = position_of(g, row0 + tid / row_chunks + i * (X::threads / row_chunks));

    const auto load = [&](int64_t step, T* a, T* b) {
      const int chunk = int(step % chunks), tap_column = int(step / chunks % g.columns.taps),
                tap_row = int(step / chunks / g.columns.taps);
      const int in_chunk = tid % row_chunks * pack, channel = chunk * X::depth + in_chunk;
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const int64_t pixel = input_of(g, at[i], tap_row, tap_column);
        const bool inside = pixel >= 0 && channel < in_padded;
        copy_async<16>(a + X::E::template at<X::depth>(tid / row_chunks + i * (X::threads / row_chunks), in_chunk),
                       inside ? x + pixel + int64_t(group) * in_padded + channel : x, inside ? 16 : 0);
      }
      const int tap =
          (g.rows.first + tap_row * g.rows.every) * g.kernel_columns + g.columns.first + tap_column * g.columns.every;
      const T* panel = weights + (int64_t(group) * g.taps + tap) * in_padded * g.out_padded;
#pragma unroll
      for (int i = tid; i < X::depth * column_chunks; i += X::threads) {
        const int k = i / column_chunks, column = i % column_chunks * pack, weight_channel = chunk * X::depth + k;
        const bool inside = weight_channel < in_padded && column0 + column < g.out_padded;
        copy_async<16>(b + X::E::template at<X::columns>(k, column),
                       inside ? panel + int64_t(weight_channel) * g.out_padded + column0 + column : weights, inside ? 16 : 0);
      }
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

// ---- weight gradient: rows are output channels, columns input channels of one tap, the sum runs over pixels ----

template <class X>
__global__ void __launch_bounds__(X::threads, X::threads == 256 ? 1 : 4)
    weight_tensor_core(Gather g, int in_padded, int out_padded, Slices slices, int64_t blocks, const typename X::T* gy,
                       const typename X::T* x, Partials<float> partials) {
  using T = typename X::T;
  constexpr int pack = X::E::pack;
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

    const auto load = [&](int64_t step, T* a, T* b) {
      const int64_t first = begin + step * X::depth;
      constexpr int row_chunks = X::rows / pack, column_chunks = X::columns / pack;
#pragma unroll
      for (int i = tid; i < X::depth * row_chunks; i += X::threads) {
        const int k = i / row_chunks, channel = i % row_chunks * pack;
        const bool inside = first + k < end && row0 + channel < out_padded;
        const int64_t pixel = inside ? output_of(g, position_of(g, first + k)) : 0;
        copy_async<16>(a + X::E::template at<X::rows>(k, channel),
                       inside ? gy + pixel + int64_t(group) * out_padded + row0 + channel : gy, inside ? 16 : 0);
      }
#pragma unroll
      for (int i = tid; i < X::depth * column_chunks; i += X::threads) {
        const int k = i / column_chunks, channel = i % column_chunks * pack;
        int64_t pixel = -1;
        if (first + k < end && column0 + channel < in_padded)
          pixel = input_of(g, position_of(g, first + k), tap / g.kernel_columns, tap % g.kernel_columns);
        copy_async<16>(b + X::E::template at<X::columns>(k, channel),
                       pixel >= 0 ? x + pixel + int64_t(group) * in_padded + column0 + channel : x, pixel >= 0 ? 16 : 0);
      }
    };

    Sums<X> sums = {};
    float bias_sum = 0;
    const bool sums_bias = partials.bias && tap == 0 && column0 == 0 && tid < X::rows;
    pipeline<X>(shared, (end - begin + X::depth - 1) / X::depth, load, [&](const T* a, const T* b) {
      multiply_chunk<X, true>(sums, a, b, warp_row<X>(), warp_column<X>());
      if (sums_bias)
        for (int k = 0; k < X::depth; ++k) bias_sum += widen(a[X::E::template at<X::rows>(k, tid)]);
    });

    float* out = partials.weights + ((slice * g.groups + group) * g.taps + tap) * g.out_channels * g.in_channels;
    each_sum<X>(sums, [&](int row, int column, float sum) {
      if (row0 + row < g.out_channels && column0 + column < g.in_channels)
        out[int64_t(row0 + row) * g.in_channels + column0 + column] = sum;
    });
    if (sums_bias && row0 + tid < g.out_channels)
      partials.bias[(slice * g.groups + group) * g.out_channels + row0 + tid] = bias_sum;
  }
}

// ---- operands in the form the kernels want: channels_last, channels of a group padded to whole accesses ----

constexpr int transpose_tile = 32;

template <class T>
__global__ void __launch_bounds__(256) to_padded_channels_last(const T* x, T* out, Strides from, int64_t batch, int columns,
                                                               int pixels, int groups, int channels, int padded) {
  FASTCONV_SHARED(T[transpose_tile * (transpose_tile + 1)], tile);
  const int column = int(threadIdx.x) % transpose_tile, row0 = int(threadIdx.x) / transpose_tile;
  constexpr int rows_a_pass = 256 / transpose_tile;
  const int all = groups * padded;
  for (int64_t n = blockIdx.z; n < batch; n += gridDim.z)
    for (int c0 = int(blockIdx.y) * transpose_tile; c0 < all; c0 += int(gridDim.y) * transpose_tile) {
      const int p0 = int(blockIdx.x) * transpose_tile;
      for (int row = row0; row < transpose_tile; row += rows_a_pass) {
        // Neighbouring threads read along whichever axis is contiguous.
        const bool along_pixels = from.w == 1;
        const int p = p0 + (along_pixels ? column : row), c = c0 + (along_pixels ? row : column);
        const int group = c / padded, channel = c % padded;
        T value{};
        if (p < pixels && c < all && channel < channels)
          value = x[n * from.n + (int64_t(group) * channels + channel) * from.c + int64_t(p / columns) * from.h +
                    int64_t(p % columns) * from.w];
        tile[along_pixels ? row * (transpose_tile + 1) + column : column * (transpose_tile + 1) + row] = value;
      }
      __syncthreads();
      for (int row = row0; row < transpose_tile; row += rows_a_pass)
        if (p0 + row < pixels && c0 + column < all)
          out[(n * pixels + p0 + row) * all + c0 + column] = tile[column * (transpose_tile + 1) + row];
      __syncthreads();
    }
}

int64_t aligned(int64_t bytes) { return (bytes + 127) / 128 * 128; }

// One image operand: as it is if it has the wanted form, else to be copied into the workspace.
template <class T>
struct Operand {
  int64_t n, c, h, w, groups;
  Layout layout;

  int64_t channels() const { return c / groups; }
  int64_t padded() const { return (channels() + Element<T>::pack - 1) / Element<T>::pack * Element<T>::pack; }
  bool fits(const void* p) const {
    return layout == Layout::channels_last && channels() == padded() && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  }
  int64_t copy_bytes() const { return aligned(n * h * w * groups * padded() * int64_t(sizeof(T))); }
  Strides strides() const { return strides_of(Layout::channels_last, groups * padded(), h, w); }

  // The operand in the wanted form; a copy is made at `workspace`.
  const T* ready(const void* p, char* workspace, void* stream) const {
    if (fits(p)) return static_cast<const T*>(p);
    T* copy = reinterpret_cast<T*>(workspace);
    const auto most = [](int64_t count) { return unsigned(count < 65535 ? count : 65535); };
    const dim3 grid(blocks_for(h * w, transpose_tile), most((groups * padded() + transpose_tile - 1) / transpose_tile),
                    most(n));
    launch("to_padded_channels_last", to_padded_channels_last<T>, grid, dim3(256), 0, stream, static_cast<const T*>(p), copy,
           strides_of(layout, c, h, w), n, int(w), int(h * w), int(groups), int(channels()), int(padded()));
    return copy;
  }
};

template <class T>
Operand<T> x_of(const ConvProblem& p) {
  return {p.n, p.c, p.h, p.w, p.groups, p.layout};
}
template <class T>
Operand<T> y_of(const ConvProblem& p) {
  return {p.n, p.k, p.p, p.q, p.groups, p.layout};
}

// ---- launches ----

template <class T>
Gather gather_of(const ConvProblem& p, Primitive primitive, int64_t phase_h, int64_t phase_w) {
  constexpr int pack = Element<T>::pack;
  Gather g = primitive == Primitive::input_gradient ? phase_gather(p, phase_h, phase_w, pack) : forward_gather(p, pack);
  g.in = (primitive == Primitive::input_gradient ? y_of<T>(p) : x_of<T>(p)).strides();
  return g;
}

template <class T>
int64_t weights_bytes(const Gather& g, int64_t in_padded) {
  return aligned(packed_weights(g, int(in_padded)) * int64_t(sizeof(T)));
}

template <class X>
void launch_gather(const ConvArgs& args, const Gather& g, int64_t in_padded, const typename X::T* x,
                   const typename X::T* weights, typename X::T* y, bool forward) {
  using T = typename X::T;
  const int64_t row_tiles = (g.positions() + X::rows - 1) / X::rows,
                column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  launch(forward ? "conv_forward_tensor_core" : "conv_input_gradient_tensor_core", gather_tensor_core<X>,
         dim3(blocks_for(row_tiles * column_tiles * g.groups, 1)), dim3(X::threads), X::shared_bytes, args.stream, g,
         int(in_padded), row_tiles, x, weights, static_cast<const T*>(args.b), y);
}

template <class T>
void run_gather(const ConvProblem& p, const ConvArgs& args, Primitive primitive) {
  const bool forward = primitive == Primitive::forward;
  const Operand<T> operand = forward ? x_of<T>(p) : y_of<T>(p);
  const int64_t in_padded = operand.padded();
  T* packed = static_cast<T*>(args.workspace);
  const Gather any = gather_of<T>(p, primitive, 0, 0);
  launch("pack_weights", pack_weights<T>, dim3(blocks_for(packed_weights(any, int(in_padded)), 256)), dim3(256), 0, args.stream,
         static_cast<const T*>(args.w), packed, weight_strides(p), !forward, any.groups, any.taps, any.in_channels,
         int(in_padded), any.out_channels, any.out_padded);
  const T* in = operand.ready(forward ? args.x : args.gy, static_cast<char*>(args.workspace) + weights_bytes<T>(any, in_padded),
                              args.stream);
  T* out = static_cast<T*>(forward ? args.y : args.gx);
  for (int64_t h = 0; h < (forward ? 1 : p.stride_h); ++h)
    for (int64_t w = 0; w < (forward ? 1 : p.stride_w); ++w) {
      const Gather g = gather_of<T>(p, primitive, h, w);
      if (g.positions() == 0) continue;
      // Large tiles where they fill the GPU, else small ones.
      const int64_t large = (g.positions() + 127) / 128 * ((g.out_channels + 127) / 128) * g.groups;
      if (g.out_channels > 64 && large >= args.threads)
        launch_gather<Large<T>>(args, g, in_padded, in, packed, out, forward);
      else
        launch_gather<Small<T>>(args, g, in_padded, in, packed, out, forward);
    }
}

// Large tiles of the weight gradient where both channel counts fill them.
bool large_weight(const ConvProblem& p) { return p.k / p.groups > 64 && p.c / p.groups > 64; }

Slices weight_slices(const ConvProblem& p, int multiprocessors) {
  const int64_t side = large_weight(p) ? 128 : 64;
  const int64_t rows = (p.k / p.groups + side - 1) / side, columns = (p.c / p.groups + side - 1) / side;
  return slices_for(p.n * p.p * p.q, rows * columns * p.r * p.s * p.groups, multiprocessors, 256);
}

template <class X>
void launch_weight(const ConvProblem& p, const ConvArgs& args, const Gather& g, int64_t in_padded, int64_t out_padded,
                   const Slices& slices, const typename X::T* gy, const typename X::T* x, const Partials<float>& partials) {
  const int64_t rows = (g.out_channels + X::rows - 1) / X::rows, columns = (g.in_channels + X::columns - 1) / X::columns;
  const int64_t blocks = rows * columns * p.r * p.s * p.groups * slices.count;
  launch("conv_weight_gradient_tensor_core", weight_tensor_core<X>, dim3(blocks_for(blocks, 1)), dim3(X::threads),
         X::shared_bytes, args.stream, g, int(in_padded), int(out_padded), slices, blocks, gy, x, partials);
}

template <class T>
void run_weight(const ConvProblem& p, const ConvArgs& args) {
  const Operand<T> in = x_of<T>(p), out = y_of<T>(p);
  const Slices slices = weight_slices(p, args.threads);
  const Partials<float> partials = partials_in<float>(p, slices, args.workspace, args.gb != nullptr);
  char* workspace = static_cast<char*>(args.workspace) + aligned(partial_bytes<float>(p, slices));
  const T* x = in.ready(args.x, workspace, args.stream);
  const T* gy = out.ready(args.gy, workspace + in.copy_bytes(), args.stream);
  Gather g = gather_of<T>(p, Primitive::forward, 0, 0);
  g.out = out.strides();
  if (large_weight(p))
    launch_weight<Large<T>>(p, args, g, in.padded(), out.padded(), slices, gy, x, partials);
  else
    launch_weight<Small<T>>(p, args, g, in.padded(), out.padded(), slices, gy, x, partials);
  finish_weight_gradient<T>(p, slices, partials, static_cast<T*>(args.gw), static_cast<T*>(args.gb), args.stream);
}

bool applies(const ConvProblem& p) {
  const bool type = p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16 || (p.dtype == Dtype::float32 && p.allow_tf32);
  // Padding multiplies few channels a group by up to 8.
  return type && gather_fits(p) && double(p.h) * p.w * (p.c + 8.0 * p.groups) < double(1 << 30) &&
         double(p.p) * p.q * (p.k + 8.0 * p.groups) < double(1 << 30);
}
bool always(const ConvProblem&) { return true; }

template <class T, Primitive primitive>
int64_t workspace_of(const ConvProblem& p, int multiprocessors) {
  if constexpr (primitive == Primitive::weight_gradient)
    return aligned(partial_bytes<float>(p, weight_slices(p, multiprocessors))) + x_of<T>(p).copy_bytes() +
           y_of<T>(p).copy_bytes();
  const Operand<T> operand = primitive == Primitive::forward ? x_of<T>(p) : y_of<T>(p);
  // Whether a copy is needed also depends on the operand's address: room for it is always asked.
  return weights_bytes<T>(gather_of<T>(p, primitive, 0, 0), operand.padded()) + operand.copy_bytes();
}

// Calls with the element type of the problem; float64 does not come here.
template <class Call>
auto with_type(const ConvProblem& p, const Call& call) {
  if (p.dtype == Dtype::float16) return call(Half{});
  if (p.dtype == Dtype::bfloat16) return call(BFloat16{});
  return call(float{});
}

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int multiprocessors) {
  return with_type(p, [&](auto type) { return workspace_of<decltype(type), primitive>(p, multiprocessors); });
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  with_type(p, [&](auto type) {
    if constexpr (primitive == Primitive::weight_gradient)
      run_weight<decltype(type)>(p, args);
    else
      run_gather<decltype(type)>(p, args, primitive);
  });
}

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {"tensor_core", primitive, applies, always, workspace<primitive>, run<primitive>};

}  // namespace

const ConvAlgorithm tensor_core_forward = algorithm<Primitive::forward>;
const ConvAlgorithm tensor_core_input_gradient = algorithm<Primitive::input_gradient>;
const ConvAlgorithm tensor_core_weight_gradient = algorithm<Primitive::weight_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
