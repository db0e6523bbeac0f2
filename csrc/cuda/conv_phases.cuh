// A gather whose block computes all phases of a strided input gradient from one tile: gy is read once for all of them.
#pragma once

#include "conv_gather.cuh"

namespace fastconv::FASTCONV_BACKEND {

constexpr int most_phases = 4;  // of an axis: the stride of an input gradient

// An axis of the gather, one entry a phase.
struct Phases {
  GatherAxis at[most_phases];
  int count, sample;
  int low, reach;  // grid position i reads from i * sample + low, `reach` positions
};

// As Gather, of all phases.
struct PhasedGather {
  Phases rows, columns;
  int64_t batch;
  int groups, in_channels, out_channels;  // channels of one group
  int out_padded, taps, kernel_columns;
  Strides in, out;
  int in_rows, in_columns;
  bool relu;
};

// The same taps in ascending order of the inputs they read.
inline GatherAxis ascending(GatherAxis axis) {
  if (axis.step >= 0 || axis.taps == 0) return axis;
  axis.base += (axis.taps - 1) * axis.step;
  axis.first += (axis.taps - 1) * axis.every;
  axis.step = -axis.step;
  axis.every = -axis.every;
  return axis;
}

template <class MakeAxis>
Phases phases_of(int count, const MakeAxis& axis) {
  Phases out{};
  out.count = count;
  int high = INT32_MIN;
  out.low = INT32_MAX;
  for (int i = 0; i < count; ++i) {
    const GatherAxis at = out.at[i] = ascending(axis(i));
    out.sample = at.sample;
    if (at.taps == 0 || at.grid == 0) continue;
    out.low = at.base < out.low ? at.base : out.low;
    const int last = at.base + (at.taps - 1) * at.step;
    high = last > high ? last : high;
  }
  if (high < out.low) high = out.low = 0;  // no phase reads anything
  out.reach = high - out.low + 1;
  return out;
}

inline int most_grid(const Phases& phases) { return phases.at[0].grid; }  // later phases have at most as many

inline bool phases_fit(const ConvProblem& p, Primitive primitive) {
  return primitive == Primitive::forward || (p.stride_h <= most_phases && p.stride_w <= most_phases);
}

inline PhasedGather phased_gather(const ConvProblem& p, Primitive primitive, int out_multiple) {
  const bool forward = primitive == Primitive::forward;
  const Gather base = forward ? forward_gather(p, out_multiple) : phase_gather(p, 0, 0, out_multiple);
  const auto phases = [&](int64_t stride, const GatherAxis& axis, const auto& of_phase) {
    return forward ? phases_of(1, [&](int) { return axis; }) : phases_of(int(stride), of_phase);
  };
  return {phases(p.stride_h, base.rows,
                 [&](int phase) { return phase_axis(p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h, phase); }),
          phases(p.stride_w, base.columns,
                 [&](int phase) { return phase_axis(p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w, phase); }),
          base.batch,
          base.groups,
          base.in_channels,
          base.out_channels,
          base.out_padded,
          base.taps,
          base.kernel_columns,
          base.in,
          base.out,
          base.rows.in,
          base.columns.in,
          p.relu};
}

}  // namespace fastconv::FASTCONV_BACKEND
