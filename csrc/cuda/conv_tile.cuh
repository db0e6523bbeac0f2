// A rectangle of one image in shared memory, for the direct kernels: every value is read from device memory once a block.
#pragma once

#include "conv_gather.cuh"

namespace fastconv::FASTCONV_BACKEND {

// `channels` x `rows` x `columns` of an image and how they lie in shared memory. What lies outside the image is zero, so that
// kernels need no checks.
struct Rectangle {
  int channels, rows, columns;
  int channel_step, row_step, column_step;  // distances in shared memory, in elements
  int64_t elements;
  bool last;      // channels are contiguous, else columns are
  int granule;    // elements moved by one copy
  int lanes_log;  // log2 of the neighbouring threads that copy one contiguous run
};

// The most elements, up to `bytes`, that one copy can move from runs of `extent` elements that begin at `pointers`.
template <class T>
int granule_of(int64_t bytes, int64_t extent, std::initializer_list<const void*> pointers) {
  int granule = int(bytes / int64_t(sizeof(T)));
  const auto fits = [&](int g) {
    bool aligned = extent % g == 0;
    for (const void* p : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(p) % (g * sizeof(T)) == 0;
    return aligned;
  };
  while (granule > 1 && !fits(granule)) granule /= 2;
  return granule < 1 ? 1 : granule;
}

// `packs`: threads read several neighbouring channels in one access, neighbouring threads the next ones. Otherwise neighbouring
// threads read neighbouring columns, one value each: then the pitch of a pixel is an odd number of banks.
template <class T>
Rectangle rectangle_of(Layout layout, int channels, int rows, int columns, int granule, bool packs) {
  constexpr int word = sizeof(T) < 4 ? 4 / int(sizeof(T)) : 1, access = 16 / int(sizeof(T));
  Rectangle out{channels, rows, columns, 0, 0, 0, 0, layout == Layout::channels_last, granule, 0};
  const auto up = [](int64_t count, int multiple) { return (count + multiple - 1) / multiple * multiple; };
  if (out.last) {
    out.channel_step = 1;
    const int64_t whole = up(channels, word);
    out.column_step = int(packs ? up(channels, access) : whole / word % 2 ? whole : whole + word);
    out.row_step = columns * out.column_step;
    out.elements = int64_t(rows) * out.row_step;
  } else {
    out.column_step = 1;
    out.row_step = int(up(columns + granule - 1, granule));
    out.channel_step = rows * out.row_step;
    out.elements = int64_t(channels) * out.channel_step;
  }
  out.elements = up(out.elements, access);
  const int copies = (out.last ? channels : out.row_step) / granule;
  while (out.lanes_log < 5 && 1 << out.lanes_log < copies) ++out.lanes_log;
  return out;
}

// An image of the batch.
template <class T>
struct Image {
  const T* at;
  Strides step;
  int channels, rows, columns;
};

template <class T, int granule>
FASTCONV_DEVICE void fill_by(const Rectangle& of, T* shared, const Image<T>& image, int c0, int h0, int w0) {
  const int lanes = 1 << of.lanes_log, lane = int(threadIdx.x) & (lanes - 1);
  const int first = of.last ? c0 : w0 & -granule;  // a multiple of the granule, also below zero
  const int length = of.last ? of.channels : of.columns + w0 - first, limit = of.last ? image.channels : image.columns;
  const int runs = of.rows * (of.last ? of.columns : of.channels), inner_count = of.last ? of.columns : of.rows;
#pragma unroll 1
  for (int run = int(threadIdx.x) >> of.lanes_log; run < runs; run += int(blockDim.x) >> of.lanes_log) {
    const int outer = run / inner_count, inner = run - outer * inner_count;
    const int h = h0 + (of.last ? outer : inner), other = of.last ? w0 + inner : c0 + outer;
    const bool inside = h >= 0 && h < image.rows && other >= 0 && other < (of.last ? image.columns : image.channels);
    const T* source = image.at + h * image.step.h + other * (of.last ? image.step.w : image.step.c);
    T* target =
        shared + (of.last ? outer * of.row_step + inner * of.column_step : outer * of.channel_step + inner * of.row_step);
#pragma unroll 1
    for (int i = lane * granule; i < length; i += lanes * granule) {
      const int at = first + i;
      const bool real = inside && at >= 0 && at < limit;
      if constexpr (granule * sizeof(T) >= 4)
        device::copy_async<granule * sizeof(T)>(target + i, real ? source + at : image.at, real ? int(granule * sizeof(T)) : 0);
      else
        target[i] = real ? source[at] : T{};
    }
  }
}

// Begins to fill the rectangle from channel c0, row h0, column w0 of the image, by all threads of the block, and returns where
// that element will lie. The copies are to be committed and waited for.
template <class T>
FASTCONV_DEVICE const T* fill(const Rectangle& of, T* shared, const Image<T>& image, int c0, int h0, int w0) {
  constexpr int most = 16 / int(sizeof(T));
  if (of.granule == most) fill_by<T, most>(of, shared, image, c0, h0, w0);
  if (of.granule == most / 2) fill_by<T, most / 2>(of, shared, image, c0, h0, w0);
  if (most > 2 && of.granule == most / 4) fill_by<T, (most > 2 ? most / 4 : 1)>(of, shared, image, c0, h0, w0);
  if (most > 4 && of.granule == 1) fill_by<T, 1>(of, shared, image, c0, h0, w0);
  return shared + (of.last ? 0 : w0 & (of.granule - 1));
}

}  // namespace fastconv::FASTCONV_BACKEND
