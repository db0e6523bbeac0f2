// What the kernels of groups of 8 to 32 channels share. They compute in pieces of 8 channels of one pixel, 16 bytes: a row of a
// matrix of ldmatrix, which takes each row from wherever it lies.
#pragma once

#include "conv_tile.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;

constexpr int warps_a_block = 8, threads_a_block = 32 * warps_a_block;
constexpr int piece = 8;       // channels
constexpr int positions = 16;  // neighbouring columns: the rows, or the depth, of an mma
constexpr int64_t wanted_shared = 56 << 10;
constexpr int64_t most_shared = 96 << 10;

int tiles(int64_t count, int64_t each) { return int((count + each - 1) / each); }

// Some groups' channels of a part of an image in shared memory, `units` of `groups` groups of so many channels. From pixel to
// pixel it is an odd number of 16 bytes: eight rows of ldmatrix lie in different banks.
template <class T>
Rectangle grouped_rectangle(int units, int groups, int channels, int rows, int columns, const void* image) {
  const int64_t extent = greatest_common_divisor(int64_t(units) * channels, int64_t(groups) * channels);
  Rectangle out =
      rectangle_of<T>(Layout::channels_last, units * channels, rows, columns, granule_of<T>(16, extent, {image}), true);
  out.column_step = out.channels / piece % 2 ? out.channels : out.channels + piece;
  out.row_step = out.columns * out.column_step;
  out.elements = int64_t(out.rows) * out.row_step;
  return out;
}

// Whether groups of so many channels in and out are of these kernels.
bool grouped_problem(const ConvProblem& p, int64_t in, int64_t out) {
  return (p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16) && p.layout == Layout::channels_last && gather_fits(p) &&
         in % piece == 0 && in <= 32 && (out == 8 || out == 16 || out == 32);
}

}  // namespace

}  // namespace fastconv::FASTCONV_BACKEND
