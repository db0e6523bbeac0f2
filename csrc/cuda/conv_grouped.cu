// Forward and input gradient of groups of 8 to 32 channels on tensor cores, channels_last, float16 and bfloat16. A product of
// its own for each group: nothing is multiplied by the zeros between groups.
//
// A block copies what a tile of positions of some groups reads into shared memory, once, and their weights. The sum over taps
// and input channels runs in pieces of 8 channels of one tap: two pieces are the depth of an mma. A warp computes two rows of
// 16 positions of one group, which share the weights' fragments. All phases of a strided input gradient are computed from one
// tile.
#include "conv.h"
#include "conv_grouped.cuh"
#include "conv_phases.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

constexpr int strip = 2;  // rows of positions a warp computes at a time

struct Grouped : PhasedGather {
  Rectangle source;
  int units;                                // groups a block
  int tile_rows;                            // positions of a tile, in one phase: tile_rows x `positions`
  int row_tiles, column_tiles, unit_tiles;  // tiles of an image
  bool packs;                               // a pair of results is stored at once
};

// From row to row of the weights in shared memory: an odd number of 16 bytes, as from pixel to pixel of the image.
FASTCONV_HOST_DEVICE constexpr int weight_pitch(int out_channels) {
  return out_channels / piece % 2 ? out_channels : out_channels + piece;
}
// Elements of shared memory: 16 bytes of zeros, the weights, the image.
FASTCONV_HOST_DEVICE int weights_of(const Grouped& g) {
  return g.units * g.taps * g.in_channels * weight_pitch(g.out_channels);
}

// out_blocks: output channels of a group, by 8. weights: [group][tap][in channel][out channel].
template <class T, int out_blocks>
__global__ void __launch_bounds__(threads_a_block, out_blocks == 4 ? 2 : 3)
    grouped_tensor_core(Grouped g, const T* x, const T* weights, const T* bias, T* y) {
  FASTCONV_DYNAMIC_SHARED(T, shared);
  constexpr int out_channels = piece * out_blocks, pitch = weight_pitch(out_channels);
  T *own_weights = shared + piece, *image_tile = own_weights + weights_of(g);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int chunks = g.in_channels / piece, weight_rows = g.taps * g.in_channels;
  const int64_t blocks = g.batch * g.unit_tiles * g.row_tiles * g.column_tiles;
  // The row of a matrix that this lane points at, in which of the two pieces of a step; which position, which column of
  // weights.
  const int row = lane % 8, half = lane / 8 % 2, position = row + lane / 16 * 8, weight_column = lane / 16 * piece;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t above = block / g.column_tiles, n = above / g.row_tiles / g.unit_tiles;
    const int column0 = int(block % g.column_tiles) * positions, row0 = int(above % g.row_tiles) * g.tile_rows,
              group0 = int(above / g.row_tiles % g.unit_tiles) * g.units;
    if (threadIdx.x < piece) shared[threadIdx.x] = T{};
    const int real_units = g.groups - group0 < g.units ? g.groups - group0 : g.units;
    for (int i = int(threadIdx.x); i < real_units * weight_rows * out_blocks; i += threads_a_block)
      copy_async<16>(own_weights + i / out_blocks * pitch + i % out_blocks * piece,
                     weights + int64_t(group0) * weight_rows * out_channels + i * piece);
    const Image<T> image{x + n * g.in.n, g.in, g.groups * g.in_channels, g.in_rows, g.in_columns};
    const T* tile = fill(g.source, image_tile, image, group0 * g.in_channels, row0 * g.rows.sample + g.rows.low,
                         column0 * g.columns.sample + g.columns.low);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    const int strips = g.tile_rows / strip, phases = g.rows.count * g.columns.count;
    for (int item = warp; item < real_units * strips * phases; item += warps_a_block) {
      const GatherAxis &rows = g.rows.at[item % phases / g.columns.count],
                       &columns = g.columns.at[item % phases % g.columns.count];
      const int unit = item / phases / strips, first_row = item / phases % strips * strip;
      if (row0 + first_row >= rows.grid || column0 >= columns.grid) continue;
      const T* from = tile + unit * g.in_channels + (first_row * g.rows.sample + rows.base - g.rows.low) * g.source.row_step +
                      (position * g.columns.sample + columns.base - g.columns.low) * g.source.column_step;
      const T* panel = own_weights + (unit * weight_rows + row) * pitch + weight_column;
      const int pieces = rows.taps * columns.taps * chunks;
      float sums[strip][out_blocks][4] = {};
      int chunk = 0, tap_row = 0, tap_column = 0;
      const auto next = [&] {
        if (++chunk < chunks) return;
        chunk = 0;
        if (++tap_column < columns.taps) return;
        tap_column = 0;
        ++tap_row;
      };
      if (half) next();
#pragma unroll 1
      for (int step = 0; step < pieces; step += 2) {
        const bool real = step + half < pieces;  // else zeros by zeros
        const T* at =
            from + tap_row * rows.step * g.source.row_step + tap_column * columns.step * g.source.column_step + chunk * piece;
        const int tap = (rows.first + tap_row * rows.every) * g.kernel_columns + columns.first + tap_column * columns.every;
        const T* weight = panel + (tap * chunks + chunk) * piece * pitch;
        uint32_t a[strip][4];
#pragma unroll
        for (int j = 0; j < strip; ++j) {
          uint32_t r[4];
          load_matrix<false>(r, real ? at + j * g.rows.sample * g.source.row_step : shared);
          a[j][0] = r[0], a[j][1] = r[2], a[j][2] = r[1], a[j][3] = r[3];
        }
        uint32_t b[out_blocks][2];
        if constexpr (out_blocks == 1) {
          load_matrix<true>(b[0], real ? weight : shared);
        } else {
#pragma unroll
          for (int k = 0; k < out_blocks; k += 2) {
            uint32_t r[4];
            load_matrix<true>(r, real ? weight + k * piece : shared);
            b[k][0] = r[0], b[k][1] = r[1], b[k + 1][0] = r[2], b[k + 1][1] = r[3];
          }
        }
#pragma unroll
        for (int k = 0; k < out_blocks; ++k)
#pragma unroll
          for (int j = 0; j < strip; ++j) multiply_matrix<T>(sums[j][k], a[j], b[k]);
        next();
        next();
      }

#pragma unroll
      for (int j = 0; j < strip; ++j) {
        const int grid_row = row0 + first_row + j;
        if (grid_row >= rows.grid) break;
        T* line = y + n * g.out.n + int64_t(grid_row * rows.spread + rows.offset) * g.out.h;
#pragma unroll
        for (int k = 0; k < out_blocks; ++k)
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int grid_column = column0 + lane / 4 + 8 * part;
            if (grid_column >= columns.grid) continue;
            const int channel = (group0 + unit) * out_channels + piece * k + lane % 4 * 2;
            Pack<T, 2> out;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float value = sums[j][k][2 * part + i];
              if (bias) value += widen(bias[channel + i]);
              narrow(activate(value, g.relu), out.at[i]);
            }
            T* target = line + int64_t(grid_column * columns.spread + columns.offset) * g.out.w + channel;
            if (g.packs)
              store_pack(target, out);
            else
              target[0] = out.at[0], target[1] = out.at[1];
          }
      }
    }
    __syncthreads();  // the next tile refills shared memory
  }
}

// ---- the shape of a tile ----

// A tile that fits in shared memory; false if there is none.
template <class T>
bool shape(Grouped& g, const void* x) {
  const int grid_rows = most_grid(g.rows);
  constexpr int line = 64;  // channels: 128 bytes
  g.units = line / g.in_channels < g.groups ? line / g.in_channels : g.groups;
  g.tile_rows = tiles(grid_rows < 16 ? grid_rows : 16, strip) * strip;
  const auto bytes = [&] {
    g.source = grouped_rectangle<T>(g.units, g.groups, g.in_channels, (g.tile_rows - 1) * g.rows.sample + g.rows.reach,
                                    (positions - 1) * g.columns.sample + g.columns.reach, x);
    return (piece + weights_of(g) + g.source.elements) * int64_t(sizeof(T));
  };
  while (bytes() > wanted_shared) {
    if (g.tile_rows > 4)
      g.tile_rows = tiles(g.tile_rows / 2, strip) * strip;
    else if (g.units > 1)
      g.units = (g.units + 1) / 2;
    else
      break;
  }
  g.row_tiles = tiles(grid_rows, g.tile_rows);
  g.column_tiles = tiles(most_grid(g.columns), positions);
  g.unit_tiles = tiles(g.groups, g.units);
  return bytes() <= most_shared;
}

// ---- launches ----

template <class T>
void run_of(const ConvProblem& p, const ConvArgs& args, Primitive primitive) {
  const bool forward = primitive == Primitive::forward;
  Grouped g{};
  static_cast<PhasedGather&>(g) = phased_gather(p, primitive, piece);
  const T *x = static_cast<const T*>(forward ? args.x : args.gy), *bias = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(forward ? args.y : args.gx);
  shape<T>(g, x);
  g.packs = reinterpret_cast<uintptr_t>(y) % (2 * sizeof(T)) == 0;
  const Packing packing = {weight_strides(p), !forward,      g.groups,       g.taps,
                           g.in_channels,     g.in_channels, g.out_channels, g.out_padded};
  const T* weights = packed_weights<T>(static_cast<const T*>(args.w), packing, args.workspace, args.stream);
  const auto kernel = g.out_channels == 8    ? grouped_tensor_core<T, 1>
                      : g.out_channels == 16 ? grouped_tensor_core<T, 2>
                                             : grouped_tensor_core<T, 4>;
  launch(forward ? "conv_forward_grouped" : "conv_input_gradient_grouped", kernel,
         dim3(blocks_for(g.batch * g.unit_tiles * g.row_tiles * g.column_tiles, 1)), dim3(threads_a_block),
         size_t(piece + weights_of(g) + g.source.elements) * sizeof(T), args.stream, g, x, weights, bias, y);
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  p.dtype == Dtype::float16 ? run_of<Half>(p, args, primitive) : run_of<BFloat16>(p, args, primitive);
}

template <Primitive primitive>
bool applies(const ConvProblem& p) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const bool forward = primitive == Primitive::forward;
  if (!grouped_problem(p, forward ? c : k, forward ? k : c) || !phases_fit(p, primitive)) return false;
  Grouped g{};
  static_cast<PhasedGather&>(g) = phased_gather(p, primitive, piece);
  return shape<Half>(g, nullptr);
}

// A prediction: 32 channels fill half a tile of the products over all channels, and 16 a quarter.
bool preferred(const ConvProblem& p) { return p.c / p.groups <= 16 && p.k / p.groups <= 16; }

int64_t workspace(const ConvProblem& p, int) { return p.k * (p.c / p.groups) * p.r * p.s * int64_t(sizeof(Half)); }

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {"grouped", primitive, applies<primitive>, preferred, workspace, run<primitive>};

}  // namespace

const ConvAlgorithm grouped_forward = algorithm<Primitive::forward>;
const ConvAlgorithm grouped_input_gradient = algorithm<Primitive::input_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
