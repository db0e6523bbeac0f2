// Forward and input gradient of groups with few channels, depthwise convolution among them: bound by memory, not by the
// product.
//
// A block copies what a tile of positions of some groups reads into shared memory, once, zeros where it lies outside the image.
// A thread computes a strip of neighbouring rows of one column for `lanes` output channels: for a column of the kernel it reads
// the strip's inputs into registers and uses each for all rows of the kernel. The lanes are output channels of one group that
// share an input channel or, in a depthwise convolution in channels_last, neighbouring groups.
//
// All phases of a strided input gradient are computed from one tile. A sum runs over input channels, kernel rows (`run` at a
// time), kernel columns: always in the same order, whatever the tile.
#include <utility>

#include "conv.h"
#include "conv_phases.cuh"
#include "conv_tile.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int threads_a_block = 256;
constexpr int64_t wanted_shared = 40 << 10;  // so that several blocks stay resident
constexpr int64_t most_shared = 96 << 10;

template <class T>
constexpr int lanes_of = sizeof(T) == 8 ? 2 : 4;

// How a kernel walks. `run` kernel rows share the inputs in registers, `sample` input rows apart from output to output; 1 and
// 0: any stride and dilation, each input read where it is used.
template <int lanes_, bool groupwise_, int run_, int sample_>
struct Walk {
  static constexpr int lanes = lanes_, run = run_, sample = sample_;
  static constexpr bool groupwise = groupwise_;  // the lanes are groups of one channel each
  static constexpr int strip = run == 1 ? 1 : 4;
  static constexpr int inputs = run == 1 ? 1 : (strip - 1) * sample + run;  // rows a strip reads
};

struct DirectGather : PhasedGather {
  Rectangle source;
  int units;                                // groups a block
  int tile_rows, tile_columns;              // positions of a tile, in one phase
  int row_tiles, column_tiles, unit_tiles;  // tiles of an image
  bool packs;                               // the lanes of a result are stored at once
};

// weights: [group][tap][in channel][out channel, padded], or [tap][group] where the lanes are groups.
template <class T, class X>
__global__ void __launch_bounds__(threads_a_block, sizeof(T) == 8 ? 2 : 3)
    direct_gather(DirectGather g, const T* x, const Compute<T>* weights, const T* bias, T* y) {
  using C = Compute<T>;
  constexpr int lanes = X::lanes, strip = X::strip;
  FASTCONV_DYNAMIC_SHARED(T, shared);
  const int64_t blocks = g.batch * g.unit_tiles * g.row_tiles * g.column_tiles;
  const int strips = (g.tile_rows + strip - 1) / strip, chunks = X::groupwise ? 1 : (g.out_channels + lanes - 1) / lanes;
  const int units = X::groupwise ? (g.units + lanes - 1) / lanes : g.units;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t above = block / g.column_tiles;
    const int64_t n = above / g.row_tiles / g.unit_tiles;
    const int column0 = int(block % g.column_tiles) * g.tile_columns, row0 = int(above % g.row_tiles) * g.tile_rows,
              group0 = int(above / g.row_tiles % g.unit_tiles) * g.units;
    const Image<T> image{x + n * g.in.n, g.in, g.groups * g.in_channels, g.in_rows, g.in_columns};
    const T* tile = fill(g.source, shared, image, group0 * g.in_channels, row0 * g.rows.sample + g.rows.low,
                         column0 * g.columns.sample + g.columns.low);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    for (int row_phase = 0; row_phase < g.rows.count; ++row_phase)
      for (int column_phase = 0; column_phase < g.columns.count; ++column_phase) {
        const GatherAxis rows = g.rows.at[row_phase], columns = g.columns.at[column_phase];
        for (int item = int(threadIdx.x); item < units * chunks * strips * g.tile_columns; item += threads_a_block) {
          // Neighbouring threads: neighbouring groups where the lanes are groups, else neighbouring columns.
          const int fast = X::groupwise ? units : g.tile_columns, slow = item / fast, within = item % fast;
          const int column = X::groupwise ? slow % g.tile_columns : within;
          const int first_row = (X::groupwise ? slow / g.tile_columns : slow % strips) * strip;
          const int unit = X::groupwise ? within * lanes : slow / strips / chunks;
          const int channel = X::groupwise ? 0 : slow / strips % chunks * lanes;
          const int group = group0 + unit;
          if (group >= g.groups || column0 + column >= columns.grid || row0 + first_row >= rows.grid) continue;

          const T* from = tile + unit * g.in_channels * g.source.channel_step +
                          (first_row * g.rows.sample + rows.base - g.rows.low) * g.source.row_step +
                          (column * g.columns.sample + columns.base - g.columns.low) * g.source.column_step;
          C sum[strip][lanes] = {};
#pragma unroll 1
          for (int c = 0; c < g.in_channels; ++c) {
            const C* panel = X::groupwise ? weights + group
                                          : weights + (int64_t(group) * g.taps * g.in_channels + c) * g.out_padded + channel;
            const int tap_step = X::groupwise ? g.groups : g.in_channels * g.out_padded;
#pragma unroll 1
            for (int r = 0; r < rows.taps; r += X::run)
#pragma unroll 1
              for (int s = 0; s < columns.taps; ++s) {
                const T* inputs = from + c * g.source.channel_step + r * rows.step * g.source.row_step +
                                  s * columns.step * g.source.column_step;
                const int left = rows.taps - r < X::run ? rows.taps - r : X::run;
                constexpr int width = X::groupwise ? lanes : 1;
                C in[X::inputs][width];
#pragma unroll
                for (int i = 0; i < X::inputs; ++i) {
                  const bool needed = i < (strip - 1) * X::sample + left;
                  if constexpr (X::groupwise) {
                    Pack<T, lanes> values{};
                    if (needed) values = load_pack<lanes>(inputs + i * g.source.row_step);
#pragma unroll
                    for (int k = 0; k < lanes; ++k) in[i][k] = widen(values.at[k]);
                  } else {
                    in[i][0] = needed ? widen(inputs[i * g.source.row_step]) : C(0);
                  }
                }
#pragma unroll
                for (int t = 0; t < X::run; ++t) {
                  if (t >= left) break;
                  const int tap = (rows.first + (r + t) * rows.every) * g.kernel_columns + columns.first + s * columns.every;
                  const auto w = load_pack<lanes>(panel + int64_t(tap) * tap_step);
#pragma unroll
                  for (int j = 0; j < strip; ++j)
#pragma unroll
                    for (int k = 0; k < lanes; ++k)
                      sum[j][k] = multiply_add(in[j * X::sample + t][X::groupwise ? k : 0], w.at[k], sum[j][k]);
                }
              }
          }

          const int out_channel = group * g.out_channels + channel, count = X::groupwise ? lanes : g.out_channels - channel;
          T* to =
              y + n * g.out.n + out_channel * g.out.c + int64_t((column0 + column) * columns.spread + columns.offset) * g.out.w;
#pragma unroll
          for (int j = 0; j < strip; ++j) {
            const int row = row0 + first_row + j;
            if (first_row + j >= g.tile_rows || row >= rows.grid) break;
            Pack<T, lanes> out;
#pragma unroll
            for (int k = 0; k < lanes; ++k) {
              C value = sum[j][k];
              if (bias && k < count) value += widen(bias[out_channel + k]);
              narrow(activate(value, g.relu), out.at[k]);
            }
            T* target = to + int64_t(row * rows.spread + rows.offset) * g.out.h;
            if (g.packs) {
              store_pack(target, out);
            } else {
#pragma unroll
              for (int k = 0; k < lanes; ++k)
                if (k < count) target[k * g.out.c] = out.at[k];
            }
          }
        }
      }
    __syncthreads();  // the next tile refills shared memory
  }
}

// ---- the shape of a tile ----

int most_taps(const Phases& phases) {
  int most = 0;
  for (int i = 0; i < phases.count; ++i) most = phases.at[i].taps > most ? phases.at[i].taps : most;
  return most;
}

int up(int64_t count, int64_t multiple) { return int((count + multiple - 1) / multiple * multiple); }
int tiles(int64_t count, int64_t each) { return int((count + each - 1) / each); }

// Everything but what depends on the addresses.
template <class T>
DirectGather gather_of(const ConvProblem& p, Primitive primitive) {
  DirectGather g{};
  static_cast<PhasedGather&>(g) = phased_gather(p, primitive, lanes_of<T>);
  if (g.out_channels == 1) g.out_padded = 1;
  // In channels_last an image of one row is as well one of one column: then strips run along it.
  if (p.layout == Layout::channels_last && p.h == 1 && p.p == 1 && p.r == 1 && p.stride_h == 1) {
    std::swap(g.rows, g.columns);
    std::swap(g.in.h, g.in.w);
    std::swap(g.out.h, g.out.w);
    std::swap(g.in_rows, g.in_columns);
    g.kernel_columns = 1;
  }
  return g;
}

// A tile that fits in shared memory; false if there is none.
template <class T>
bool shape(DirectGather& g, Layout layout, bool groupwise, int strip, const void* x) {
  const bool last = layout == Layout::channels_last;
  const int grid_rows = most_grid(g.rows), grid_columns = most_grid(g.columns);
  constexpr int line = 128 / int(sizeof(T));
  g.units = groupwise ? (g.groups < line ? g.groups : line) : 1;
  g.tile_rows = up(grid_rows < 16 ? grid_rows : 16, strip);
  g.tile_columns = grid_columns < (groupwise ? 16 : 64) ? grid_columns : groupwise ? 16 : 64;
  const auto measure = [&] {
    // Runs that any group may begin; what is read beyond the last tile is zero.
    const int64_t extent = !last                 ? g.in_columns
                           : g.units >= g.groups ? g.groups * g.in_channels
                                                 : greatest_common_divisor(g.units * g.in_channels, g.groups * g.in_channels);
    g.source = rectangle_of<T>(layout, g.units * g.in_channels, (g.tile_rows - 1) * g.rows.sample + g.rows.reach,
                               (g.tile_columns - 1) * g.columns.sample + g.columns.reach,
                               granule_of<T>(last && !groupwise ? 4 : 16, extent, {x}), groupwise);
    return g.source.elements * int64_t(sizeof(T));
  };
  const auto halve = [&](int& count, int multiple) {
    if (count <= multiple) return false;
    count = up((count + 1) / 2, multiple);
    return true;
  };
  while (measure() > wanted_shared)
    if (!halve(g.tile_rows, strip) && !(g.tile_columns > 8 && halve(g.tile_columns, 1)) &&
        !(groupwise && halve(g.units, lanes_of<T>)))
      break;
  if (measure() > most_shared) return false;
  // More groups while threads would idle, or while a pixel of channels_last fills no memory transaction.
  while (!groupwise && g.units < g.groups) {
    const int before = g.units;
    const int64_t items = int64_t(g.units) * tiles(g.out_channels, lanes_of<T>) * g.tile_columns * (g.tile_rows / strip);
    if (items >= threads_a_block && (!last || g.units * g.in_channels * int64_t(sizeof(T)) >= 64)) break;
    g.units = 2 * before < g.groups ? 2 * before : g.groups;
    if (measure() <= wanted_shared) continue;
    g.units = before;
    break;
  }
  measure();
  g.row_tiles = tiles(grid_rows, g.tile_rows);
  g.column_tiles = tiles(grid_columns, g.tile_columns);
  g.unit_tiles = tiles(g.groups, g.units);
  return true;
}

// ---- launches ----

template <class T, class X>
bool launch_walk(DirectGather g, const ConvProblem& p, const char* name, const T* x, const Compute<T>* weights, const T* bias,
                 T* y, void* stream) {
  if (!shape<T>(g, p.layout, X::groupwise, X::strip, x)) return false;
  const bool together = p.layout == Layout::channels_last && (X::groupwise || g.out_channels % X::lanes == 0);
  g.packs = together && reinterpret_cast<uintptr_t>(y) % (X::lanes * sizeof(T)) == 0;
  launch(name, direct_gather<T, X>, dim3(blocks_for(g.batch * g.unit_tiles * g.row_tiles * g.column_tiles, 1)),
         dim3(threads_a_block), size_t(g.source.elements) * sizeof(T), stream, g, x, weights, bias, y);
  return true;
}

template <class T, int lanes, bool groupwise>
bool launch_lanes(const DirectGather& g, const ConvProblem& p, const char* name, const T* x, const Compute<T>* weights,
                  const T* bias, T* y, void* stream) {
  if constexpr (sizeof(T) < 8) {
    int step = 1;
    for (int i = 0; i < g.rows.count; ++i) step = g.rows.at[i].taps > 1 && g.rows.at[i].step != 1 ? 0 : step;
    const int taps = step ? most_taps(g.rows) : 1;
    if (taps > 3 && g.rows.sample == 1 && launch_walk<T, Walk<lanes, groupwise, 5, 1>>(g, p, name, x, weights, bias, y, stream))
      return true;
    if (taps > 1 && g.rows.sample == 1 && launch_walk<T, Walk<lanes, groupwise, 3, 1>>(g, p, name, x, weights, bias, y, stream))
      return true;
    if (taps > 1 && g.rows.sample == 2 && launch_walk<T, Walk<lanes, groupwise, 3, 2>>(g, p, name, x, weights, bias, y, stream))
      return true;
  }
  return launch_walk<T, Walk<lanes, groupwise, 1, 0>>(g, p, name, x, weights, bias, y, stream);
}

template <class T>
void run_gather(const ConvProblem& p, const ConvArgs& args, Primitive primitive, const char* name) {
  using C = Compute<T>;
  const bool forward = primitive == Primitive::forward;
  const DirectGather g = gather_of<T>(p, primitive);
  const T *x = static_cast<const T*>(forward ? args.x : args.gy), *bias = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(forward ? args.y : args.gx);
  constexpr int lanes = lanes_of<T>;
  const bool depthwise = g.in_channels == 1 && g.out_channels == 1;
  const bool groupwise = depthwise && p.layout == Layout::channels_last && g.groups % lanes == 0 &&
                         reinterpret_cast<uintptr_t>(x) % (lanes * sizeof(T)) == 0;
  const auto pack = [&](int groups, int in, int out, int out_padded) {
    return packed_weights<C>(static_cast<const T*>(args.w),
                             {weight_strides(p), !forward && !depthwise, groups, g.taps, in, in, out, out_padded},
                             args.workspace, args.stream);
  };
  if (groupwise && launch_lanes<T, lanes, true>(g, p, name, x, pack(1, 1, g.groups, g.groups), bias, y, args.stream)) return;
  const C* packed = pack(g.groups, g.in_channels, g.out_channels, g.out_padded);
  if (g.out_channels == 1)
    launch_lanes<T, 1, false>(g, p, name, x, packed, bias, y, args.stream);
  else
    launch_lanes<T, lanes, false>(g, p, name, x, packed, bias, y, args.stream);
}

// ---- predicates ----

bool is_depthwise(const ConvProblem& p) { return p.groups == p.c; }

// Whether even the least tile of the kernel for any stride fits, and every phase has its place.
template <class T>
bool fits(const ConvProblem& p, Primitive primitive) {
  if (!phases_fit(p, primitive)) return false;
  DirectGather g = gather_of<T>(p, primitive);
  return shape<T>(g, p.layout, false, 1, nullptr);
}

template <Primitive primitive>
bool depthwise_applies(const ConvProblem& p) {
  if (!gather_fits(p) || !is_depthwise(p)) return false;
  FASTCONV_FOR_DTYPE(p.dtype, fits<T>(p, primitive))
}

template <Primitive primitive>
bool direct_applies(const ConvProblem& p) {
  if (!gather_fits(p) || is_depthwise(p) || (primitive == Primitive::forward ? p.c : p.k) / p.groups > 32) return false;
  FASTCONV_FOR_DTYPE(p.dtype, fits<T>(p, primitive))
}

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int) {
  const int64_t out = (primitive == Primitive::forward ? p.k : p.c) / p.groups,
                in = (primitive == Primitive::forward ? p.c : p.k);
  return in * p.r * p.s * up(out, 4) * (p.dtype == Dtype::float64 ? 8 : 4);
}

bool always(const ConvProblem&) { return true; }

// A product on tensor cores is 10 times as fast as here, without them it is as fast; but it is padded to whole tiles of 32
// input and 64 output channels, or of 8 and 64.
template <Primitive primitive>
bool direct_preferred(const ConvProblem& p) {
  const bool tensor_core =
      p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16 || (p.dtype == Dtype::float32 && p.allow_tf32);
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const int64_t in = primitive == Primitive::forward ? c : k, out = primitive == Primitive::forward ? k : c;
  const double padded = double(up(in, tensor_core ? 32 : 8)) * up(out, 64) / (double(in) * double(out));
  return padded > (tensor_core ? 10 : 1.5);
}

template <Primitive primitive>
void run_depthwise(const ConvProblem& p, const ConvArgs& args) {
  constexpr const char* name = primitive == Primitive::forward ? "conv_forward_depthwise" : "conv_input_gradient_depthwise";
  FASTCONV_FOR_DTYPE(p.dtype, run_gather<T>(p, args, primitive, name))
}
template <Primitive primitive>
void run_direct(const ConvProblem& p, const ConvArgs& args) {
  constexpr const char* name = primitive == Primitive::forward ? "conv_forward_direct" : "conv_input_gradient_direct";
  FASTCONV_FOR_DTYPE(p.dtype, run_gather<T>(p, args, primitive, name))
}

template <Primitive primitive>
constexpr ConvAlgorithm depthwise = {
    "depthwise", primitive, depthwise_applies<primitive>, always, workspace<primitive>, run_depthwise<primitive>};
template <Primitive primitive>
constexpr ConvAlgorithm direct = {
    "direct", primitive, direct_applies<primitive>, direct_preferred<primitive>, workspace<primitive>, run_direct<primitive>};

}  // namespace

const ConvAlgorithm depthwise_forward = depthwise<Primitive::forward>;
const ConvAlgorithm depthwise_input_gradient = depthwise<Primitive::input_gradient>;
const ConvAlgorithm direct_forward = direct<Primitive::forward>;
const ConvAlgorithm direct_input_gradient = direct<Primitive::input_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
