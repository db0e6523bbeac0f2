// Forward and input gradient of 3x3 kernels in float32 by Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//
// Three kernels: windows of 6 x 6 inputs are transformed, their 36 parts multiplied over the channels by implicit_gemm, as the
// groups of a 1x1 convolution, and the products transformed to 4 x 4 outputs. A few images at a time, so that what lies between
// the kernels stays in the L2.
//
// The matrices are those of the points 0, +-a, +-b and infinity (Winograd 1980; Lavin and Gray, arXiv 1509.09308); a = 5/8 and
// b = 3/2 round less than the usual 1 and 2 (Barabasz et al., arXiv 1803.10986, search such points).
//
// An infinity or NaN spoils all outputs of its tile, and numbers near the greatest overflow. Outputs that are not finite are
// computed again by plain sums.
#include "conv.h"
#include "conv_implicit_gemm.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int taps = 3, outputs = 4, window = 6;  // of a kernel, a tile of outputs, a tile of inputs, along an axis
constexpr int products = window * window;
constexpr int64_t wanted_workspace =
    256 << 10;                       // a multiprocessor, of transformed inputs and products: less than its part of the L2
constexpr int channel_multiple = 4;  // implicit_gemm's weights are read 16 bytes at a time

constexpr float a = 5.0f / 8, b = 3.0f / 2, a2 = a * a, b2 = b * b;
// The rows of G are powers of the points over the derivative of the polynomial with all points as roots.
constexpr float over_0 = float(1.0 / (25.0 / 64 * 9.0 / 4)), over_a = float(1.0 / (2 * 25.0 / 64 * (25.0 / 64 - 9.0 / 4))),
                over_b = float(1.0 / (2 * 9.0 / 4 * (9.0 / 4 - 25.0 / 64)));

// ---- the matrices, applied along one axis ----

// B^T d
FASTCONV_DEVICE void transform(const float (&d)[window], float (&r)[window]) {
  const float even_a = multiply_add(-b2, d[2], d[4]), odd_a = multiply_add(-b2, d[1], d[3]);
  const float even_b = multiply_add(-a2, d[2], d[4]), odd_b = multiply_add(-a2, d[1], d[3]);
  r[0] = multiply_add(a2 * b2, d[0], multiply_add(-(a2 + b2), d[2], d[4]));
  r[1] = multiply_add(a, odd_a, even_a), r[2] = multiply_add(-a, odd_a, even_a);
  r[3] = multiply_add(b, odd_b, even_b), r[4] = multiply_add(-b, odd_b, even_b);
  r[5] = multiply_add(a2 * b2, d[1], multiply_add(-(a2 + b2), d[3], d[5]));
}

// G g
FASTCONV_DEVICE void transform(const float (&g)[taps], float (&r)[window]) {
  const float even_a = multiply_add(over_a * a2, g[2], over_a * g[0]), odd_a = over_a * a * g[1];
  const float even_b = multiply_add(over_b * b2, g[2], over_b * g[0]), odd_b = over_b * b * g[1];
  r[0] = over_0 * g[0];
  r[1] = even_a + odd_a, r[2] = even_a - odd_a;
  r[3] = even_b + odd_b, r[4] = even_b - odd_b;
  r[5] = g[2];
}

// A^T m
FASTCONV_DEVICE void transform(const float (&m)[window], float (&y)[outputs]) {
  const float sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = (m[0] + sum_a) + sum_b;
  y[1] = multiply_add(a, difference_a, b * difference_b);
  y[2] = multiply_add(a2, sum_a, b2 * sum_b);
  y[3] = multiply_add(a * a2, difference_a, multiply_add(b * b2, difference_b, m[5]));
}

// Along both axes: row(i, values) fills row i of the square, column(j, values) takes column j of the result.
template <int in, int out, class Row, class Column>
FASTCONV_DEVICE void transform_square(const Row& row, const Column& column) {
  float half[in][out];
#pragma unroll
  for (int i = 0; i < in; ++i) {
    float values[in];
    row(i, values);
    transform(values, half[i]);
  }
#pragma unroll
  for (int j = 0; j < out; ++j) {
    float values[in], result[out];
#pragma unroll
    for (int i = 0; i < in; ++i) values[i] = half[i][j];
    transform(values, result);
    column(j, result);
  }
}

// ---- the kernels ----

// A convolution of stride 1 as forward and input gradient share it. The input gradient is the convolution of gy with the
// kernels turned around.
struct Winograd {
  int in_channels, out_channels, in_rows, in_columns, out_rows, out_columns;
  int pad_top, pad_left;
  int tile_rows, tile_columns;
  Strides in, out;
  WeightStrides weights;  // of output channel, input channel and tap
  bool turned;            // the last tap first
  bool last;              // channels are contiguous, else columns are
  bool relu;

  FASTCONV_HOST_DEVICE int tiles() const { return tile_rows * tile_columns; }
  // Of transformed tiles, 36 parts of so many channels.
  FASTCONV_HOST_DEVICE Strides parts(int channels) const {
    const int64_t c = int64_t(products) * channels;
    return last ? Strides{tiles() * c, 1, tile_columns * c, c} : Strides{tiles() * c, tiles(), tile_columns, 1};
  }
  FASTCONV_DEVICE int64_t weight_of(int out, int in, int tap) const {
    return out * weights.k + in * weights.c + (turned ? taps * taps - 1 - tap : tap) * weights.tap;
  }
};

// Neighbouring threads take neighbours in memory: channels or tiles.
struct Item {
  int64_t image;
  int channel, row, column;
};
FASTCONV_DEVICE Item item_of(const Winograd& g, int64_t index, int channels) {
  const int an_image = g.tiles() * channels;
  const int64_t n = index / an_image;
  const int within = int(index - n * an_image);
  const int tile = g.last ? within / channels : within % g.tiles();
  return {n, g.last ? within % channels : within / g.tiles(), tile / g.tile_columns, tile % g.tile_columns};
}

__global__ void __launch_bounds__(256) winograd_inputs(Winograd g, int64_t count, const float* x, float* v) {
  const Strides to = g.parts(g.in_channels);
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Item at = item_of(g, i, g.in_channels);
    const int row0 = at.row * outputs - g.pad_top, column0 = at.column * outputs - g.pad_left;
    const float* image = x + at.image * g.in.n + at.channel * g.in.c;
    float* out = v + at.image * to.n + at.channel * to.c + at.row * to.h + at.column * to.w;
    transform_square<window, window>(
        [&](int r, float (&values)[window]) {
          const int row = row0 + r;
#pragma unroll
          for (int s = 0; s < window; ++s) {
            const int column = column0 + s;
            const bool inside = row >= 0 && row < g.in_rows && column >= 0 && column < g.in_columns;
            values[s] = inside ? image[row * g.in.h + column * g.in.w] : 0.0f;
          }
        },
        [&](int j, const float (&values)[window]) {
#pragma unroll
          for (int r = 0; r < window; ++r) out[(window * r + j) * g.in_channels * to.c] = values[r];
        });
  }
}

// To [part][in channel][out channel, padded with zeros].
__global__ void __launch_bounds__(256) winograd_weights(Winograd g, int out_padded, const float* w, float* u) {
  const int64_t count = int64_t(g.in_channels) * out_padded, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int in = int(i / out_padded), out = int(i - int64_t(in) * out_padded);
    transform_square<taps, window>(
        [&](int r, float (&values)[taps]) {
#pragma unroll
          for (int s = 0; s < taps; ++s) values[s] = out < g.out_channels ? w[g.weight_of(out, in, taps * r + s)] : 0.0f;
        },
        [&](int j, const float (&values)[window]) {
#pragma unroll
          for (int r = 0; r < window; ++r) u[(window * r + j) * count + i] = values[r];
        });
  }
}

// One output by a plain sum.
FASTCONV_DEVICE float plain_sum(const Winograd& g, const float* image, const float* w, int out_channel, int row, int column) {
  float sum = 0;
#pragma unroll 1
  for (int c = 0; c < g.in_channels; ++c)
#pragma unroll 1
    for (int tap = 0; tap < taps * taps; ++tap) {
      const int h = row - g.pad_top + tap / taps, v = column - g.pad_left + tap % taps;
      if (h >= 0 && h < g.in_rows && v >= 0 && v < g.in_columns)
        sum = multiply_add(image[c * g.in.c + h * g.in.h + v * g.in.w], w[g.weight_of(out_channel, c, tap)], sum);
    }
  return sum;
}

__global__ void __launch_bounds__(256)
    winograd_outputs(Winograd g, int64_t count, const float* m, const float* bias, const float* x, const float* w, float* y) {
  const Strides from = g.parts(g.out_channels);
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Item at = item_of(g, i, g.out_channels);
    const int row0 = at.row * outputs, column0 = at.column * outputs;
    const float* tile = m + at.image * from.n + at.channel * from.c + at.row * from.h + at.column * from.w;
    float* out = y + at.image * g.out.n + at.channel * g.out.c;
    transform_square<window, outputs>(
        [&](int j, float (&values)[window]) {
#pragma unroll
          for (int r = 0; r < window; ++r) values[r] = tile[(window * r + j) * g.out_channels * from.c];
        },
        [&](int r, const float (&values)[outputs]) {
          const int row = row0 + r;
          if (row >= g.out_rows) return;
#pragma unroll
          for (int s = 0; s < outputs; ++s) {
            const int column = column0 + s;
            if (column >= g.out_columns) return;
            float value = values[s];
            if (!(value - value == 0.0f)) value = plain_sum(g, x + at.image * g.in.n, w, at.channel, row, column);
            out[row * g.out.h + column * g.out.w] = activate(bias ? value + bias[at.channel] : value, g.relu);
          }
        });
  }
}

// ---- launches ----

int up(int64_t count, int64_t multiple) { return int((count + multiple - 1) / multiple * multiple); }
int tiles(int64_t count, int64_t each) { return int((count + each - 1) / each); }

Winograd winograd_of(const ConvProblem& p, Primitive primitive) {
  const bool forward = primitive == Primitive::forward, last = p.layout == Layout::channels_last;
  const WeightStrides w = weight_strides(p);
  const Strides x = strides_of(p.layout, p.c, p.h, p.w), y = strides_of(p.layout, p.k, p.p, p.q);
  if (forward)
    return {int(p.c),
            int(p.k),
            int(p.h),
            int(p.w),
            int(p.p),
            int(p.q),
            int(p.pad_top),
            int(p.pad_left),
            tiles(p.p, outputs),
            tiles(p.q, outputs),
            x,
            y,
            w,
            false,
            last,
            p.relu};
  return {int(p.k),
          int(p.c),
          int(p.p),
          int(p.q),
          int(p.h),
          int(p.w),
          int(taps - 1 - p.pad_top),
          int(taps - 1 - p.pad_left),
          tiles(p.h, outputs),
          tiles(p.w, outputs),
          y,
          x,
          WeightStrides{w.c, w.k, w.tap},
          true,
          last,
          p.relu};
}

// The products of so many images as a convolution: a group for each part.
ConvProblem products_of(const Winograd& g, int64_t images) {
  ConvProblem p{};
  p.n = images, p.c = int64_t(products) * g.in_channels, p.k = int64_t(products) * g.out_channels;
  p.h = p.p = g.tile_rows, p.w = p.q = g.tile_columns;
  p.r = p.s = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
  p.groups = products;
  p.layout = p.weight_layout = g.last ? Layout::channels_last : Layout::channels_first;
  return p;
}

// How the workspace is used, in elements: transformed weights, then inputs and products of some images at a time.
struct Plan {
  int64_t weights, inputs, products, images;
};
Plan plan_of(const ConvProblem& p, const Winograd& g, int multiprocessors) {
  Plan plan{};
  plan.weights = int64_t(products) * g.in_channels * up(g.out_channels, channel_multiple);
  plan.inputs = int64_t(products) * g.tiles() * g.in_channels;
  plan.products = int64_t(products) * g.tiles() * g.out_channels;
  const int64_t images = multiprocessors * wanted_workspace / ((plan.inputs + plan.products) * int64_t(sizeof(float)));
  plan.images = images < 1 ? 1 : images < p.n ? images : p.n;
  return plan;
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  const bool forward = primitive == Primitive::forward;
  const Winograd g = winograd_of(p, primitive);
  const Plan plan = plan_of(p, g, args.threads);
  const float *x = static_cast<const float*>(forward ? args.x : args.gy), *w = static_cast<const float*>(args.w),
              *bias = static_cast<const float*>(args.b);
  float *y = static_cast<float*>(forward ? args.y : args.gx), *u = static_cast<float*>(args.workspace), *v = u + plan.weights,
        *m = v + plan.images * plan.inputs;
  const int out_padded = up(g.out_channels, channel_multiple);
  launch("winograd_weights", winograd_weights, dim3(blocks_for(int64_t(g.in_channels) * out_padded, 256)), dim3(256), 0,
         args.stream, g, out_padded, w, u);
  for (int64_t n = 0; n < p.n; n += plan.images) {
    const int64_t images = p.n - n < plan.images ? p.n - n : plan.images;
    const int64_t in_count = images * g.tiles() * g.in_channels, out_count = images * g.tiles() * g.out_channels;
    const float* first = x + n * g.in.n;
    launch("winograd_inputs", winograd_inputs, dim3(blocks_for(in_count, 256)), dim3(256), 0, args.stream, g, in_count, first,
           v);
    const ConvProblem product = products_of(g, images);
    gemm_gather<float>("winograd_products", forward_gather(product, channel_multiple), product.layout, v, u, nullptr, m,
                       args.stream);
    launch("winograd_outputs", winograd_outputs, dim3(blocks_for(out_count, 256)), dim3(256), 0, args.stream, g, out_count, m,
           bias, first, w, y + n * g.out.n);
  }
}

template <Primitive primitive>
bool applies(const ConvProblem& p) {
  return p.allow_winograd && p.dtype == Dtype::float32 && p.groups == 1 && p.r == taps && p.s == taps && p.stride_h == 1 &&
         p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1 && gather_fits(p) &&
         gather_fits(products_of(winograd_of(p, primitive), 1));
}

// A prediction, for one image: on an H100 25e12 multiply-adds a second, and 3e12 bytes, which transformed inputs and products
// cross twice.
template <Primitive primitive>
bool preferred(const ConvProblem& p) {
  const Winograd g = winograd_of(p, primitive);
  const double c = double(g.in_channels), k = double(g.out_channels), all = double(products) * g.tiles();
  const double product = all * c * k / 25e12, transforms = 2 * all * (c + k) * 4 / 3e12;
  return product + transforms < double(taps * taps) * g.out_rows * g.out_columns * c * k / 25e12;
}

template <Primitive primitive>
int64_t workspace(const ConvProblem& p, int multiprocessors) {
  const Plan plan = plan_of(p, winograd_of(p, primitive), multiprocessors);
  return (plan.weights + plan.images * (plan.inputs + plan.products)) * int64_t(sizeof(float));
}

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {"winograd_f4",        primitive,     applies<primitive>, preferred<primitive>,
                                     workspace<primitive>, run<primitive>};

}  // namespace

const ConvAlgorithm winograd_forward = algorithm<Primitive::forward>;
const ConvAlgorithm winograd_input_gradient = algorithm<Primitive::input_gradient>;

}  // namespace fastconv::FASTCONV_BACKEND
