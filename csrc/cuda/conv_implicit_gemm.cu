// Convolution as a matrix product without tensor cores: strict float32 and float64, both layouts, every stride, dilation and
// group.
//
// A block computes a tile of output positions x output channels. It walks over taps and, within a tap, over chunks of input
// channels; the inputs of a chunk go to shared memory by cp.async, three chunks in flight, zeros where a tap lies in the
// padding. Each thread accumulates its positions x channels in registers. A sum always runs in the same order, so its bits
// depend on neither batch nor grid.
#include "conv_implicit_gemm.cuh"

#include "conv.h"
#include "conv_weight.cuh"
#include "pipeline.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

// Sizes of a block's tile and of a thread's part of it.
template <class T>
struct Tiles;
template <>
struct Tiles<float> {
  static constexpr int rows = 128, columns = 64, depth = 8, thread_rows = 8, thread_columns = 4, stages = 3;
};
template <>
struct Tiles<double> {
  static constexpr int rows = 64, columns = 64, depth = 8, thread_rows = 4, thread_columns = 4, stages = 3;
};

template <class T>
struct Traits : Tiles<T> {
  using Base = Tiles<T>;
  static constexpr int across = Base::columns / Base::thread_columns;  // threads along the tile's columns
  static constexpr int threads = across * (Base::rows / Base::thread_rows);
  static constexpr int pack = 16 / int(sizeof(T));
  // Rows of shared memory are padded by one access, so that a chunk written along its depth does not hit one bank.
  static constexpr int pitch_rows = Base::rows + pack, pitch_columns = Base::columns + pack;
  static constexpr int stage_a = Base::depth * pitch_rows, stage = stage_a + Base::depth * pitch_columns;
  static constexpr size_t shared_bytes = sizeof(T) * stage * Base::stages;

  static_assert(threads == 256);
  static_assert(threads % Base::rows == 0 && threads % Base::columns == 0 && threads % Base::depth == 0);
  static_assert(Base::rows % (threads / Base::depth) == 0 && Base::columns % (threads / Base::depth) == 0);
  static_assert(Base::thread_rows % pack == 0 && Base::thread_columns % pack == 0);
  static_assert(shared_bytes <= 48 << 10);
};

// The product of a stage: acc[i][j] += a[.][i] * b[.][j], both from shared memory, 16 bytes an access.
template <class T>
FASTCONV_DEVICE void multiply_stage(T (&acc)[Traits<T>::thread_rows][Traits<T>::thread_columns], const T* a, const T* b) {
  using X = Traits<T>;
#pragma unroll
  for (int k = 0; k < X::depth; ++k) {
    T left[X::thread_rows], right[X::thread_columns];
#pragma unroll
    for (int i = 0; i < X::thread_rows; i += X::pack) {
      const auto values = load_pack<X::pack>(a + k * X::pitch_rows + i);
#pragma unroll
      for (int v = 0; v < X::pack; ++v) left[i + v] = values.at[v];
    }
#pragma unroll
    for (int j = 0; j < X::thread_columns; j += X::pack) {
      const auto values = load_pack<X::pack>(b + k * X::pitch_columns + j);
#pragma unroll
      for (int v = 0; v < X::pack; ++v) right[j + v] = values.at[v];
    }
#pragma unroll
    for (int i = 0; i < X::thread_rows; ++i)
#pragma unroll
      for (int j = 0; j < X::thread_columns; ++j) acc[i][j] = multiply_add(left[i], right[j], acc[i][j]);
  }
}

// ---- forward and input gradient ----

// `last`: neighbouring channels of the input are neighbours in memory; else neighbouring columns are. Threads load along that
// axis.
template <class T, bool last>
__global__ void __launch_bounds__(Traits<T>::threads, 2)
    gather_gemm(Gather g, int64_t row_tiles, const T* x, const T* weights, const T* bias, T* y) {
  using X = Traits<T>;
  FASTCONV_DYNAMIC_SHARED(T, shared);
  constexpr int loads = X::rows * X::depth / X::threads;  // elements of a chunk of the input a thread copies
  constexpr int own = last ? loads : 1;                   // positions they belong to
  const int tid = int(threadIdx.x);
  const int column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  const int64_t tiles = row_tiles * column_tiles * g.groups;
  const int64_t steps = int64_t(g.rows.taps) * g.columns.taps * ((g.in_channels + X::depth - 1) / X::depth);

  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int column0 = int(tile % column_tiles) * X::columns;
    const int64_t row0 = tile / column_tiles % row_tiles * X::rows;
    const int group = int(tile / column_tiles / row_tiles);

    Position at[own];
#pragma unroll
    for (int i = 0; i < own; ++i)
      at[i] = position_of(g, row0 + (last ? tid / X::depth + i * (X::threads / X::depth) : tid % X::rows));

    TapWalk walk;
    int64_t from[own];
    const auto aim = [&] {
#pragma unroll
      for (int i = 0; i < own; ++i) from[i] = input_of(g, at[i], walk.row, walk.column);
    };
    aim();
    const auto load = [&](T* a, T* b) {
#pragma unroll
      for (int i = 0; i < loads; ++i) {
        const int k = last ? tid % X::depth : tid / X::rows + i * (X::threads / X::rows);
        const int row = last ? tid / X::depth + i * (X::threads / X::depth) : tid % X::rows;
        const int channel = walk.channel + k;
        const int64_t pixel = from[last ? i : 0];
        const bool inside = pixel >= 0 && channel < g.in_channels;
        copy_async<sizeof(T)>(a + k * X::pitch_rows + row, inside ? x + pixel + (group * g.in_channels + channel) * g.in.c : x,
                              inside ? int(sizeof(T)) : 0);
      }
      const T* panel = weights + (int64_t(group) * g.taps + walk.tap(g)) * g.in_channels * g.out_padded;
#pragma unroll
      for (int i = tid * X::pack; i < X::depth * X::columns; i += X::threads * X::pack) {
        const int k = i / X::columns, column = i % X::columns, channel = walk.channel + k;
        const bool inside = channel < g.in_channels && column0 + column < g.out_padded;
        copy_async<16>(b + k * X::pitch_columns + column,
                       inside ? panel + int64_t(channel) * g.out_padded + column0 + column : weights, inside ? 16 : 0);
      }
      if (walk.next(g, g.in_channels, X::depth)) aim();
    };

    T acc[X::thread_rows][X::thread_columns] = {};
    const int row = tid / X::across * X::thread_rows, column = tid % X::across * X::thread_columns;
    pipeline<X>(shared, steps, load, [&](const T* a, const T* b) { multiply_stage<T>(acc, a + row, b + column); });

#pragma unroll
    for (int i = 0; i < X::thread_rows; ++i) {
      const Position position = position_of(g, row0 + row + i);
      if (position.image < 0) continue;
      T* out = y + output_of(g, position) + int64_t(group) * g.out_channels * g.out.c;
#pragma unroll
      for (int j = 0; j < X::thread_columns; ++j) {
        const int channel = column0 + column + j;
        if (channel < g.out_channels)
          out[channel * g.out.c] = activate(bias ? acc[i][j] + bias[group * g.out_channels + channel] : acc[i][j], g.relu);
      }
    }
  }
}

// ---- weight gradient: rows are output channels, columns input channels of one tap, the sum runs over pixels ----

template <class T, bool last>
__global__ void __launch_bounds__(Traits<T>::threads, 2)
    weight_gemm(Gather g, Slices slices, int64_t blocks, const T* gy, const T* x, Partials<T> partials) {
  using X = Traits<T>;
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

    // A thread copies channels of one pixel of a chunk: neighbouring threads along the axis that is contiguous in memory.
    constexpr int spread = X::threads / X::depth;  // channels copied at a time
    const int k = last ? tid / spread : tid % X::depth, own_channel = last ? tid % spread : tid / X::depth;
    const auto copy = [&](T* target, int width, const T* source, int channel0, int channels, int64_t channel_step,
                          int64_t pixel) {
#pragma unroll
      for (int channel = own_channel; channel < width; channel += spread) {
        const bool inside = pixel >= 0 && channel0 + channel < channels;
        copy_async<sizeof(T)>(target + channel,
                              inside ? source + pixel + (group * channels + channel0 + channel) * channel_step : source,
                              inside ? int(sizeof(T)) : 0);
      }
    };
    const PositionStep stride = step_of(g, X::depth);
    int64_t left = end - begin - k;  // pixels of the slice from this thread's on
    Position at = position_of(g, begin + k);
    const auto load = [&](T* a, T* b) {
      copy(a + k * X::pitch_rows, X::rows, gy, row0, g.out_channels, g.out.c, left > 0 ? output_of(g, at) : -1);
      copy(b + k * X::pitch_columns, X::columns, x, column0, g.in_channels, g.in.c,
           left > 0 ? input_of(g, at, tap / g.kernel_columns, tap % g.kernel_columns) : -1);
      left -= X::depth;
      advance(g, stride, at);
    };

    T acc[X::thread_rows][X::thread_columns] = {};
    T bias_sum = 0;
    const bool sums_bias = partials.bias && tap == 0 && column0 == 0 && tid < X::rows;
    const int row = tid / X::across * X::thread_rows, column = tid % X::across * X::thread_columns;
    pipeline<X>(shared, (end - begin + X::depth - 1) / X::depth, load, [&](const T* a, const T* b) {
      multiply_stage<T>(acc, a + row, b + column);
      if (sums_bias)
        for (int k = 0; k < X::depth; ++k) bias_sum += a[k * X::pitch_rows + tid];
    });

    T* out = partials.weights + ((slice * g.groups + group) * g.taps + tap) * g.out_channels * g.in_channels;
#pragma unroll
    for (int i = 0; i < X::thread_rows; ++i)
#pragma unroll
      for (int j = 0; j < X::thread_columns; ++j)
        if (row0 + row + i < g.out_channels && column0 + column + j < g.in_channels)
          out[int64_t(row0 + row + i) * g.in_channels + column0 + column + j] = acc[i][j];
    if (sums_bias && row0 + tid < g.out_channels)
      partials.bias[(slice * g.groups + group) * g.out_channels + row0 + tid] = bias_sum;
  }
}

// ---- launches ----

template <class T>
Gather gather_of(const ConvProblem& p, Primitive primitive, int64_t phase_h, int64_t phase_w) {
  return primitive == Primitive::forward ? forward_gather(p, Traits<T>::pack)
                                         : phase_gather(p, phase_h, phase_w, Traits<T>::pack);
}

template <class T>
int64_t gather_workspace(const ConvProblem& p, Primitive primitive) {
  const Gather g = gather_of<T>(p, primitive, 0, 0);
  return packed_count(g, g.in_channels) * int64_t(sizeof(T));
}

}  // namespace

template <class T>
void gemm_gather(const char* name, const Gather& g, Layout layout, const T* x, const T* packed, const T* bias, T* y,
                 void* stream) {
  using X = Traits<T>;
  if (g.positions() == 0) return;
  const int64_t row_tiles = (g.positions() + X::rows - 1) / X::rows,
                column_tiles = (g.out_channels + X::columns - 1) / X::columns;
  const auto kernel = layout == Layout::channels_last ? gather_gemm<T, true> : gather_gemm<T, false>;
  launch(name, kernel, dim3(blocks_for(row_tiles * column_tiles * g.groups, 1)), dim3(X::threads), X::shared_bytes, stream, g,
         row_tiles, x, packed, bias, y);
}
template void gemm_gather(const char*, const Gather&, Layout, const float*, const float*, const float*, float*, void*);
template void gemm_gather(const char*, const Gather&, Layout, const double*, const double*, const double*, double*, void*);

namespace {

template <class T>
void run_gather(const ConvProblem& p, const ConvArgs& args, Primitive primitive) {
  const bool forward = primitive == Primitive::forward;
  const Gather any = gather_of<T>(p, primitive, 0, 0);
  const T* packed = packed_weights<T>(static_cast<const T*>(args.w), packing_of(p, any, !forward, any.in_channels),
                                      args.workspace, args.stream);
  const int64_t phases_h = forward ? 1 : p.stride_h, phases_w = forward ? 1 : p.stride_w;
  for (int64_t h = 0; h < phases_h; ++h)
    for (int64_t w = 0; w < phases_w; ++w)
      gemm_gather(forward ? "conv_forward_implicit_gemm" : "conv_input_gradient_implicit_gemm",
                  gather_of<T>(p, primitive, h, w), p.layout, static_cast<const T*>(forward ? args.x : args.gy), packed,
                  static_cast<const T*>(args.b), static_cast<T*>(forward ? args.y : args.gx), args.stream);
}

template <class T>
Slices weight_slices(const ConvProblem& p, int multiprocessors) {
  using X = Traits<T>;
  const int64_t rows = (p.k / p.groups + X::rows - 1) / X::rows, columns = (p.c / p.groups + X::columns - 1) / X::columns;
  return slices_for(p.n * p.p * p.q, rows * columns * p.r * p.s * p.groups, multiprocessors, 256);
}

template <class T>
void run_weight(const ConvProblem& p, const ConvArgs& args) {
  using X = Traits<T>;
  const Slices slices = weight_slices<T>(p, args.threads);
  const Gather g = forward_gather(p, 1);
  const Partials<T> partials = partials_in<T>(p, slices, args.workspace, args.gb != nullptr);
  const int64_t rows = (g.out_channels + X::rows - 1) / X::rows, columns = (g.in_channels + X::columns - 1) / X::columns;
  const int64_t blocks = rows * columns * p.r * p.s * p.groups * slices.count;
  const auto kernel = p.layout == Layout::channels_last ? weight_gemm<T, true> : weight_gemm<T, false>;
  launch("conv_weight_gradient_implicit_gemm", kernel, dim3(blocks_for(blocks, 1)), dim3(X::threads), X::shared_bytes,
         args.stream, g, slices, blocks, static_cast<const T*>(args.gy), static_cast<const T*>(args.x), partials);
  finish_weight_gradient<T>(p, slices, partials, static_cast<T*>(args.gw), static_cast<T*>(args.gb), args.stream);
}

bool is_double(const ConvProblem& p) { return p.dtype == Dtype::float64; }

bool applies(const ConvProblem& p) { return (p.dtype == Dtype::float32 || is_double(p)) && gather_fits(p); }
bool always(const ConvProblem&) { return true; }

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int multiprocessors) {
  if constexpr (primitive == Primitive::weight_gradient)
    return is_double(p) ? partial_bytes<double>(p, weight_slices<double>(p, multiprocessors))
                        : partial_bytes<float>(p, weight_slices<float>(p, multiprocessors));
  return is_double(p) ? gather_workspace<double>(p, primitive) : gather_workspace<float>(p, primitive);
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  if constexpr (primitive == Primitive::weight_gradient)
    is_double(p) ? run_weight<double>(p, args) : run_weight<float>(p, args);
  else
    is_double(p) ? run_gather<double>(p, args, primitive) : run_gather<float>(p, args, primitive);
}

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {"implicit_gemm", primitive, applies, always, workspace<primitive>, run<primitive>};

}  // namespace

const ConvAlgorithm implicit_gemm_forward = algorithm<Primitive::forward>;
const ConvAlgorithm implicit_gemm_input_gradient = algorithm<Primitive::input_gradient>;
const ConvAlgorithm implicit_gemm_weight_gradient = algorithm<Primitive::weight_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
