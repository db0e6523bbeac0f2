// Depthwise convolution: what its kernels have in common, and what they offer to the algorithm (conv_depthwise.cpp).
#pragma once

#include "conv_axis.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Forward and input gradient are one computation over different taps (conv_axis.h): `in` is x or gy, `out` is y or gx.
// Planes are channels_first, pixels channels_last.
template <class T>
int64_t depthwise_planes_bytes(const ConvProblem& q, bool forward, int threads);
template <class T>
void depthwise_planes(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                      int threads);
template <class T>
int64_t depthwise_pixels_bytes(const ConvProblem& q, bool forward, int threads);
template <class T>
void depthwise_pixels(const ConvProblem& q, bool forward, const T* in, const T* w, const T* bias, T* out, void* workspace,
                      int threads);
template <class T>
int64_t depthwise_gradient_bytes(const ConvProblem& q, int threads);
template <class T>
void depthwise_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads);

// How the outputs of an axis are cut into strips of `rows`. With dilation d and stride 1, outputs d apart share inputs: a strip
// takes every d-th. Inputs `spacing` apart matter to a strip: its output j reads number j * row_step + r * tap_step of them
// through tap r.
struct StripPlan {
  int64_t rows, residues, spacing, row_step, tap_step;
  int64_t out_step() const { return residues; }
  int64_t strips(int64_t count) const { return residues * (((count + residues - 1) / residues + rows - 1) / rows); }
  int64_t inputs(int64_t taps) const { return (rows - 1) * row_step + (taps - 1) * tap_step + 1; }
  int64_t first(int64_t strip) const { return strip % residues + strip / residues * rows * residues; }
  // Outputs of the strip that begins at `first`.
  int64_t count(int64_t first, int64_t total) const {
    return first < total ? minimum(rows, (total - first + residues - 1) / residues) : 0;
  }
};

// Of `count` outputs; without `rows` yet.
inline StripPlan plan_strips(const Axis& axis, int64_t count) {
  const int64_t common = greatest_common_divisor(axis.in_step, axis.tap_step);
  const int64_t row_step = axis.in_step / common, tap_step = axis.tap_step / common;
  // Where the dilation is larger than the axis, every output is alone and inputs are not shared.
  if (row_step == 1 && tap_step <= maximum<int64_t>(count, 1)) return {0, tap_step, common * tap_step, 1, 1};
  return {0, 1, common, row_step, tap_step};
}

// As many rows as there are sums for in registers, or so many that a strip ends with the image.
inline int64_t strip_rows(const StripPlan& plan, int64_t count) {
  const int64_t length = (count + plan.residues - 1) / plan.residues;
  return length <= 4 ? 4 : (length + 7) / 8 * 8 <= (length + 6) / 7 * 7 ? 8 : 7;
}

// Calls body(row phase, column phase, taps before this pair of phases).
template <class Body>
inline void each_phase(const Axis& rows, const Axis& columns, const Body& body) {
  int64_t before = 0;
  for (int64_t a = 0; a < rows.phases; ++a)
    for (int64_t b = 0; b < columns.phases; ++b) {
      body(rows.phase[a], columns.phase[b], before);
      before += rows.phase[a].taps * columns.phase[b].taps;
    }
}

// Calls body(tap, weight) for the taps of all phases, phase by phase. Its taps are numbered [tap column][tap row], or the other
// way round where ROWS_FIRST. `weight` is the tap's place in a channel's weights.
template <bool ROWS_FIRST, class Body>
inline void each_tap(const ConvProblem& q, const Axis& rows, const Axis& columns, const Body& body) {
  each_phase(rows, columns, [&](const AxisPhase& row, const AxisPhase& column, int64_t before) {
    for (int64_t r = 0; r < row.taps; ++r)
      for (int64_t s = 0; s < column.taps; ++s)
        body(before + (ROWS_FIRST ? r * column.taps + s : s * row.taps + r),
             (row.first_weight + r * rows.weight_step) * q.s + column.first_weight + s * columns.weight_step);
  });
}

// image[pixel][i] = in[pixel][source channel of output channel begin + i], zeros up to the pitch.
template <class T>
inline void pack_image(const T* in, int64_t pixels, int64_t in_channels, int64_t multiple, int64_t plus, int64_t divisor,
                       int64_t begin, int64_t end, T* image, int64_t pitch) {
  for (int64_t p = 0; p < pixels; ++p, in += in_channels, image += pitch) {
    for (int64_t i = begin; i < end; ++i) image[i - begin] = in[(i * multiple + plus) / divisor];
    for (int64_t i = end - begin; i < pitch; ++i) image[i] = 0;
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
