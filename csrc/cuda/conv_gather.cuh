// Convolution as a gather, the view that forward and input gradient share: each position of an output grid sums, over affine
// taps, input pixels times weights. Forward is one gather over the output. The input gradient is one for each phase of the
// stride: the inputs of one phase all use the same taps, so none is multiplied by an inserted zero.
#pragma once

#include "../problem.h"
#include "device.cuh"

namespace fastconv::FASTCONV_BACKEND {

// One axis of a gather. Grid position i reads input positions i * sample + base + t * step, for taps t = 0 .. taps - 1, and is
// written to output position i * spread + offset. Tap t uses kernel position first + t * every.
struct GatherAxis {
  int grid, in;
  int sample, base, step;
  int taps, first, every;
  int spread, offset;
};

// Distances in elements between neighbours of an image tensor along its axes.
struct Strides {
  int64_t n, c, h, w;
};

inline Strides strides_of(Layout layout, int64_t c, int64_t h, int64_t w) {
  return layout == Layout::channels_last ? Strides{h * w * c, 1, w * c, c} : Strides{c * h * w, h * w, w, 1};
}

struct Gather {
  GatherAxis rows, columns;
  int64_t batch;
  int groups, in_channels, out_channels;  // channels of one group
  int out_padded;                         // out_channels rounded up as the packed weights are
  int kernel_columns, taps;               // S and R S: number the packed weights' taps
  Strides in, out;
  bool relu;

  FASTCONV_HOST_DEVICE int64_t positions() const { return batch * rows.grid * columns.grid; }
};

inline int64_t greatest_common_divisor(int64_t a, int64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

inline GatherAxis forward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t before, int64_t dilation) {
  return {int(out), int(in), int(stride), int(-before), int(dilation), int(kernel), 0, 1, 1, 0};
}

// The inputs x with x % stride == phase. Output p reaches x = p * stride - before + r * dilation through kernel position r, so
// r must make x + before - r * dilation a multiple of the stride: every stride / gcd(stride, dilation)-th r, if any.
inline GatherAxis phase_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t before, int64_t dilation,
                             int64_t phase) {
  const int64_t every = stride / greatest_common_divisor(stride, dilation);
  int64_t first = 0;
  const auto fits = [&](int64_t r) { return (phase + before - r * dilation) % stride == 0; };
  while (first < every && first < kernel && !fits(first)) ++first;
  const bool any = first < kernel && first < every;
  const int64_t taps = any ? (kernel - first - 1) / every + 1 : 0;
  const int64_t base = any ? (phase + before - first * dilation) / stride : 0;
  const int64_t grid = in > phase ? (in - phase - 1) / stride + 1 : 0;
  return {int(grid), int(out),   1,          int(base),   int(-every * dilation / stride),
          int(taps), int(first), int(every), int(stride), int(phase)};
}

// An image as a gather sees it.
struct Side {
  int64_t channels, rows, columns;
};

inline Gather gather_from(const ConvProblem& p, const Side& in, const Side& out, const GatherAxis& rows,
                          const GatherAxis& columns, int out_multiple) {
  const int out_channels = int(out.channels / p.groups);
  return {rows,
          columns,
          p.n,
          int(p.groups),
          int(in.channels / p.groups),
          out_channels,
          (out_channels + out_multiple - 1) / out_multiple * out_multiple,
          int(p.s),
          int(p.r * p.s),
          strides_of(p.layout, in.channels, in.rows, in.columns),
          strides_of(p.layout, out.channels, out.rows, out.columns),
          p.relu};
}
inline Gather forward_gather(const ConvProblem& p, int out_multiple) {
  return gather_from(p, {p.c, p.h, p.w}, {p.k, p.p, p.q}, forward_axis(p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h),
                     forward_axis(p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w), out_multiple);
}
inline Gather phase_gather(const ConvProblem& p, int64_t phase_h, int64_t phase_w, int out_multiple) {
  return gather_from(p, {p.k, p.p, p.q}, {p.c, p.h, p.w},
                     phase_axis(p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h, phase_h),
                     phase_axis(p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w, phase_w), out_multiple);
}

// Whether everything inside one image, and every reach of a window, fits the 32-bit fields; the batch is counted in 64 bits.
inline bool gather_fits(const ConvProblem& p) {
  constexpr double limit = double(1 << 30);
  const auto small = [](double value) { return value < limit && value > -limit; };
  return small(double(p.c) * p.h * p.w) && small(double(p.k) * p.p * p.q) && small(double(p.k) * p.c / p.groups * p.r * p.s) &&
         small(double(p.p) * p.stride_h) && small(double(p.q) * p.stride_w) && small(double(p.r) * p.dilation_h) &&
         small(double(p.s) * p.dilation_w) && small(double(p.pad_top)) && small(double(p.pad_left)) &&
         small(double(p.pad_bottom)) && small(double(p.pad_right)) && small(double(p.h) + p.w) &&
         small(double(p.r) * p.stride_h) && small(double(p.s) * p.stride_w);
}

// One position of the grid, for loading its inputs and storing its output.
struct Position {
  int64_t image;  // n, or -1 beyond the grid
  int row, column;
};
FASTCONV_DEVICE Position position_of(const Gather& g, int64_t index) {
  if (index >= g.positions()) return {-1, 0, 0};
  const int plane = g.rows.grid * g.columns.grid;
  const int64_t n = index < INT32_MAX ? int(index) / plane : index / plane;  // 64 bits are divided slowly
  const int within = int(index - n * plane);
  return {n, within / g.columns.grid, within % g.columns.grid};
}

// Element offset of the input pixel that a position reads for a tap, at channel 0 of the tensor; -1 if it lies in the padding.
FASTCONV_DEVICE int64_t input_of(const Gather& g, const Position& at, int tap_row, int tap_column) {
  const int h = at.row * g.rows.sample + g.rows.base + tap_row * g.rows.step;
  const int w = at.column * g.columns.sample + g.columns.base + tap_column * g.columns.step;
  if (at.image < 0 || h < 0 || h >= g.rows.in || w < 0 || w >= g.columns.in) return -1;
  return at.image * g.in.n + h * g.in.h + w * g.in.w;
}
FASTCONV_DEVICE int64_t output_of(const Gather& g, const Position& at) {
  return at.image * g.out.n + int64_t(at.row * g.rows.spread + g.rows.offset) * g.out.h +
         int64_t(at.column * g.columns.spread + g.columns.offset) * g.out.w;
}

// ---- walking without divisions ----

// The way over taps and, inside a tap, chunks of `depth` input channels.
struct TapWalk {
  int channel = 0, row = 0, column = 0;  // the first channel of the chunk, and the tap

  // To the next chunk. True if it is another tap's.
  FASTCONV_DEVICE bool next(const Gather& g, int channels, int depth) {
    channel += depth;
    if (channel < channels) return false;
    channel = 0;
    if (++column == g.columns.taps) {
      column = 0;
      ++row;
    }
    return true;
  }
  // Number of the tap among the packed weights.
  FASTCONV_DEVICE int tap(const Gather& g) const {
    return (g.rows.first + row * g.rows.every) * g.kernel_columns + g.columns.first + column * g.columns.every;
  }
};

// A number of positions, to be added to a position.
struct PositionStep {
  int images, rows, columns;
};
FASTCONV_DEVICE PositionStep step_of(const Gather& g, int positions) {
  const int plane = g.rows.grid * g.columns.grid, within = positions % plane;
  return {positions / plane, within / g.columns.grid, within % g.columns.grid};
}
FASTCONV_DEVICE void advance(const Gather& g, const PositionStep& step, Position& at) {
  at.column += step.columns;
  at.row += step.rows;
  at.image += step.images;
  if (at.column >= g.columns.grid) {
    at.column -= g.columns.grid;
    ++at.row;
  }
  if (at.row >= g.rows.grid) {
    at.row -= g.rows.grid;
    ++at.image;
  }
}

// ---- weights, packed as [group][tap][in channel][out channel, padded with zeros] ----

// Distances of a weight tensor [k, c / groups, r, s].
struct WeightStrides {
  int64_t k, c, tap;
};
inline WeightStrides weight_strides(const ConvProblem& p) {
  const int64_t c = p.c / p.groups, taps = p.r * p.s;
  return p.weight_layout == Layout::channels_last ? WeightStrides{taps * c, 1, c} : WeightStrides{taps * c, taps, 1};
}

inline int64_t packed_count(const Gather& g, int in_padded) { return int64_t(g.groups) * g.taps * in_padded * g.out_padded; }

struct Packing {
  WeightStrides from;
  bool transposed;  // out channels are the tensor's c, in channels its k: the input gradient
  int groups, taps, in, in_padded, out, out_padded;

  FASTCONV_HOST_DEVICE int64_t count() const { return int64_t(groups) * taps * in_padded * out_padded; }
  // Whether the tensor lies so already; its groups always follow each other.
  bool is_there() const {
    const int64_t in_step = transposed ? from.k : from.c, out_step = transposed ? from.c : from.k;
    return in == in_padded && out == out_padded && (in == 1 || in_step == out) && (out == 1 || out_step == 1) &&
           (taps == 1 || from.tap == int64_t(in) * out);
  }
};
inline Packing packing_of(const ConvProblem& p, const Gather& g, bool transposed, int in_padded) {
  return {weight_strides(p), transposed, g.groups, g.taps, g.in_channels, in_padded, g.out_channels, g.out_padded};
}

template <class T, class Packed>
__global__ void __launch_bounds__(256) pack_weights(const T* w, Packed* packed, Packing to) {
  const int64_t count = to.count(), step = int64_t(gridDim.x) * blockDim.x;
  const int64_t k_a_group = to.transposed ? to.in : to.out;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int o = int(i % to.out_padded), c = int(i / to.out_padded % to.in_padded);
    const int64_t tap = i / to.out_padded / to.in_padded % to.taps, group = i / to.out_padded / to.in_padded / to.taps;
    const int64_t k = group * k_a_group + (to.transposed ? c : o);
    T value{};
    if (o < to.out && c < to.in) value = w[k * to.from.k + (to.transposed ? o : c) * to.from.c + tap * to.from.tap];
    if constexpr (std::is_same_v<T, Packed>)
      packed[i] = value;
    else
      packed[i] = device::widen(value);
  }
}

// The packed weights: w itself if it lies so, else a copy at `workspace`.
template <class Packed, class T>
const Packed* packed_weights(const T* w, const Packing& packing, void* workspace, void* stream) {
  if constexpr (std::is_same_v<T, Packed>)
    if (packing.is_there() && reinterpret_cast<uintptr_t>(w) % 16 == 0) return w;
  Packed* packed = static_cast<Packed*>(workspace);
  device::launch("pack_weights", pack_weights<T, Packed>, dim3(device::blocks_for(packing.count(), 256)), dim3(256), 0, stream,
                 w, packed, packing);
  return packed;
}

}  // namespace fastconv::FASTCONV_BACKEND
