// Grouped convolution: how its kernels see a problem, and the zero-padded copy of the image that they read.
#pragma once

#include "conv_axis.h"
#include "transpose.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t most_group_channels = 32;          // in and out
constexpr bool many_registers = vector_bytes == 64;  // 32 instead of 16
constexpr int most_vectors = 2;                      // of output channels in a tile

template <class T>
constexpr int64_t cache_line = 64 / int64_t(sizeof(T));

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One side of the problem: images of groups of channels.
struct Side {
  int64_t channels, height, width;  // channels a group
  int64_t pixel;                    // from one pixel of a copy to the next: the channels of a bundle, to whole cache lines
};

// A bundle is the groups that are worked on together: about a cache line of channels. A pack is the groups whose output
// channels share a vector: as many as fill it where a group reads and writes 2, 4 or 8 channels and a vector holds more; else
// one.
struct GroupedShape {
  Axis rows, columns;
  bool planes;  // channels_first
  int64_t groups, bundle, bundles, pack, packs;
  Side in, out;
  int64_t band, bands;      // output rows (of each phase) worked on at once
  int64_t row_pitch;        // of the copy
  int64_t vectors, blocks;  // of a pack's output channels; in blocks of most_vectors
  int64_t taps;             // of all phases
  int64_t first(int64_t index) const { return index * bundle; }
  int64_t groups_of(int64_t index) const { return minimum(bundle, groups - first(index)); }
  int64_t packs_of(int64_t index) const { return ceil_div(groups_of(index), pack); }
  int64_t first_pack(int64_t index) const { return first(index) / pack; }  // all bundles but the last have whole packs
  int64_t spread() const { return pack > 1 ? out.channels : 0; }
  int64_t block_vectors(int64_t block) const { return minimum<int64_t>(most_vectors, vectors - block * most_vectors); }
  int64_t copied_rows() const { return rows.reach(band); }
};

template <class T>
GroupedShape grouped_shape(const ConvProblem& q, bool forward, int64_t band_bytes) {
  constexpr int64_t line = cache_line<T>, L = lanes<T>;
  GroupedShape s;
  s.rows = row_axis(q, forward), s.columns = column_axis(q, forward);
  s.planes = q.layout == Layout::channels_first;
  s.groups = q.groups, s.taps = q.r * q.s;
  const int64_t c = q.c / q.groups, k = q.k / q.groups;
  s.bundle = minimum(q.groups, ceil_div(line, minimum(c, k)));
  s.bundles = ceil_div(q.groups, s.bundle);
  s.pack = c == k && (c == 2 || c == 4 || c == 8) && c < L ? L / c : 1;
  s.packs = ceil_div(q.groups, s.pack);
  auto pixel = [&](int64_t channels) { return ceil_div(s.bundle * channels, line) * line; };
  const Side x = {c, q.h, q.w, pixel(c)}, y = {k, q.p, q.q, pixel(k)};
  s.in = forward ? x : y, s.out = forward ? y : x;
  s.row_pitch = s.columns.reach(s.columns.phase[0].count) * s.in.pixel;
  s.vectors = ceil_div(s.pack * s.out.channels, L), s.blocks = ceil_div(s.vectors, most_vectors);
  s.band = s.rows.phase[0].count;
  while (s.band > 4 && s.copied_rows() * s.row_pitch * int64_t(sizeof(T)) > band_bytes) s.band = (s.band + 1) / 2;
  s.bands = ceil_div(s.rows.phase[0].count, s.band);
  return s;
}

// The work on one band of one bundle of groups of an image.
struct Unit {
  int64_t bundle, band, n;
  Unit(const GroupedShape& s, int64_t index)
      : bundle(index % s.bundles), band(index / s.bundles % s.bands), n(index / s.bundles / s.bands) {}
  Unit(int64_t bundle_index, int64_t band_index, int64_t image) : bundle(bundle_index), band(band_index), n(image) {}
  // Where the bundle's channels of the image's row `row` begin.
  int64_t at(const GroupedShape& s, const Side& side, int64_t row) const {
    const int64_t first = s.first(bundle) * side.channels, total = s.groups * side.channels;
    return s.planes ? ((n * total + first) * side.height + row) * side.width
                    : (n * side.height + row) * side.width * total + first;
  }
};

// `pixels` times `channels` elements, `pitch` apart, to whole vectors `pixel` apart.
template <class T>
inline void copy_pixels(const T* from, int64_t pitch, int64_t pixels, int64_t channels, T* to, int64_t pixel) {
  constexpr int L = lanes<T>;
  const int64_t whole = channels / L * L;
  const int left = int(channels - whole);
  for (int64_t i = 0; i < pixels; ++i, from += pitch, to += pixel) {
    for (int64_t c = 0; c < whole; c += L) store<T>(to + c, load(from + c));
    if (left) store<T>(to + whole, load_first(from + whole, left));
  }
}

// The same for either layout: neighbouring pixels of some channels, of which `from` is the first.
template <class T>
inline void copy_channels(const GroupedShape& s, const Side& side, const T* from, int64_t pixels, int64_t channels, T* to,
                          int64_t pixel) {
  if (s.planes)
    transpose<T, false, true>(from, side.height * side.width, channels, pixels, to, pixel);
  else
    copy_pixels<T>(from, s.groups * side.channels, pixels, channels, to, pixel);
}

template <class T>
inline void zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes<T>) store<T>(to + i, Vec<T>{});
}

// Rows begin .. end - 1 of the padded copy of `channels` channels, whose row 0 is the image's row `top`; `image` is at its row
// 0.
template <class T>
void fill_rows(const GroupedShape& s, const T* image, int64_t channels, int64_t top, int64_t begin, int64_t end, T* copy) {
  const int64_t columns = s.columns.reach(s.columns.phase[0].count), lowest = s.columns.lowest, pixel = s.in.pixel;
  const int64_t first = minimum(columns, maximum<int64_t>(0, -lowest));
  const int64_t last = maximum(first, minimum(columns, s.in.width - lowest));
  for (int64_t row = begin; row < end; ++row) {
    T* to = copy + row * s.row_pitch;
    if (top + row < 0 || top + row >= s.in.height || first == last) {
      zero<T>(to, s.row_pitch);
      continue;
    }
    zero<T>(to, first * pixel);
    const int64_t at = (top + row) * s.in.width + lowest + first;
    copy_channels<T>(s, s.in, image + at * (s.planes ? 1 : s.groups * s.in.channels), last - first, channels,
                     to + first * pixel, pixel);
    zero<T>(to + last * pixel, (columns - last) * pixel);
  }
}

// Fetches rows begin .. end - 1 of what a unit reads or, with WRITE, writes, over so many steps. Planes are left to the
// hardware.
template <class T, bool WRITE>
Prefetch<T, WRITE> prefetch_rows(const GroupedShape& s, const Side& side, const Unit& unit, const T* base, int64_t begin,
                                 int64_t end, int64_t steps) {
  begin = maximum<int64_t>(begin, 0), end = minimum(end, side.height);
  const int64_t pixels = s.planes ? 0 : maximum<int64_t>(0, end - begin) * side.width;
  return {pixels ? base + unit.at(s, side, begin) : nullptr, pixels, s.groups * side.channels, steps};
}

// Lane i holds channel C of the group of G channels in which lane i lies.
template <int G, int C>
struct OfGroup {
  static constexpr int lane(int i) { return i / G * G + C; }
};

// What the lanes of a pack read of a pixel: channel C of each lane's group. SPREAD: a group's channels; 0: the pack is one
// group.
template <class T, int SPREAD, int C>
inline __attribute__((always_inline)) Vec<T> spread_channel(const T* pixel) {
  if constexpr (SPREAD == 0) return splat(pixel[C]);
  const Vec<T> v = load(pixel);
  return shuffle_lanes<OfGroup<maximum(SPREAD, 1), C>, T>(v, v);
}

// Calls body(c) for c in 0 .. COUNT - 1, each of a type that says its value.
template <class Body, int... C>
inline __attribute__((always_inline)) void each_constant(const Body& body, std::integer_sequence<int, C...>) {
  (body(std::integral_constant<int, C>{}), ...);
}
template <int COUNT, class Body>
inline __attribute__((always_inline)) void each_constant(const Body& body) {
  each_constant(body, std::make_integer_sequence<int, COUNT>{});
}

// conv_grouped_gradient.cpp
template <class T>
int64_t grouped_gradient_bytes(const ConvProblem& q, int threads);
template <class T>
void grouped_gradient(const ConvProblem& q, const T* gy, const T* x, T* gw, T* gb, void* workspace, int threads);

}  // namespace fastconv::cpu::FASTCONV_ISA
