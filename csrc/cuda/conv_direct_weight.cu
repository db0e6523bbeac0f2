// Weight gradient of groups with few channels, depthwise convolution among them: all taps from one reading of x and gy.
//
// A block copies tiles of x and gy of some groups into shared memory, one after another, and its warps keep sums over all of
// them: a warp those of 3 x 3 taps of one input channel and `lanes` output channels (or of some groups, in a depthwise
// convolution in channels_last), each of its threads for other positions. At the end the threads of a warp are added by
// shuffles, then warps and blocks in their order.
#include <utility>

#include "conv.h"
#include "conv_tile.cuh"
#include "conv_weight.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int warps_a_block = 8, threads_a_block = 32 * warps_a_block;
constexpr int side = 3;                      // a warp's taps are side x side
constexpr int64_t wanted_shared = 48 << 10;  // of both tiles, so that several blocks stay resident
constexpr int64_t most_shared = 96 << 10;

template <class T>
constexpr int lanes_of = sizeof(T) == 8 ? 2 : 4;

// Outputs of neighbouring rows share inputs in registers where neighbours are `sample` input rows apart. 0: any stride and
// dilation.
template <int lanes_, bool groupwise_, int sample_>
struct Walk {
  static constexpr int lanes = lanes_, sample = sample_;
  static constexpr bool groupwise = groupwise_;               // the lanes are groups of one channel each
  static constexpr int strip = sample == 0 ? 1 : 4 / sample;  // rows of inputs in registers: at most 7
  static constexpr int inputs = sample == 0 ? side : (strip - 1) * sample + side;
};

struct DirectWeight {
  GatherAxis rows, columns;
  int kernel_rows, kernel_columns;
  int64_t batch;
  int groups, in_channels, out_channels;  // channels of one group
  Strides in, out;
  Rectangle x, gy;
  int units;                    // groups a block
  int across;                   // neighbouring groups that a warp's threads own, each `lanes` of them
  int chunks;                   // parts of a block's result, one a warp
  int rounds;                   // blocks that share the chunks of the same groups
  int parts;                    // warps that share a chunk, by positions
  int tile_rows, tile_columns;  // positions of a tile
  int row_tiles, column_tiles, unit_tiles;
  Slices slices;  // of the tiles of all images
};

template <class T, class X>
__global__ void __launch_bounds__(threads_a_block, 2)
    direct_weight(DirectWeight g, const T* gy, const T* x, Partials<Compute<T>> partials) {
  using C = Compute<T>;
  constexpr int lanes = X::lanes, strip = X::strip, width = X::groupwise ? lanes : 1;
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int tap_columns = (g.kernel_columns + side - 1) / side, tap_chunks = (g.kernel_rows + side - 1) / side * tap_columns;
  const int channel_chunks = X::groupwise ? 1 : (g.out_channels + lanes - 1) / lanes;
  const int64_t plane_tiles = int64_t(g.row_tiles) * g.column_tiles, tiles = g.batch * plane_tiles;
  const int64_t blocks = int64_t(g.slices.count) * g.unit_tiles * g.rounds;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int group0 = int(block % g.unit_tiles) * g.units, round = int(block / g.unit_tiles % g.rounds);
    const int slice = int(block / g.unit_tiles / g.rounds);
    // This warp's part of the result.
    const int chunk = g.rounds > 1 ? round * warps_a_block + warp : warp % g.chunks, part = g.rounds > 1 ? 0 : warp / g.chunks;
    const int tap_chunk = chunk % tap_chunks, rest = chunk / tap_chunks;
    const int r0 = tap_chunk / tap_columns * side, s0 = tap_chunk % tap_columns * side;
    const int out0 = X::groupwise ? 0 : rest % channel_chunks * lanes,
              c = X::groupwise ? 0 : rest / channel_chunks % g.in_channels;
    const int unit = X::groupwise ? lane % g.across * lanes : rest / channel_chunks / g.in_channels;
    const bool works = chunk < g.chunks && part < g.parts && unit < g.units;
    const int left_rows = g.kernel_rows - r0 < side ? g.kernel_rows - r0 : side;
    const int left_columns = g.kernel_columns - s0 < side ? g.kernel_columns - s0 : side;

    C sum[side][side][lanes] = {}, bias_sum[lanes] = {};
    const int64_t begin = slice * g.slices.length, end = begin + g.slices.length < tiles ? begin + g.slices.length : tiles;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t n = tile / plane_tiles;
      const int within = int(tile - n * plane_tiles);
      const int row0 = within / g.column_tiles * g.tile_rows, column0 = within % g.column_tiles * g.tile_columns;
      const Image<T> x_image{x + n * g.in.n, g.in, g.groups * g.in_channels, g.rows.in, g.columns.in};
      const Image<T> gy_image{gy + n * g.out.n, g.out, g.groups * g.out_channels, g.rows.grid, g.columns.grid};
      const T* x_tile = fill(g.x, shared, x_image, group0 * g.in_channels, row0 * g.rows.sample + g.rows.base,
                             column0 * g.columns.sample + g.columns.base);
      const T* gy_tile = fill(g.gy, shared + g.x.elements, gy_image, group0 * g.out_channels, row0, column0);
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();

      const int positions = 32 / g.across * g.parts, strips = g.tile_rows / strip;
      for (int item = part * (32 / g.across) + lane / g.across; works && item < strips * g.tile_columns; item += positions) {
        const int column = item % g.tile_columns, row = item / g.tile_columns * strip;
        const int rows_left = g.rows.grid - row0 - row;  // beyond them inputs times zero could be NaN
        if (rows_left <= 0 || column0 + column >= g.columns.grid) continue;
        C gradient[strip][lanes];
        const T* from_gy =
            gy_tile + (unit * g.out_channels + out0) * g.gy.channel_step + row * g.gy.row_step + column * g.gy.column_step;
#pragma unroll
        for (int j = 0; j < strip; ++j) {
          if constexpr (X::groupwise) {
            const auto values = load_pack<lanes>(from_gy + j * g.gy.row_step);
#pragma unroll
            for (int k = 0; k < lanes; ++k) gradient[j][k] = widen(values.at[k]);
          } else {
#pragma unroll
            for (int k = 0; k < lanes; ++k)
              gradient[j][k] = out0 + k < g.out_channels ? widen(from_gy[j * g.gy.row_step + k * g.gy.channel_step]) : C(0);
          }
        }
#pragma unroll
        for (int j = 0; j < strip; ++j)
#pragma unroll
          for (int k = 0; k < lanes; ++k) bias_sum[k] += gradient[j][k];

        const T* from_x = x_tile + (unit * g.in_channels + c) * g.x.channel_step +
                          (row * g.rows.sample + r0 * g.rows.step) * g.x.row_step +
                          (column * g.columns.sample + s0 * g.columns.step) * g.x.column_step;
#pragma unroll
        for (int s = 0; s < side; ++s) {
          if (s >= left_columns) break;
          C in[X::inputs][width];
#pragma unroll
          for (int i = 0; i < X::inputs; ++i) {
            const bool needed = i < (strip - 1) * X::sample + left_rows;
            const T* at = from_x + i * (X::sample ? 1 : g.rows.step) * g.x.row_step + s * g.columns.step * g.x.column_step;
            if constexpr (X::groupwise) {
              Pack<T, lanes> values{};
              if (needed) values = load_pack<lanes>(at);
#pragma unroll
              for (int k = 0; k < lanes; ++k) in[i][k] = widen(values.at[k]);
            } else {
              in[i][0] = needed ? widen(*at) : C(0);
            }
          }
#pragma unroll
          for (int r = 0; r < side; ++r) {
            if (r >= left_rows) break;
#pragma unroll
            for (int j = 0; j < strip; ++j) {
              if (j >= rows_left) break;
#pragma unroll
              for (int k = 0; k < lanes; ++k)
                sum[r][s][k] = multiply_add(in[j * X::sample + r][X::groupwise ? k : 0], gradient[j][k], sum[r][s][k]);
            }
          }
        }
      }
      __syncthreads();  // the next tile refills shared memory
    }

    // The threads that own the same groups, in a fixed tree; every thread gets the sum.
    const auto add_up = [&](C& value) {
      for (int distance = 16; distance >= g.across; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    };
#pragma unroll
    for (int r = 0; r < side; ++r)
#pragma unroll
      for (int s = 0; s < side; ++s)
#pragma unroll
        for (int k = 0; k < lanes; ++k) add_up(sum[r][s][k]);
#pragma unroll
    for (int k = 0; k < lanes; ++k) add_up(bias_sum[k]);

    if (!works || lane >= g.across) continue;
    const int64_t piece = int64_t(slice) * g.parts + part;
#pragma unroll
    for (int k = 0; k < lanes; ++k) {
      const int group = group0 + unit + (X::groupwise ? k : 0), output = out0 + (X::groupwise ? 0 : k);
      if (group >= g.groups || output >= g.out_channels) continue;
#pragma unroll
      for (int r = 0; r < side; ++r)
#pragma unroll
        for (int s = 0; s < side; ++s) {
          if (r >= left_rows || s >= left_columns) continue;
          const int64_t tap = (r0 + r) * g.kernel_columns + s0 + s, taps = g.kernel_rows * g.kernel_columns;
          partials.weights[(((piece * g.groups + group) * taps + tap) * g.out_channels + output) * g.in_channels + c] =
              sum[r][s][k];
        }
      if (partials.bias && tap_chunk == 0 && c == 0)
        partials.bias[(piece * g.groups + group) * g.out_channels + output] = bias_sum[k];
    }
  }
}

// ---- the shape of a tile ----

int up(int64_t count, int64_t multiple) { return int((count + multiple - 1) / multiple * multiple); }
int tiles(int64_t count, int64_t each) { return int((count + each - 1) / each); }

bool is_depthwise(const ConvProblem& p) { return p.groups == p.c; }
bool each_alone(const ConvProblem& p) { return p.groups == p.c && p.k == p.c; }

template <class T>
DirectWeight base_of(const ConvProblem& p) {
  DirectWeight g{};
  const Gather base = forward_gather(p, 1);
  g.rows = base.rows, g.columns = base.columns;
  g.kernel_rows = int(p.r), g.kernel_columns = int(p.s);
  g.batch = p.n;
  g.groups = base.groups, g.in_channels = base.in_channels, g.out_channels = base.out_channels;
  g.in = base.in, g.out = base.out;
  // In channels_last an image of one row is as well one of one column: then strips run along it.
  if (p.layout == Layout::channels_last && p.h == 1 && p.p == 1 && p.r == 1) {
    std::swap(g.rows, g.columns);
    std::swap(g.in.h, g.in.w);
    std::swap(g.out.h, g.out.w);
    std::swap(g.kernel_rows, g.kernel_columns);
  }
  return g;
}

// The rectangles of the chosen tile in shared memory; its bytes.
template <class T>
int64_t place(DirectWeight& g, Layout layout, bool groupwise, const void* gy, const void* x) {
  const bool last = layout == Layout::channels_last;
  const auto reach = [](const GatherAxis& axis, int positions) {
    return (positions - 1) * axis.sample + (axis.taps - 1) * axis.step + 1;
  };
  const auto rectangle = [&](int channels, int rows, int columns, int image_columns, const void* pointer) {
    const int64_t extent = !last                 ? image_columns
                           : g.units >= g.groups ? int64_t(g.groups) * channels
                                                 : greatest_common_divisor(g.units * channels, g.groups * channels);
    const int granule = granule_of<T>(last && !groupwise ? 4 : 16, extent, {pointer});
    return rectangle_of<T>(layout, g.units * channels, rows, columns, granule, groupwise);
  };
  g.x = rectangle(g.in_channels, reach(g.rows, g.tile_rows), reach(g.columns, g.tile_columns), g.columns.in, x);
  g.gy = rectangle(g.out_channels, g.tile_rows, g.tile_columns, g.columns.grid, gy);
  return (g.x.elements + g.gy.elements) * int64_t(sizeof(T));
}

// A tile that fits in shared memory and how the sum over all of them is cut; false if there is none. The cut depends on the
// problem and the GPU alone, not on addresses.
template <class T>
bool shape(DirectWeight& g, Layout layout, bool groupwise, int strip, int lanes, int multiprocessors) {
  const int tap_chunks = tiles(g.kernel_rows, side) * tiles(g.kernel_columns, side);
  const int chunks_a_group = groupwise ? tap_chunks : tap_chunks * g.in_channels * tiles(g.out_channels, lanes);
  constexpr int line = 128 / int(sizeof(T));
  g.units = groupwise ? (line < g.groups ? line : g.groups) : warps_a_block / chunks_a_group;
  g.units = g.units < 1 ? 1 : g.units > g.groups ? g.groups : g.units;
  g.tile_rows = up(g.rows.grid < 16 ? g.rows.grid : 16, strip);
  g.tile_columns = g.columns.grid < 32 ? g.columns.grid : 32;
  const auto measure = [&] { return place<T>(g, layout, groupwise, nullptr, nullptr); };
  const auto halve = [&](int& count, int multiple) {
    if (count <= multiple) return false;
    count = up((count + 1) / 2, multiple);
    return true;
  };
  while (measure() > wanted_shared)
    if (!halve(g.tile_rows, strip) && !(g.tile_columns > 8 && halve(g.tile_columns, 1)) &&
        !halve(g.units, groupwise ? lanes : 1))
      break;
  if (measure() > most_shared) return false;
  g.chunks = groupwise ? tap_chunks : chunks_a_group * g.units;
  g.across = 1;
  while (groupwise && g.across * lanes < g.units) g.across *= 2;
  g.rounds = tiles(g.chunks, warps_a_block);
  g.parts = g.rounds > 1 ? 1 : warps_a_block / g.chunks;
  g.row_tiles = tiles(g.rows.grid, g.tile_rows);
  g.column_tiles = tiles(g.columns.grid, g.tile_columns);
  g.unit_tiles = tiles(g.groups, g.units);
  const int64_t all = g.batch * g.row_tiles * g.column_tiles, others = int64_t(g.unit_tiles) * g.rounds;
  int64_t count = (4 * int64_t(multiprocessors) + others - 1) / others;
  count = count < all ? count : all;
  const int64_t length = (all + count - 1) / count;
  g.slices = {int((all + length - 1) / length), length};
  return true;
}

// ---- launches ----

// The walk depends on the problem alone; only where addresses are not aligned is another taken.
template <class T, class Call>
auto with_walk(const ConvProblem& p, bool aligned, const Call& call) {
  constexpr int lanes = lanes_of<T>;
  const DirectWeight g = base_of<T>(p);
  const bool groupwise = each_alone(p) && p.layout == Layout::channels_last && p.c % lanes == 0 && aligned;
  const bool single = g.out_channels == 1;
  const int sample = sizeof(T) == 8 || g.kernel_rows == 1 || g.rows.step != 1 || g.rows.sample > 2 ? 0 : g.rows.sample;
  DirectWeight trial = g;
  if (groupwise && shape<T>(trial, p.layout, true, 4, lanes, 1)) {
    if constexpr (sizeof(T) < 8) {
      if (sample == 1) return call(Walk<lanes, true, 1>{});
      if (sample == 2) return call(Walk<lanes, true, 2>{});
    }
    return call(Walk<lanes, true, 0>{});
  }
  if constexpr (sizeof(T) < 8) {
    if (sample == 1) return single ? call(Walk<1, false, 1>{}) : call(Walk<lanes, false, 1>{});
    if (sample == 2) return single ? call(Walk<1, false, 2>{}) : call(Walk<lanes, false, 2>{});
  }
  return single ? call(Walk<1, false, 0>{}) : call(Walk<lanes, false, 0>{});
}

template <class T, class X>
DirectWeight shaped(const ConvProblem& p, X, int multiprocessors) {
  DirectWeight g = base_of<T>(p);
  shape<T>(g, p.layout, X::groupwise, X::strip, X::lanes, multiprocessors);
  return g;
}

template <class T>
int64_t workspace_of(const ConvProblem& p, int multiprocessors) {
  const auto bytes = [&](auto walk) {
    const DirectWeight g = shaped<T>(p, walk, multiprocessors);
    return partial_bytes<Compute<T>>(p, {g.slices.count * g.parts, 0});
  };
  const int64_t aligned = with_walk<T>(p, true, bytes), other = with_walk<T>(p, false, bytes);
  return aligned > other ? aligned : other;
}

template <class T>
void run_of(const ConvProblem& p, const ConvArgs& args, const char* name) {
  const T *gy = static_cast<const T*>(args.gy), *x = static_cast<const T*>(args.x);
  const auto whole = [](const void* q) { return reinterpret_cast<uintptr_t>(q) % (lanes_of<T> * sizeof(T)) == 0; };
  with_walk<T>(p, whole(gy) && whole(x), [&](auto walk) {
    using X = decltype(walk);
    DirectWeight g = shaped<T>(p, walk, args.threads);
    const int64_t bytes = place<T>(g, p.layout, X::groupwise, gy, x);
    const Slices pieces = {g.slices.count * g.parts, 0};
    const auto partials = partials_in<Compute<T>>(p, pieces, args.workspace, args.gb != nullptr);
    launch(name, direct_weight<T, X>, dim3(blocks_for(int64_t(g.slices.count) * g.unit_tiles * g.rounds, 1)),
           dim3(threads_a_block), size_t(bytes), args.stream, g, gy, x, partials);
    finish_weight_gradient<T>(p, pieces, partials, static_cast<T*>(args.gw), static_cast<T*>(args.gb), args.stream);
  });
}

// ---- predicates ----

// Whether the least tile fits, with any walk.
template <class T>
bool fits(const ConvProblem& p) {
  DirectWeight g = base_of<T>(p);
  return shape<T>(g, p.layout, false, 4, 1, 1);
}

bool depthwise_applies(const ConvProblem& p) {
  if (!gather_fits(p) || !is_depthwise(p)) return false;
  FASTCONV_FOR_DTYPE(p.dtype, fits<T>(p))
}

bool direct_applies(const ConvProblem& p) {
  if (!gather_fits(p) || is_depthwise(p) || p.c / p.groups > 32 || p.k / p.groups > 64) return false;
  FASTCONV_FOR_DTYPE(p.dtype, fits<T>(p))
}

int64_t workspace(const ConvProblem& p, int multiprocessors) {
  FASTCONV_FOR_DTYPE(p.dtype, workspace_of<T>(p, multiprocessors))
}

bool always(const ConvProblem&) { return true; }

// A product on tensor cores is 10 times as fast as here, without them it is as fast; but it is padded to whole tiles of 64 x 64
// channels, or of 128 x 64.
bool direct_preferred(const ConvProblem& p) {
  const bool tensor_core =
      p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16 || (p.dtype == Dtype::float32 && p.allow_tf32);
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const double padded = double(up(k, tensor_core ? 64 : 128)) * up(c, 64) / (double(c) * double(k));
  return padded > (tensor_core ? 10 : 1.5);
}

void run_depthwise(const ConvProblem& p, const ConvArgs& args) {
  FASTCONV_FOR_DTYPE(p.dtype, run_of<T>(p, args, "conv_weight_gradient_depthwise"))
}
void run_direct(const ConvProblem& p, const ConvArgs& args) {
  FASTCONV_FOR_DTYPE(p.dtype, run_of<T>(p, args, "conv_weight_gradient_direct"))
}

}  // namespace

const ConvAlgorithm depthwise_weight_gradient = {"depthwise",  Primitive::weight_gradient, depthwise_applies, always, workspace,
                                                 run_depthwise};
const ConvAlgorithm direct_weight_gradient = {
    "direct", Primitive::weight_gradient, direct_applies, direct_preferred, workspace, run_direct};

}  // namespace fastconv::FASTCONV_BACKEND
