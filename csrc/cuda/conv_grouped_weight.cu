// Weight gradient of groups of 8 to 32 channels on tensor cores, channels_last, float16 and bfloat16: all taps from one reading
// of x and gy.
//
// A block copies tiles of x and gy of some groups into shared memory, one after another. The products are x^T times gy over 16
// positions at a time: their rows are pieces of 8 input channels of one tap, two pieces an mma, which ldmatrix takes from
// wherever the tap points, and their columns are a group's output channels. One more piece is a channel of ones, whose sums
// are the bias gradient. A warp keeps the sums of its pieces of one group in registers over all tiles of its slice; warps and
// slices are added in their order.
#include "conv.h"
#include "conv_grouped.cuh"
#include "conv_weight.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

constexpr int most_pairs = 5;  // of pieces that a warp computes: at most 80 sums a thread

struct GroupedWeight {
  GatherAxis rows, columns;
  int kernel_columns, taps;
  int64_t batch;
  int groups, in_channels, out_channels;  // channels of one group
  Strides in, out;
  Rectangle x, gy;
  int units;                // groups a block
  int pairs;                // of pieces, a group
  int shares, share_pairs;  // parts of a group's pairs, one a warp
  int rounds;               // blocks that share the groups' parts
  int parts;                // warps that share a part, by positions
  int tile_rows, segments;  // positions of a tile: tile_rows x segments x `positions`
  int row_tiles, column_tiles, unit_tiles;
  Slices slices;  // of the tiles of all images
};

// Elements of shared memory before the tiles: a piece of zeros, one of a one and zeros, and of each piece where it lies.
constexpr int constants = 2 * piece;
FASTCONV_HOST_DEVICE int before_tiles(const GroupedWeight& g) { return constants + (4 * g.pairs + piece - 1) / piece * piece; }

// out_blocks: output channels of a group, by 8.
template <class T, int out_blocks>
__global__ void __launch_bounds__(threads_a_block, 2)
    grouped_weight_tensor_core(GroupedWeight g, const T* gy, const T* x, Partials<float> partials) {
  FASTCONV_DYNAMIC_SHARED(T, shared);
  constexpr int out_channels = piece * out_blocks;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int chunks = g.in_channels / piece, pieces = g.taps * chunks;
  const int64_t plane_tiles = int64_t(g.row_tiles) * g.column_tiles, tiles = g.batch * plane_tiles;
  const int block = int(blockIdx.x), group0 = block % g.unit_tiles * g.units, slice = block / g.unit_tiles / g.rounds;

  // Where the pieces lie, from a position's pixel; or below zero: a constant.
  int* const offsets = reinterpret_cast<int*>(shared + constants);
  if (threadIdx.x < constants) narrow(threadIdx.x == piece ? 1.0f : 0.0f, shared[threadIdx.x]);
  for (int i = int(threadIdx.x); i < 2 * g.pairs; i += threads_a_block) {
    const int tap = i / chunks;
    offsets[i] = i < pieces    ? tap / g.kernel_columns * g.rows.step * g.x.row_step +
                                     tap % g.kernel_columns * g.columns.step * g.x.column_step + i % chunks * piece
                 : i == pieces ? piece - constants
                               : -constants;
  }

  // This warp's part of the result.
  const int all = g.units * g.shares, round = block / g.unit_tiles % g.rounds;
  const int share = g.rounds > 1 ? round * warps_a_block + warp : warp % all, part = g.rounds > 1 ? 0 : warp / all;
  const int unit = share / g.shares, first = share % g.shares * g.share_pairs;
  const bool works = unit < g.units && group0 + unit < g.groups && part < g.parts;
  const int left = g.pairs - first, count = !works ? 0 : left < g.share_pairs ? left : g.share_pairs;

  const int* const own_offsets = offsets + 2 * first + lane / 8 % 2;
  float sums[most_pairs][out_blocks][4] = {};
  const int64_t begin = slice * g.slices.length, end = begin + g.slices.length < tiles ? begin + g.slices.length : tiles;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t n = tile / plane_tiles;
    const int within = int(tile - n * plane_tiles);
    const int row0 = within / g.column_tiles * g.tile_rows, column0 = within % g.column_tiles * g.segments * positions;
    const Image<T> x_image{x + n * g.in.n, g.in, g.groups * g.in_channels, g.rows.in, g.columns.in};
    const Image<T> gy_image{gy + n * g.out.n, g.out, g.groups * out_channels, g.rows.grid, g.columns.grid};
    const T* x_tile = fill(g.x, shared + before_tiles(g), x_image, group0 * g.in_channels, row0 * g.rows.sample + g.rows.base,
                           column0 * g.columns.sample + g.columns.base);
    const T* gy_tile = fill(g.gy, shared + before_tiles(g) + g.x.elements, gy_image, group0 * out_channels, row0, column0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

#pragma unroll 1
    for (int item = part; count > 0 && item < g.tile_rows * g.segments; item += g.parts) {
      const int row = item / g.segments, column = item % g.segments * positions;
      if (row0 + row >= g.rows.grid || column0 + column >= g.columns.grid) continue;
      uint32_t b[out_blocks][2];
      const T* from_gy =
          gy_tile + unit * out_channels + row * g.gy.row_step + (column + lane % 16) * g.gy.column_step + lane / 16 * piece;
      if constexpr (out_blocks == 1) {
        load_matrix<true>(b[0], lane < 16 ? from_gy : shared);
      } else {
#pragma unroll
        for (int k = 0; k < out_blocks; k += 2) {
          uint32_t r[4];
          load_matrix<true>(r, from_gy + k * piece);
          b[k][0] = r[0], b[k][1] = r[1], b[k + 1][0] = r[2], b[k + 1][1] = r[3];
        }
      }
      const int position = column + lane % 8 + lane / 16 * 8;
      const bool inside = column0 + position < g.columns.grid;  // beyond it gy is zero, but zero times x could be NaN
      const int from_x = int(x_tile - shared) + unit * g.in_channels + row * g.rows.sample * g.x.row_step +
                         position * g.columns.sample * g.x.column_step;
#pragma unroll
      for (int i = 0; i < most_pairs; ++i) {
        if (i >= count) break;
        uint32_t a[4];
        const int offset = own_offsets[2 * i];
        load_matrix<true>(a, shared + (offset < 0 ? constants + offset : inside ? from_x + offset : 0));
#pragma unroll
        for (int k = 0; k < out_blocks; ++k) multiply_matrix<T>(sums[i][k], a, b[k]);
      }
    }
    __syncthreads();  // the next tile refills shared memory
  }

  const int64_t group = (int64_t(slice) * g.parts + part) * g.groups + group0 + unit;
#pragma unroll
  for (int i = 0; i < most_pairs; ++i) {
    if (i >= count) break;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int at = 2 * (first + i) + which;
      const int64_t tap = group * g.taps + at / chunks;
#pragma unroll
      for (int k = 0; k < out_blocks; ++k)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int output = piece * k + lane % 4 * 2 + j;
          const float sum = sums[i][k][2 * which + j];
          if (at < pieces)
            partials.weights[(tap * out_channels + output) * g.in_channels + at % chunks * piece + lane / 4] = sum;
          else if (at == pieces && lane < 4 && partials.bias)
            partials.bias[group * out_channels + output] = sum;
        }
    }
  }
}

// ---- the shape of a tile ----

// The rectangles of the chosen tile in shared memory; its bytes.
template <class T>
int64_t place(GroupedWeight& g, const void* gy, const void* x) {
  const auto reach = [](const GatherAxis& axis, int count) {
    return (count - 1) * axis.sample + (axis.taps - 1) * axis.step + 1;
  };
  const int columns = g.segments * positions;
  g.x = grouped_rectangle<T>(g.units, g.groups, g.in_channels, reach(g.rows, g.tile_rows), reach(g.columns, columns), x);
  g.gy = grouped_rectangle<T>(g.units, g.groups, g.out_channels, g.tile_rows, columns, gy);
  return (before_tiles(g) + g.x.elements + g.gy.elements) * int64_t(sizeof(T));
}

// A tile that fits in shared memory and how the sum over all of them is cut; false if there is none. The cut depends on the
// problem and the GPU alone, not on addresses.
template <class T>
bool shape(GroupedWeight& g, const ConvProblem& p, int multiprocessors) {
  const Gather base = forward_gather(p, 1);
  g.rows = base.rows, g.columns = base.columns;
  g.kernel_columns = base.kernel_columns, g.taps = base.taps;
  g.batch = base.batch;
  g.groups = base.groups, g.in_channels = base.in_channels, g.out_channels = base.out_channels;
  g.in = base.in, g.out = base.out;

  g.pairs = tiles(g.taps * (g.in_channels / piece) + 1, 2);
  constexpr int line = 64;  // channels: 128 bytes
  const int channels = g.in_channels > g.out_channels ? g.in_channels : g.out_channels;
  g.units = line / channels < g.groups ? line / channels : g.groups;
  g.tile_rows = g.rows.grid < 16 ? g.rows.grid : 16;
  const int across = tiles(g.columns.grid, positions);
  g.segments = across < 16 / g.tile_rows ? across : 16 / g.tile_rows;
  const auto halve = [](int& count, int least) {
    if (count <= least) return false;
    count = (count + 1) / 2;
    return true;
  };
  while (place<T>(g, nullptr, nullptr) > wanted_shared)
    if (!halve(g.segments, 1) && !halve(g.tile_rows, 4) && !halve(g.units, 1) && !halve(g.tile_rows, 1)) break;
  if (place<T>(g, nullptr, nullptr) > most_shared) return false;

  g.shares = tiles(g.pairs, most_pairs);
  g.share_pairs = tiles(g.pairs, g.shares);
  g.shares = tiles(g.pairs, g.share_pairs);
  g.rounds = tiles(g.units * g.shares, warps_a_block);
  g.parts = g.rounds > 1 ? 1 : warps_a_block / (g.units * g.shares);
  g.row_tiles = tiles(g.rows.grid, g.tile_rows);
  g.column_tiles = tiles(across, g.segments);
  g.unit_tiles = tiles(g.groups, g.units);
  const int64_t all = g.batch * g.row_tiles * g.column_tiles;
  int count = tiles(4 * int64_t(multiprocessors), int64_t(g.unit_tiles) * g.rounds);
  count = count < all ? count : int(all);
  const int64_t length = (all + count - 1) / count;
  g.slices = {int((all + length - 1) / length), length};
  return true;
}

// ---- launches ----

// Each warp's part of the positions is a slice of its own.
Slices pieces_of(const GroupedWeight& g) { return {g.slices.count * g.parts, 0}; }

template <class T>
void run_of(const ConvProblem& p, const ConvArgs& args) {
  const T *gy = static_cast<const T*>(args.gy), *x = static_cast<const T*>(args.x);
  GroupedWeight g{};
  shape<T>(g, p, args.threads);
  const int64_t bytes = place<T>(g, gy, x);
  const auto partials = partials_in<float>(p, pieces_of(g), args.workspace, args.gb != nullptr);
  const auto kernel = g.out_channels == 8    ? grouped_weight_tensor_core<T, 1>
                      : g.out_channels == 16 ? grouped_weight_tensor_core<T, 2>
                                             : grouped_weight_tensor_core<T, 4>;
  launch("conv_weight_gradient_grouped", kernel, dim3(g.slices.count * g.unit_tiles * g.rounds), dim3(threads_a_block),
         size_t(bytes), args.stream, g, gy, x, partials);
  finish_weight_gradient<T>(p, pieces_of(g), partials, static_cast<T*>(args.gw), static_cast<T*>(args.gb), args.stream);
}

void run(const ConvProblem& p, const ConvArgs& args) {
  p.dtype == Dtype::float16 ? run_of<Half>(p, args) : run_of<BFloat16>(p, args);
}

bool applies(const ConvProblem& p) {
  GroupedWeight g{};
  return grouped_problem(p, p.c / p.groups, p.k / p.groups) && shape<Half>(g, p, 1);
}

int64_t workspace(const ConvProblem& p, int multiprocessors) {
  GroupedWeight g{};
  shape<Half>(g, p, multiprocessors);
  return partial_bytes<float>(p, pieces_of(g));
}

// A prediction: the products over all channels are padded to 64 x 64 a group, and read x and gy for every tap.
bool always(const ConvProblem&) { return true; }

}  // namespace

const ConvAlgorithm grouped_weight_gradient = {"grouped", Primitive::weight_gradient, applies, always, workspace, run};

}  // namespace fastconv::FASTCONV_BACKEND
