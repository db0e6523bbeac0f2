// Forward and input gradient of groups of 8 to 32 channels on tensor cores, channels_last, float16 and bfloat16. A product of
// its own for each group: nothing is multiplied by the zeros between groups.
//
// A block copies what a tile of positions of some groups reads into shared memory, once, and their weights. The sum over taps
// and input channels runs in pieces of 8 channels of one tap, 16 bytes of a pixel: two pieces are the depth of an mma, and
// ldmatrix takes the 16 bytes of each position from wherever its tap points. A warp computes two rows of 16 positions of one
// group, which share the weights' fragments.
#include "conv.h"
#include "conv_tile.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int warps_a_block = 8, threads_a_block = 32 * warps_a_block;
constexpr int piece = 8;       // channels
constexpr int positions = 16;  // columns of a tile: the rows of an mma
constexpr int strip = 2;       // rows of positions a warp computes at a time
constexpr int64_t wanted_shared = 56 << 10;
constexpr int64_t most_shared = 96 << 10;

struct Grouped {
  Gather gather;
  Rectangle source;
  int row_low, column_low;                  // grid position i reads from i * sample + low on
  int units;                                // groups a block
  int tile_rows;                            // positions of a tile: tile_rows x `positions`
  int row_tiles, column_tiles, unit_tiles;  // tiles of an image
  bool packs;                               // a pair of results is stored at once
};

// Elements of shared memory: 16 bytes of zeros, the weights, the image.
FASTCONV_HOST_DEVICE int weights_of(const Grouped& g) {
  return g.units * g.gather.taps * g.gather.in_channels * g.gather.out_channels;
}

// out_blocks: output channels of a group, by 8. weights: [group][tap][in channel][out channel].
template <class T, int out_blocks>
__global__ void __launch_bounds__(threads_a_block, out_blocks == 4 ? 2 : 3)
    grouped_tensor_core(Grouped grouped, const T* x, const T* weights, const T* bias, T* y) {
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const Gather& g = grouped.gather;
  constexpr int out_channels = 8 * out_blocks;
  T *own_weights = shared + piece, *image_tile = own_weights + weights_of(grouped);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int chunks = g.in_channels / piece, pieces = g.taps * chunks, group_weights = g.taps * g.in_channels * out_channels;
  const int64_t blocks = g.batch * grouped.unit_tiles * grouped.row_tiles * grouped.column_tiles;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t above = block / grouped.column_tiles, n = above / grouped.row_tiles / grouped.unit_tiles;
    const int column0 = int(block % grouped.column_tiles) * positions,
              row0 = int(above % grouped.row_tiles) * grouped.tile_rows,
              group0 = int(above / grouped.row_tiles % grouped.unit_tiles) * grouped.units;
    if (threadIdx.x < piece) shared[threadIdx.x] = T{};
    const int real_units = g.groups - group0 < grouped.units ? g.groups - group0 : grouped.units;
    for (int i = int(threadIdx.x) * piece; i < real_units * group_weights; i += threads_a_block * piece)
      copy_async<16>(own_weights + i, weights + int64_t(group0) * group_weights + i);
    const Image<T> image{x + n * g.in.n, g.in, g.groups * g.in_channels, g.rows.in, g.columns.in};
    const T* tile = fill(grouped.source, image_tile, image, group0 * g.in_channels, row0 * g.rows.sample + grouped.row_low,
                         column0 * g.columns.sample + grouped.column_low);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    const int strips = grouped.tile_rows / strip;
    for (int item = warp; item < real_units * strips; item += warps_a_block) {
      const int unit = item / strips, first_row = item % strips * strip;
      if (row0 + first_row >= g.rows.grid) continue;
      // The position whose 16 bytes this lane points at, and which of the two pieces of a step.
      const int position = lane % 16, half = lane / 16;
      const T* from = tile + unit * g.in_channels +
                      (first_row * g.rows.sample + g.rows.base - grouped.row_low) * grouped.source.row_step +
                      (position * g.columns.sample + g.columns.base - grouped.column_low) * grouped.source.column_step;
      const T* panel = own_weights + unit * group_weights;
      float sums[strip][out_blocks][4] = {};
      int chunk = 0, tap_row = 0, tap_column = 0;
      const auto next = [&] {
        if (++chunk < chunks) return;
        chunk = 0;
        if (++tap_column < g.columns.taps) return;
        tap_column = 0;
        ++tap_row;
      };
      if (half) next();
#pragma unroll 1
      for (int step = 0; step < pieces; step += 2) {
        const bool real = step + half < pieces;  // else zeros by zeros
        const T* at = from + tap_row * g.rows.step * grouped.source.row_step +
                      tap_column * g.columns.step * grouped.source.column_step + chunk * piece;
        uint32_t a[strip][4];
#pragma unroll
        for (int j = 0; j < strip; ++j)
          load_matrix<false>(a[j], real ? at + j * g.rows.sample * grouped.source.row_step : shared);
        // Rows of the weights' block: lanes 0 to 15 point at them.
        const int row = step * piece + lane % 16;
#pragma unroll
        for (int block_of = 0; block_of < out_blocks; ++block_of) {
          uint32_t b[2];
          load_matrix<true>(b, row < pieces * piece ? panel + row * out_channels + 8 * block_of : shared);
#pragma unroll
          for (int j = 0; j < strip; ++j) multiply_matrix<T>(sums[j][block_of], a[j], b);
        }
        next();
        next();
      }

#pragma unroll
      for (int j = 0; j < strip; ++j) {
        const int grid_row = row0 + first_row + j;
        if (first_row + j >= grouped.tile_rows || grid_row >= g.rows.grid) break;
#pragma unroll
        for (int block_of = 0; block_of < out_blocks; ++block_of)
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int grid_column = column0 + lane / 4 + 8 * part;
            if (grid_column >= g.columns.grid) continue;
            const int channel = (group0 + unit) * out_channels + 8 * block_of + lane % 4 * 2;
            Pack<T, 2> out;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              float value = sums[j][block_of][2 * part + k];
              if (bias) value += widen(bias[channel + k]);
              narrow(activate(value, g.relu), out.at[k]);
            }
            T* target = y + output_of(g, {n, grid_row, grid_column}) + channel;
            if (grouped.packs)
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

int tiles(int64_t count, int64_t each) { return int((count + each - 1) / each); }

Gather gather_of(const ConvProblem& p, Primitive primitive) {
  return primitive == Primitive::forward ? forward_gather(p, piece) : phase_gather(p, 0, 0, piece);
}

// A tile that fits in shared memory; false if there is none.
template <class T>
bool shape(Grouped& out, const void* x) {
  const Gather& g = out.gather;
  const auto low = [](const GatherAxis& axis) {
    const int last = axis.base + (axis.taps - 1) * axis.step;
    return axis.base < last ? axis.base : last;
  };
  const auto reach = [](const GatherAxis& axis) { return (axis.taps - 1) * (axis.step < 0 ? -axis.step : axis.step) + 1; };
  out.row_low = low(g.rows), out.column_low = low(g.columns);
  constexpr int line = 64;  // channels: 128 bytes
  out.units = line / g.in_channels < g.groups ? line / g.in_channels : g.groups;
  out.tile_rows = tiles(g.rows.grid < 16 ? g.rows.grid : 16, strip) * strip;
  const auto bytes = [&] {
    const int64_t extent = greatest_common_divisor(int64_t(out.units) * g.in_channels, int64_t(g.groups) * g.in_channels);
    Rectangle& source = out.source;
    source =
        rectangle_of<T>(Layout::channels_last, out.units * g.in_channels, (out.tile_rows - 1) * g.rows.sample + reach(g.rows),
                        (positions - 1) * g.columns.sample + reach(g.columns), granule_of<T>(16, extent, {x}), true);
    // An odd number of 16 bytes from pixel to pixel: eight rows of ldmatrix lie in different banks.
    source.column_step = source.channels / piece % 2 ? source.channels : source.channels + piece;
    source.row_step = source.columns * source.column_step;
    source.elements = int64_t(source.rows) * source.row_step;
    return (piece + weights_of(out) + source.elements) * int64_t(sizeof(T));
  };
  while (bytes() > wanted_shared) {
    if (out.tile_rows > 4)
      out.tile_rows = tiles(out.tile_rows / 2, strip) * strip;
    else if (out.units > 1)
      out.units = (out.units + 1) / 2;
    else
      break;
  }
  out.row_tiles = tiles(g.rows.grid, out.tile_rows);
  out.column_tiles = tiles(g.columns.grid, positions);
  out.unit_tiles = tiles(g.groups, out.units);
  return bytes() <= most_shared;
}

// ---- launches ----

template <class T>
void run_of(const ConvProblem& p, const ConvArgs& args, Primitive primitive) {
  const bool forward = primitive == Primitive::forward;
  Grouped grouped{};
  grouped.gather = gather_of(p, primitive);
  const Gather& g = grouped.gather;
  const T *x = static_cast<const T*>(forward ? args.x : args.gy), *bias = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(forward ? args.y : args.gx);
  shape<T>(grouped, x);
  grouped.packs = reinterpret_cast<uintptr_t>(y) % (2 * sizeof(T)) == 0;
  const T* weights =
      packed_weights<T>(static_cast<const T*>(args.w), packing_of(p, g, !forward, g.in_channels), args.workspace, args.stream);
  const auto kernel = g.out_channels == 8    ? grouped_tensor_core<T, 1>
                      : g.out_channels == 16 ? grouped_tensor_core<T, 2>
                                             : grouped_tensor_core<T, 4>;
  launch(forward ? "conv_forward_grouped" : "conv_input_gradient_grouped", kernel,
         dim3(blocks_for(g.batch * grouped.unit_tiles * grouped.row_tiles * grouped.column_tiles, 1)), dim3(threads_a_block),
         size_t(piece + weights_of(grouped) + grouped.source.elements) * sizeof(T), args.stream, grouped, x, weights, bias, y);
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  p.dtype == Dtype::float16 ? run_of<Half>(p, args, primitive) : run_of<BFloat16>(p, args, primitive);
}

template <Primitive primitive>
bool applies(const ConvProblem& p) {
  const bool forward = primitive == Primitive::forward;
  const int64_t in = (forward ? p.c : p.k) / p.groups, out = (forward ? p.k : p.c) / p.groups;
  if ((p.dtype != Dtype::float16 && p.dtype != Dtype::bfloat16) || p.layout != Layout::channels_last || !gather_fits(p))
    return false;
  if (in % piece || in > 32 || (out != 8 && out != 16 && out != 32)) return false;
  if (!forward && (p.stride_h > 1 || p.stride_w > 1)) return false;
  Grouped grouped{};
  grouped.gather = gather_of(p, primitive);
  return shape<Half>(grouped, nullptr);
}

// A prediction: 32 channels fill half a tile of the products over all channels, and 16 a quarter.
template <Primitive primitive>
bool preferred(const ConvProblem& p) {
  return p.c / p.groups <= 16 && p.k / p.groups <= 16;
}

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int) {
  const Gather g = gather_of(p, primitive);
  return packed_count(g, g.in_channels) * int64_t(sizeof(Half));
}

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {"grouped",     primitive, applies<primitive>, preferred<primitive>, workspace<primitive>,
                                     run<primitive>};

}  // namespace

const ConvAlgorithm grouped_forward = algorithm<Primitive::forward>;
const ConvAlgorithm grouped_input_gradient = algorithm<Primitive::input_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
