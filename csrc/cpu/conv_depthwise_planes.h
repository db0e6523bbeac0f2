// The zero-padded copy of a plane that the NCHW depthwise kernels read.
#pragma once

#include "conv_depthwise.h"

namespace fastconv::cpu::FASTCONV_ISA {

struct PaddedPlane {
  Axis rows, columns;
  int64_t band, bands;       // output rows (of each phase) worked on at once
  int64_t margin;            // columns before the first of the input, where the columns have one phase
  int64_t pitch, row_pitch;  // of a column phase, and of a whole row of the copy, in whole vectors
};

// `planes` of them are copied at once, and in each row what the taps of `outs` outputs read.
template <class T>
inline PaddedPlane padded_plane(const Axis& rows, const Axis& columns, int64_t planes, int64_t outs) {
  constexpr int L = lanes<T>;
  constexpr int64_t band_bytes = 24 * 1024;  // leaves room in a first-level cache of 32 KiB
  PaddedPlane p;
  p.rows = rows, p.columns = columns;
  const int64_t count = rows.phase[0].count, reach = columns.reach(outs);
  if (columns.in_step == 1) {
    // The input begins on a whole vector, so that it is copied by aligned stores.
    p.margin = columns.lowest < 0 ? (-columns.lowest + L - 1) / L * L : 0;
    p.pitch = maximum(p.margin + columns.in, p.margin + columns.lowest + reach);
  } else {
    p.margin = 0;
    p.pitch = (reach + columns.in_step - 1) / columns.in_step;
  }
  p.pitch = (p.pitch + L - 1) / L * L;
  p.row_pitch = p.pitch * columns.in_step;
  const int64_t row_bytes = maximum<int64_t>(1, p.row_pitch * planes * int64_t(sizeof(T)));
  p.band = count;
  while (p.band > 16 && rows.reach(p.band) * row_bytes > band_bytes) p.band = (p.band / 2 + 7) / 8 * 8;
  p.bands = (count + p.band - 1) / p.band;
  return p;
}

// The input rows that the outputs begin .. end - 1 read, column phases apart.
template <class T>
inline void copy_band(const PaddedPlane& p, const T* plane, int64_t begin, int64_t end, T* to) {
  constexpr int L = lanes<T>;
  const int64_t top = p.rows.lowest + begin * p.rows.in_step, step = p.columns.in_step, width = p.columns.in;
  for (int64_t h = top; h < top + p.rows.reach(end - begin); ++h, to += p.row_pitch) {
    const bool inside = h >= 0 && h < p.rows.in;
    if (step > 1) {
      for (int64_t i = 0; i < step; ++i)
        copy_padded<T>(plane + (inside ? h * width : 0), inside ? width : 0, p.columns.lowest + i, step, to + i * p.pitch,
                       p.pitch);
      continue;
    }
    int64_t i = 0;
    if (inside) {
      for (; i < p.margin; i += L) store<T>(to + i, Vec<T>{});
      const T *from = plane + h * width, *stop = from + width;
      for (; stop - from >= L; from += L, i += L) store<T>(to + i, load(from));
      if (from < stop) store<T>(to + i, load_first(from, int(stop - from))), i += L;
    }
    for (; i < p.pitch; i += L) store<T>(to + i, Vec<T>{});
  }
}

// Where the tap columns of every column phase begin in a row of the copy.
inline void fill_columns(const PaddedPlane& p, int64_t* columns) {
  for (int64_t b = 0; b < p.columns.phases; ++b)
    for (int64_t t = 0; t < p.columns.phase[b].taps; ++t) {
      const int64_t at = p.columns.phase[b].start - p.columns.lowest + t * p.columns.tap_step;
      *columns++ =
          p.columns.in_step == 1 ? p.margin + p.columns.lowest + at : at % p.columns.in_step * p.pitch + at / p.columns.in_step;
    }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
