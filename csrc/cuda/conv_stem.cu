// The first layer of a network on tensor cores: images of at most four channels, forward and weight gradient.
//
// Alone, 3 channels fill a tenth of a chunk of the product's depth. Here a whole row of the kernel is one tap: x is copied into
// channels_last with the channels padded to four and the columns' padding made real, so that what a position reads for a kernel
// row lies densely, S * 4 values, and the product runs over R taps of S * 4 channels.
#include "conv.h"
#include "conv_tensor_core.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

// How a problem becomes a product.
struct Stem {
  int width;          // channels of a pixel of the copy: with it, every position begins at a multiple of 16 bytes
  int depth, padded;  // values of a kernel row, and what is read of them: whole accesses
  int64_t columns;    // of the copy
};

template <class T>
Stem stem_of(const ConvProblem& p) {
  constexpr int pack = Element<T>::pack;
  const auto up = [](int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; };
  const int64_t width = p.stride_w * 4 % pack ? pack : 4, depth = p.s * width, padded = up(depth, pack);
  return {int(width), int(depth), int(padded), up((p.q - 1) * p.stride_w + (padded + width - 1) / width, pack / 4)};
}

// One thread copies a pixel.
template <class T, int width>
__global__ void __launch_bounds__(256) to_padded_columns(const T* x, T* out, Strides from, int64_t pixels, int rows,
                                                         int columns, int channels, int in_columns, int shift) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < pixels; i += step) {
    const int column = int(i % columns) - shift, row = int(i / columns % rows);
    const T* source = x + i / columns / rows * from.n + row * from.h + column * from.w;
    Pack<T, width> pixel{};
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (c < channels && column >= 0 && column < in_columns) pixel.at[c] = source[c * from.c];
    store_pack(out + i * width, pixel);
  }
}

// Weights as [kernel row][column, channel][out channel], padded with zeros.
template <class T>
__global__ void __launch_bounds__(256) pack_rows(const T* w, T* packed, WeightStrides strides, int rows, int columns,
                                                 int channels, int width, int depth, int out, int out_padded) {
  const int count = rows * depth * out_padded, step = int(gridDim.x * blockDim.x);
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += step) {
    const int k = i % out_padded, within = i / out_padded % depth, row = i / out_padded / depth;
    const int column = within / width, c = within % width;
    T value{};
    if (k < out && column < columns && c < channels)
      value = w[k * strides.k + c * strides.c + int64_t(row * columns + column) * strides.tap];
    packed[i] = value;
  }
}

// The sums of a kernel row to their places in gw, the slices added in their order.
template <class T>
__global__ void __launch_bounds__(256) reduce_rows(const float* partial, T* gw, WeightStrides strides, int slices, int rows,
                                                   int columns, int channels, int width, int k) {
  const int depth = columns * width, count = rows * k * depth, step = int(gridDim.x * blockDim.x);
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += step) {
    const int within = i % depth, output = i / depth % k, row = i / depth / k, column = within / width, c = within % width;
    if (c >= channels) continue;
    float sum = 0;
    for (int slice = 0; slice < slices; ++slice) sum += partial[int64_t(slice) * count + i];
    narrow(sum, gw[output * strides.k + c * strides.c + int64_t(row * columns + column) * strides.tap]);
  }
}

template <class T>
Gather gather_of(const ConvProblem& p, const Stem& stem) {
  Gather g = forward_gather(p, Element<T>::pack);
  g.columns = {int(p.q), int(stem.columns), int(p.stride_w), 0, 1, 1, 0, 1, 1, 0};
  g.in_channels = stem.depth;
  g.kernel_columns = 1;
  g.taps = int(p.r);
  g.in = {p.h * stem.columns * stem.width, 1, stem.columns * stem.width, stem.width};
  return g;
}

template <class T>
int64_t copy_bytes(const ConvProblem& p, const Stem& stem) {
  return aligned(p.n * p.h * stem.columns * stem.width * int64_t(sizeof(T)));
}

template <class T>
const T* padded_x(const ConvProblem& p, const Stem& stem, const T* x, void* workspace, void* stream) {
  T* copy = static_cast<T*>(workspace);
  const int64_t pixels = p.n * p.h * stem.columns;
  const auto kernel = stem.width == 4 ? to_padded_columns<T, 4> : to_padded_columns<T, Element<T>::pack>;
  launch("to_padded_columns", kernel, dim3(blocks_for(pixels, 256)), dim3(256), 0, stream, x, copy,
         strides_of(p.layout, p.c, p.h, p.w), pixels, int(p.h), int(stem.columns), int(p.c), int(p.w), int(p.pad_left));
  return copy;
}

template <class T>
int64_t weights_bytes(const Gather& g, const Stem& stem) {
  return aligned(packed_count(g, stem.padded) * int64_t(sizeof(T)));
}

template <class T>
void run_forward_of(const ConvProblem& p, const ConvArgs& args) {
  const Stem stem = stem_of<T>(p);
  const Gather g = gather_of<T>(p, stem);
  T* packed = static_cast<T*>(args.workspace);
  launch("pack_rows", pack_rows<T>, dim3(blocks_for(packed_count(g, stem.padded), 256)), dim3(256), 0, args.stream,
         static_cast<const T*>(args.w), packed, weight_strides(p), int(p.r), int(p.s), int(p.c), stem.width, stem.padded,
         g.out_channels, g.out_padded);
  const T* x = padded_x(p, stem, static_cast<const T*>(args.x), static_cast<char*>(args.workspace) + weights_bytes<T>(g, stem),
                        args.stream);
  tensor_core_gather<T>("conv_forward_stem", g, stem.padded, x, packed, static_cast<const T*>(args.b), static_cast<T*>(args.y),
                        args.threads, args.stream);
}

Slices slices_of(const ConvProblem& p, int depth, int multiprocessors) {
  return tensor_core_slices(p.n * p.p * p.q, p.k, depth, p.r, multiprocessors);
}

// Sums of all slices, then the bias's.
int64_t partial_count(const ConvProblem& p, const Stem& stem, const Slices& slices) {
  return slices.count * (p.r * p.k * stem.depth + p.k);
}

template <class T>
void run_weight_of(const ConvProblem& p, const ConvArgs& args) {
  const Stem stem = stem_of<T>(p);
  const Operand<T> out = y_of<T>(p);
  const Slices slices = slices_of(p, stem.depth, args.threads);
  Gather g = gather_of<T>(p, stem);
  g.out = out.strides();
  float* weights = static_cast<float*>(args.workspace);
  const Partials<float> partials = {weights, args.gb ? weights + slices.count * p.r * p.k * stem.depth : nullptr};
  char* workspace = static_cast<char*>(args.workspace) + aligned(partial_count(p, stem, slices) * int64_t(sizeof(float)));
  const T* x = padded_x(p, stem, static_cast<const T*>(args.x), workspace, args.stream);
  const T* gy = out.ready(args.gy, workspace + copy_bytes<T>(p, stem), args.stream);
  tensor_core_weight<T>("conv_weight_gradient_stem", g, stem.padded, int(out.padded()), slices, gy, x, partials, args.stream);
  launch("reduce_rows", reduce_rows<T>, dim3(blocks_for(p.r * p.k * stem.depth, 256)), dim3(256), 0, args.stream, weights,
         static_cast<T*>(args.gw), weight_strides(p), slices.count, int(p.r), int(p.s), int(p.c), stem.width, int(p.k));
  if (args.gb) reduce_bias(p, slices, partials, static_cast<T*>(args.gb), args.stream);
}

bool applies(const ConvProblem& p) {
  if (p.groups != 1 || p.c > 4 || p.s < 2 || p.dilation_w != 1 || !tensor_core_applies(p)) return false;
  // The copy, and the padded weights, inside 32 bits.
  const double columns = double(p.q) * p.stride_w + p.s + 8;
  return columns * p.h * 8 < double(1 << 30) && double(p.r) * (p.s + 2) * 8 * (p.k + 8.0) < double(1 << 30);
}
bool always(const ConvProblem&) { return true; }

int64_t workspace_forward(const ConvProblem& p, int) {
  return with_type(p, [&](auto type) {
    using T = decltype(type);
    const Stem stem = stem_of<T>(p);
    return weights_bytes<T>(gather_of<T>(p, stem), stem) + copy_bytes<T>(p, stem);
  });
}
int64_t workspace_weight(const ConvProblem& p, int multiprocessors) {
  return with_type(p, [&](auto type) {
    using T = decltype(type);
    const Stem stem = stem_of<T>(p);
    const Slices slices = slices_of(p, stem.depth, multiprocessors);
    return aligned(partial_count(p, stem, slices) * int64_t(sizeof(float))) + copy_bytes<T>(p, stem) + y_of<T>(p).copy_bytes();
  });
}
void run_forward(const ConvProblem& p, const ConvArgs& args) {
  with_type(p, [&](auto type) { run_forward_of<decltype(type)>(p, args); });
}
void run_weight(const ConvProblem& p, const ConvArgs& args) {
  with_type(p, [&](auto type) { run_weight_of<decltype(type)>(p, args); });
}

}  // namespace

const ConvAlgorithm stem_forward = {"stem", Primitive::forward, applies, always, workspace_forward, run_forward};
const ConvAlgorithm stem_weight_gradient = {"stem", Primitive::weight_gradient, applies, always, workspace_weight, run_weight};

}  // namespace fastconv::FASTCONV_BACKEND
