// What the tensor-core kernels share: tiles, swizzled shared memory, fragments and operands, for float16, bfloat16, and float32
// as TF32, by mma.sync with float32 sums.
//
// The kernels want channels_last operands whose channels per group fill whole 16-byte accesses. Others are first copied so,
// transposed tile by tile and padded with zeros; results are written in the caller's layout. Shared memory is swizzled: 16-byte
// chunks are exchanged within a row so that neither ldmatrix nor the TF32 loads hit a bank twice.
#pragma once

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

// A block's tile of `rows` x `columns`, computed by warps of 32 x 32 or 64 x 32 each, `stages` - 1 chunks in flight.
template <class T_, int rows_, int columns_, int warp_rows_, int stages_ = 3>
struct Tile {
  using T = T_;
  using E = Element<T>;
  static constexpr int rows = rows_, columns = columns_, depth = E::depth, stages = stages_;
  static constexpr int warp_rows = warp_rows_, warp_columns = 32;
  static constexpr int warps_across = columns / warp_columns, warps = warps_across * (rows / warp_rows), threads = 32 * warps;
  // Blocks on a multiprocessor, by registers: TF32 needs more addresses.
  static constexpr int blocks = threads == 256 ? 1 : warp_rows == 64 ? 2 : sizeof(T) == 4 ? 3 : 4;
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
using Deep = Tile<T, 128, 128, 64, 4>;
template <class T>
using Medium = Tile<T, 128, 64, 64>;
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

// ---- operands in the form the kernels want: channels_last, channels of a group padded to whole accesses ----

// From channels_first: squares of 128 bytes of pixels by as many channels, 16 bytes an access to device memory on both sides
// (`packs`: those of the rows of x are aligned). Shared memory holds a square by pixels, its 16-byte chunks exchanged within a
// row by the number of the pixels' chunk, so that neither side hits a bank twice.
template <class T>
__global__ void __launch_bounds__(256) transpose_to_channels_last(const T* x, T* out, int64_t batch, int pixels, int groups,
                                                                  int channels, int padded, bool packs) {
  constexpr int pack = Element<T>::pack, chunks = 8, side = chunks * pack, rows_a_pass = 256 / chunks;
  FASTCONV_SHARED(T[side * side], square);
  const auto place = [](int pixel, int channel) {
    return pixel * side + ((channel / pack) ^ (pixel / pack)) * pack + channel % pack;
  };
  const int row0 = int(threadIdx.x) / chunks, column = int(threadIdx.x) % chunks * pack;
  const int all = groups * padded, p0 = int(blockIdx.x) * side;
  for (int64_t n = blockIdx.z; n < batch; n += gridDim.z)
    for (int c0 = int(blockIdx.y) * side; c0 < all; c0 += int(gridDim.y) * side) {
#pragma unroll
      for (int row = row0; row < side; row += rows_a_pass) {
        const int group = (c0 + row) / padded, channel = (c0 + row) % padded, left = pixels - p0 - column;
        Pack<T, pack> values{};
        if (c0 + row < all && channel < channels && left > 0) {
          const T* from = x + ((n * groups + group) * channels + channel) * pixels + p0 + column;
          if (packs) {
            values = load_pack<pack>(from);
          } else {
#pragma unroll
            for (int i = 0; i < pack; ++i)
              if (i < left) values.at[i] = from[i];
          }
        }
#pragma unroll
        for (int i = 0; i < pack; ++i) square[place(column + i, row)] = values.at[i];
      }
      __syncthreads();
#pragma unroll
      for (int row = row0; row < side; row += rows_a_pass)
        if (p0 + row < pixels && c0 + column < all)
          store_pack(out + (n * pixels + p0 + row) * all + c0 + column, load_pack<pack>(square + place(row, column)));
      __syncthreads();
    }
}

// From channels_last, whose groups are padded: a thread makes 16 bytes.
template <class T>
__global__ void __launch_bounds__(256)
    pad_channels_last(const T* x, T* out, int64_t pixels, int groups, int channels, int padded) {
  constexpr int pack = Element<T>::pack;
  const int packs = groups * padded / pack;
  const int64_t count = pixels * packs, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t pixel = i / packs;
    const int at = int(i - pixel * packs) * pack, group = at / padded, channel = at % padded;
    const T* from = x + (pixel * groups + group) * channels + channel;
    Pack<T, pack> values{};
#pragma unroll
    for (int k = 0; k < pack; ++k)
      if (channel + k < channels) values.at[k] = from[k];
    store_pack(out + i * pack, values);
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
    const T* from = static_cast<const T*>(p);
    const int64_t all = groups * padded();
    if (layout == Layout::channels_last) {
      launch("pad_channels_last", pad_channels_last<T>, dim3(blocks_for(n * h * w * all / Element<T>::pack, 256)), dim3(256), 0,
             stream, from, copy, n * h * w, int(groups), int(channels()), int(padded()));
      return copy;
    }
    constexpr int side = 8 * Element<T>::pack;
    const auto most = [](int64_t count) { return unsigned(count < 65535 ? count : 65535); };
    const bool packs = h * w % Element<T>::pack == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    launch("transpose_to_channels_last", transpose_to_channels_last<T>,
           dim3(blocks_for(h * w, side), most((all + side - 1) / side), most(n)), dim3(256), 0, stream, from, copy, n,
           int(h * w), int(groups), int(channels()), int(padded()), packs);
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

bool tensor_core_type(const ConvProblem& p) {
  return p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16 || (p.dtype == Dtype::float32 && p.allow_tf32);
}

// Calls with the element type of the problem; float64 does not come here.
template <class Call>
auto with_type(const ConvProblem& p, const Call& call) {
  if (p.dtype == Dtype::float16) return call(Half{});
  if (p.dtype == Dtype::bfloat16) return call(BFloat16{});
  return call(float{});
}

// Padding multiplies few channels a group by up to 8.
bool tensor_core_applies(const ConvProblem& p) {
  return tensor_core_type(p) && gather_fits(p) && double(p.h) * p.w * (p.c + 8.0 * p.groups) < double(1 << 30) &&
         double(p.p) * p.q * (p.k + 8.0 * p.groups) < double(1 << 30);
}

}  // namespace

// The products by themselves, on operands in the wanted form; defined for Half, BFloat16 and float.

// Which tile computes: one of those above, or what a rule chooses.
enum class TileShape { by_rule, large, deep, medium, small };

// out = gather of x times packed weights (+ bias), on so many multiprocessors.
template <class T>
void tensor_core_gather(const char* name, const Gather& g, int in_padded, const T* x, const T* packed, const T* bias, T* out,
                        int multiprocessors, void* stream, TileShape tile = TileShape::by_rule);

// The cut of the sum of a weight gradient of k x c channels a group, and its partial sums. Tiles are large or small.
Slices tensor_core_slices(int64_t pixels, int64_t k, int64_t c, int64_t taps_and_groups, int multiprocessors,
                          TileShape tile = TileShape::by_rule);
template <class T>
void tensor_core_weight(const char* name, const Gather& g, int in_padded, int out_padded, const Slices& slices, const T* gy,
                        const T* x, const Partials<float>& partials, void* stream, TileShape tile = TileShape::by_rule);

}  // namespace fastconv::FASTCONV_BACKEND
