// Max and average pooling, fixed and adaptive, forward and backward. Bound by memory: each value is moved once, 16 bytes an
// access.
//
//   *_last   channels_last: a thread owns 16 bytes of channels of one pixel, and its neighbours in the warp the next 16 bytes.
//   *_band   channels_first: a block copies the rows a band of results needs into shared memory, computes there, and copies
//            the results out, both 16 bytes an access: a band of rows is contiguous.
//   *_any    everything else (a row that does not fit in shared memory, coordinates beyond 32 bits): one result a thread.
//
// Backward passes gather: a thread sums what the windows covering its input give it, in the order of the windows. So no
// atomics, and the same bits every time. As in torch a NaN is greater than anything, also than an earlier NaN; of equal maxima
// the first counts.
#include "kernels.h"
#include "pool.h"
#include "windows.cuh"

namespace fastconv::FASTCONV_BACKEND {

namespace {

using namespace fastconv::device;
using cpu::MaxIndex;

constexpr int threads_a_block = 256, blocks_resident = 4;  // at least: 64 registers a thread
constexpr int64_t band_bytes = 32 << 10;  // of shared memory: several blocks stay resident on one multiprocessor

template <MaxIndex kind>
struct IndexOf {
  using type = int64_t;
};
template <>
struct IndexOf<MaxIndex::window> {
  using type = uint8_t;
};
template <MaxIndex kind>
using Index = typename IndexOf<kind>::type;

template <class T>
constexpr int pack = 16 / int(sizeof(T));

// ---- the running reductions of one result ----

template <class T, MaxIndex kind, class I>
struct Maximum {
  using C = Compute<T>;
  C best = -C(INFINITY);
  I at = 0;

  Maximum() = default;
  // Before the first value the index is that of the window's first position inside the input.
  FASTCONV_DEVICE Maximum(const Pooling<I>& pool, const Span<I>& across, const Span<I>& along)
      : at(index(pool, across, along, 0, 0)) {}

  FASTCONV_DEVICE static I index(const Pooling<I>& pool, const Span<I>& across, const Span<I>& along, I i, I j) {
    if (kind == MaxIndex::window) return (across.tap + i) * pool.pitch + along.tap + j;
    return (across.first + i * across.step) * pool.columns.in + along.first + j * along.step;
  }
  FASTCONV_DEVICE void add(C value, I index) {
    if (value > best || value != value) {
      best = value;
      at = index;
    }
  }
};

template <class T, class I>
FASTCONV_DEVICE Compute<T> divisor_of(const Pooling<I>& pool, const Span<I>& across, const Span<I>& along) {
  return Compute<T>(pool.divisor ? pool.divisor : across.divisor * along.divisor);
}

// ---- what one input receives: the sum over the windows that cover it ----

// `fetch(p, q)` gives the gradient of output (p, q); `fetch_index(p, q)` its index.
template <class T, MaxIndex kind, class I, class Fetch, class FetchIndex>
FASTCONV_DEVICE Compute<T> gathered_maximum(const Pooling<I>& pool, I h, I w, const Fetch& fetch,
                                            const FetchIndex& fetch_index) {
  Compute<T> sum = 0;
  const I begin = pool.columns.covering_begin(w), end = pool.columns.covering_end(w);
  for (I p = pool.rows.covering_begin(h); p < pool.rows.covering_end(h); ++p) {
    const I r = pool.rows.tap(p, h);
    for (I q = begin; q < end; ++q) {
      const I s = pool.columns.tap(q, w);
      const int64_t own = kind == MaxIndex::window ? int64_t(r) * pool.pitch + s : int64_t(h) * pool.columns.in + w;
      if (r >= 0 && s >= 0 && int64_t(fetch_index(p, q)) == own) sum += fetch(p, q);
    }
  }
  return sum;
}

template <class T, class I, class Fetch>
FASTCONV_DEVICE Compute<T> gathered_average(const Pooling<I>& pool, I h, I w, const Fetch& fetch) {
  Compute<T> sum = 0;
  const I begin = pool.columns.covering_begin(w), end = pool.columns.covering_end(w);
  for (I p = pool.rows.covering_begin(h); p < pool.rows.covering_end(h); ++p) {
    const Span<I> across = pool.rows.window(p);
    for (I q = begin; q < end; ++q) sum += fetch(p, q) / divisor_of<T>(pool, across, pool.columns.window(q));
  }
  return sum;
}

// ---- any: one result a thread, in either layout ----

// Where element (n, c, pixel) lies.
struct Place {
  int64_t channels, pixels;
  bool last;
  FASTCONV_DEVICE int64_t operator()(int64_t plane, int64_t pixel) const {
    return last ? (plane / channels * pixels + pixel) * channels + plane % channels : plane * pixels + pixel;
  }
};

// Calls body(plane, pixel, offset) for each element of a tensor, neighbouring threads on neighbouring elements.
template <class Body>
FASTCONV_DEVICE void each_element(int64_t planes, Place place, const Body& body) {
  const int64_t count = planes * place.pixels, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t pixel = place.last ? i / place.channels % place.pixels : i % place.pixels;
    const int64_t plane =
        place.last ? i / place.channels / place.pixels * place.channels + i % place.channels : i / place.pixels;
    body(plane, pixel, i);
  }
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_forward_any(Pooling<int64_t> pool, Place from, Place to, const T* x, T* y, Index<kind>* index) {
  each_element(pool.batch * pool.channels, to, [&](int64_t plane, int64_t pixel, int64_t out) {
    const Span<int64_t> across = pool.rows.window(pixel / pool.columns.out),
                        along = pool.columns.window(pixel % pool.columns.out);
    Maximum<T, kind, int64_t> maximum(pool, across, along);
    for (int64_t i = 0; i < across.count; ++i)
      for (int64_t j = 0; j < along.count; ++j)
        maximum.add(widen(x[from(plane, (across.first + i * across.step) * pool.columns.in + along.first + j * along.step)]),
                    maximum.index(pool, across, along, i, j));
    narrow(maximum.best, y[out]);
    if (kind != MaxIndex::none) index[out] = Index<kind>(maximum.at);
  });
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_backward_any(Pooling<int64_t> pool, Place from, Place to, const T* gy, const Index<kind>* index, T* gx) {
  each_element(pool.batch * pool.channels, to, [&](int64_t plane, int64_t pixel, int64_t out) {
    const auto at = [&](int64_t p, int64_t q) { return from(plane, p * pool.columns.out + q); };
    narrow(
        gathered_maximum<T, kind>(
            pool, pixel / pool.columns.in, pixel % pool.columns.in, [&](int64_t p, int64_t q) { return widen(gy[at(p, q)]); },
            [&](int64_t p, int64_t q) { return index[at(p, q)]; }),
        gx[out]);
  });
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_gather_any(Pooling<int64_t> pool, Place from, Place to, const T* v, const Index<kind>* index, T* y) {
  each_element(pool.batch * pool.channels, to, [&](int64_t plane, int64_t pixel, int64_t out) {
    const Span<int64_t> across = pool.rows.window(pixel / pool.columns.out),
                        along = pool.columns.window(pixel % pool.columns.out);
    int64_t h = int64_t(index[out]) / pool.columns.in, w = int64_t(index[out]) % pool.columns.in;
    bool valid = int64_t(index[out]) >= 0 && h < pool.rows.in;
    if (kind == MaxIndex::window) {
      const int64_t i = index[out] / pool.pitch - across.tap, j = index[out] % pool.pitch - along.tap;
      valid = i >= 0 && i < across.count && j >= 0 && j < along.count;
      h = across.first + i * across.step;
      w = along.first + j * along.step;
    }
    const bool empty = across.count == 0 || along.count == 0;
    narrow(empty ? Compute<T>(0) : valid ? widen(v[from(plane, h * pool.columns.in + w)]) : Compute<T>(NAN), y[out]);
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    average_forward_any(Pooling<int64_t> pool, Place from, Place to, const T* x, T* y) {
  each_element(pool.batch * pool.channels, to, [&](int64_t plane, int64_t pixel, int64_t out) {
    const Span<int64_t> across = pool.rows.window(pixel / pool.columns.out),
                        along = pool.columns.window(pixel % pool.columns.out);
    Compute<T> sum = 0;
    for (int64_t i = 0; i < across.count; ++i)
      for (int64_t j = 0; j < along.count; ++j)
        sum += widen(x[from(plane, (across.first + i) * pool.columns.in + along.first + j)]);
    const bool empty = across.count == 0 || along.count == 0;
    narrow(empty ? Compute<T>(0) : sum / divisor_of<T>(pool, across, along), y[out]);
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    average_backward_any(Pooling<int64_t> pool, Place from, Place to, const T* gy, T* gx) {
  each_element(pool.batch * pool.channels, to, [&](int64_t plane, int64_t pixel, int64_t out) {
    narrow(gathered_average<T>(pool, pixel / pool.columns.in, pixel % pool.columns.in,
                               [&](int64_t p, int64_t q) { return widen(gy[from(plane, p * pool.columns.out + q)]); }),
           gx[out]);
  });
}

// ---- channels_last: 16 bytes of channels a thread ----

// Calls body(row, column, channel, image) for each pack of an image plane of `rows` x `columns`.
template <int width, class Body>
FASTCONV_DEVICE void each_pack(int64_t batch, int columns, int pixels, int channels, const Body& body) {
  const int packs = channels / width, count = pixels * packs;
  for (int64_t n = blockIdx.y; n < batch; n += gridDim.y)
    for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += int(gridDim.x * blockDim.x)) {
      const int pixel = i / packs;
      body(pixel / columns, pixel % columns, i % packs * width, n);
    }
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_forward_last(Pooling<int> pool, const T* x, T* y, Index<kind>* index) {
  constexpr int width = pack<T>;
  each_pack<width>(pool.batch, pool.columns.out, pool.out_plane(), pool.channels, [&](int p, int q, int c, int64_t n) {
    const Span<int> across = pool.rows.window(p), along = pool.columns.window(q);
    const T* image = x + n * pool.in_plane() * pool.channels + c;
    Maximum<T, kind, int> maximum[width];
    for (int k = 0; k < width; ++k) maximum[k] = Maximum<T, kind, int>(pool, across, along);
    for (int i = 0; i < across.count; ++i)
      for (int j = 0; j < along.count; ++j) {
        const auto values = load_pack<width>(
            image + ((across.first + i * across.step) * pool.columns.in + along.first + j * along.step) * pool.channels);
        const int at = maximum[0].index(pool, across, along, i, j);
        for (int k = 0; k < width; ++k) maximum[k].add(widen(values.at[k]), at);
      }
    const int64_t out = (n * pool.out_plane() + p * pool.columns.out + q) * pool.channels + c;
    Pack<T, width> best;
    for (int k = 0; k < width; ++k) narrow(maximum[k].best, best.at[k]);
    store_pack(y + out, best);
    if constexpr (kind != MaxIndex::none) {
      constexpr int part = width * sizeof(Index<kind>) > 16 ? 16 / int(sizeof(Index<kind>)) : width;
      for (int first = 0; first < width; first += part) {
        Pack<Index<kind>, part> indices;
        for (int k = 0; k < part; ++k) indices.at[k] = Index<kind>(maximum[first + k].at);
        store_pack(index + out + first, indices);
      }
    }
  });
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_backward_last(Pooling<int> pool, const T* gy, const Index<kind>* index, T* gx) {
  constexpr int width = pack<T>;
  constexpr int part = width * sizeof(Index<kind>) > 16 ? 16 / int(sizeof(Index<kind>)) : width;
  each_pack<width>(pool.batch, pool.columns.in, pool.in_plane(), pool.channels, [&](int h, int w, int c, int64_t n) {
    const int64_t image = n * pool.out_plane() * pool.channels + c;
    Compute<T> sum[width] = {};
    const int begin = pool.columns.covering_begin(w), end = pool.columns.covering_end(w);
    for (int p = pool.rows.covering_begin(h); p < pool.rows.covering_end(h); ++p) {
      const int r = pool.rows.tap(p, h);
      for (int q = begin; q < end; ++q) {
        const int s = pool.columns.tap(q, w);
        if (r < 0 || s < 0) continue;
        const int own = kind == MaxIndex::window ? r * pool.pitch + s : h * pool.columns.in + w;
        const int64_t from = image + int64_t(p * pool.columns.out + q) * pool.channels;
        const auto values = load_pack<width>(gy + from);
        for (int first = 0; first < width; first += part) {
          const auto indices = load_pack<part>(index + from + first);
          for (int k = 0; k < part; ++k)
            if (int64_t(indices.at[k]) == own) sum[first + k] += widen(values.at[first + k]);
        }
      }
    }
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) narrow(sum[k], out.at[k]);
    store_pack(gx + (n * pool.in_plane() + h * pool.columns.in + w) * pool.channels + c, out);
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident) average_forward_last(Pooling<int> pool, const T* x, T* y) {
  constexpr int width = pack<T>;
  each_pack<width>(pool.batch, pool.columns.out, pool.out_plane(), pool.channels, [&](int p, int q, int c, int64_t n) {
    const Span<int> across = pool.rows.window(p), along = pool.columns.window(q);
    const T* image = x + n * pool.in_plane() * pool.channels + c;
    Compute<T> sum[width] = {};
    for (int i = 0; i < across.count; ++i)
      for (int j = 0; j < along.count; ++j) {
        const auto values = load_pack<width>(image + ((across.first + i) * pool.columns.in + along.first + j) * pool.channels);
        for (int k = 0; k < width; ++k) sum[k] += widen(values.at[k]);
      }
    const bool empty = across.count == 0 || along.count == 0;
    const Compute<T> divisor = divisor_of<T>(pool, across, along);
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) narrow(empty ? Compute<T>(0) : sum[k] / divisor, out.at[k]);
    store_pack(y + (n * pool.out_plane() + p * pool.columns.out + q) * pool.channels + c, out);
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    average_backward_last(Pooling<int> pool, const T* gy, T* gx) {
  constexpr int width = pack<T>;
  each_pack<width>(pool.batch, pool.columns.in, pool.in_plane(), pool.channels, [&](int h, int w, int c, int64_t n) {
    const T* image = gy + n * pool.out_plane() * pool.channels + c;
    Compute<T> sum[width] = {};
    const int begin = pool.columns.covering_begin(w), end = pool.columns.covering_end(w);
    for (int p = pool.rows.covering_begin(h); p < pool.rows.covering_end(h); ++p) {
      const Span<int> across = pool.rows.window(p);
      for (int q = begin; q < end; ++q) {
        const Compute<T> divisor = divisor_of<T>(pool, across, pool.columns.window(q));
        const auto values = load_pack<width>(image + (p * pool.columns.out + q) * pool.channels);
        for (int k = 0; k < width; ++k) sum[k] += widen(values.at[k]) / divisor;
      }
    }
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) narrow(sum[k], out.at[k]);
    store_pack(gx + (n * pool.in_plane() + h * pool.columns.in + w) * pool.channels + c, out);
  });
}

// ---- channels_first: bands of rows through shared memory ----

// A band: `rows` destination rows of one plane, from `first`; the source rows it needs are begin..end.
struct Band {
  int64_t plane;
  int first, rows;
  int source_begin, source_end;
};

// Copies count contiguous elements into shared memory by all threads of the block, 16 bytes an access where both sides are
// aligned alike. Returns where the first landed: the copy keeps the source's position within 16 bytes.
template <class T>
FASTCONV_DEVICE T* stage(T* shared, const T* source, int count) {
  constexpr int width = pack<T>;
  const int skew = int(reinterpret_cast<uintptr_t>(source) / sizeof(T) % width);
  T* target = shared + skew;
  const int head = skew == 0 ? 0 : width - skew < count ? width - skew : count;
  const int packs = (count - head) / width;
  for (int i = int(threadIdx.x); i < head; i += int(blockDim.x)) target[i] = source[i];
  for (int i = int(threadIdx.x); i < packs; i += int(blockDim.x))
    store_pack(target + head + i * width, load_pack<width>(source + head + i * width));
  for (int i = head + packs * width + int(threadIdx.x); i < count; i += int(blockDim.x)) target[i] = source[i];
  return target;
}

// The way back: `shared` is where place_for(shared, target) put the results.
template <class T>
FASTCONV_DEVICE void unstage(T* target, const T* shared, int count) {
  constexpr int width = pack<T>;
  const int skew = int(reinterpret_cast<uintptr_t>(target) / sizeof(T) % width);
  const int head = skew == 0 ? 0 : width - skew < count ? width - skew : count;
  const int packs = (count - head) / width;
  for (int i = int(threadIdx.x); i < head; i += int(blockDim.x)) target[i] = shared[i];
  for (int i = int(threadIdx.x); i < packs; i += int(blockDim.x))
    store_pack(target + head + i * width, load_pack<width>(shared + head + i * width));
  for (int i = head + packs * width + int(threadIdx.x); i < count; i += int(blockDim.x)) target[i] = shared[i];
}
template <class T>
FASTCONV_DEVICE T* place_for(T* shared, const T* target) {
  return shared + reinterpret_cast<uintptr_t>(target) / sizeof(T) % pack<T>;
}

// Shared memory of a band kernel: `source` elements, `result` elements, and the indices. Both counts are multiples of 16.
template <class T, class I>
struct Carved {
  T *source, *result;
  I* index;  // of the source in a backward pass, of the results in a forward pass
};
template <class T, class I>
FASTCONV_DEVICE Carved<T, I> carve(unsigned char* shared, int source, int result) {
  T* values = reinterpret_cast<T*>(shared);
  return {values, values + source, reinterpret_cast<I*>(values + source + result)};
}

// The blocks of a band kernel: blockIdx.x is the plane times `bands` plus the band.
FASTCONV_DEVICE Band band_of(int64_t block, int bands, int rows, int total) {
  const int first = int(block % bands) * rows;
  return {block / bands, first, total - first < rows ? total - first : rows, 0, 0};
}

// The input rows of the windows of output rows first..first + rows.
FASTCONV_DEVICE void input_rows(const Axis<int>& axis, Band& band) {
  const Span<int> top = axis.window(band.first), bottom = axis.window(band.first + band.rows - 1);
  band.source_begin = top.first < axis.in ? top.first : axis.in;
  const int end = bottom.first + (bottom.count - 1) * bottom.step + 1;
  band.source_end = bottom.count && end > band.source_begin ? end : band.source_begin;
  // Windows at the lower edge can be empty while earlier ones are not.
  for (int p = band.first; p < band.first + band.rows; ++p) {
    const Span<int> span = axis.window(p);
    const int last = span.first + (span.count - 1) * span.step + 1;
    if (span.count && last > band.source_end) band.source_end = last;
    if (span.count && span.first < band.source_begin) band.source_begin = span.first;
  }
}
FASTCONV_DEVICE void output_rows(const Axis<int>& axis, Band& band) {
  band.source_begin = axis.covering_begin(band.first);
  band.source_end = axis.covering_end(band.first + band.rows - 1);
  if (band.source_end < band.source_begin) band.source_end = band.source_begin;
}

// How the rows of a plane are cut into bands whose sources and results fit in shared memory. rows == 0: not even one row fits.
struct Bands {
  int rows, count;
  int source, result;  // elements of a band's tiles, multiples of 16
  int64_t blocks, shared_bytes;
};

// The sources in shared memory, by their place in the plane.
template <class T, class I>
struct BandTile {
  const T* values;
  const I* indices;
};
// Bands of output rows (`forward`) or of input rows. compute(tile, row, column, index) gives each result; `index` is where that
// of a forward pass is put. Index pointers are null where a pass has none.
template <bool forward, class T, class I, class Result>
FASTCONV_DEVICE void each_band(const Pooling<int>& pool, const Bands& bands, const T* source, const I* source_index, T* result,
                               I* result_index, const Result& compute) {
  FASTCONV_DYNAMIC_SHARED(unsigned char, shared);
  const auto tiles = carve<T, I>(shared, bands.source, bands.result);
  const int source_width = forward ? pool.columns.in : pool.columns.out, width = forward ? pool.columns.out : pool.columns.in;
  for (int64_t block = blockIdx.x; block < bands.blocks; block += gridDim.x) {
    Band band = band_of(block, bands.count, bands.rows, forward ? pool.rows.out : pool.rows.in);
    forward ? input_rows(pool.rows, band) : output_rows(pool.rows, band);
    const int skip = band.source_begin * source_width, sources = (band.source_end - band.source_begin) * source_width;
    const int64_t from = band.plane * (forward ? pool.in_plane() : pool.out_plane()) + skip;
    BandTile<T, I> tile{stage(tiles.source, source + from, sources) - skip, nullptr};
    if (source_index) tile.indices = stage(tiles.index, source_index + from, sources) - skip;
    __syncthreads();
    const int64_t to = band.plane * (forward ? pool.out_plane() : pool.in_plane()) + band.first * width;
    const int count = band.rows * width;
    T* results = place_for(tiles.result, result + to);
    I* indices = result_index ? place_for(tiles.index, result_index + to) : nullptr;
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x))
      narrow(compute(tile, band.first + i / width, i % width, indices + i), results[i]);
    __syncthreads();
    unstage(result + to, results, count);
    if (result_index) unstage(result_index + to, indices, count);
    __syncthreads();
  }
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_forward_band(Pooling<int> pool, Bands bands, const T* x, T* y, Index<kind>* index) {
  using I = Index<kind>;
  I* indices = kind == MaxIndex::none ? nullptr : index;
  each_band<true, T, I>(pool, bands, x, nullptr, y, indices, [&](const BandTile<T, I>& tile, int p, int q, I* at) {
    const Span<int> across = pool.rows.window(p), along = pool.columns.window(q);
    Maximum<T, kind, int> maximum(pool, across, along);
    for (int r = 0; r < across.count; ++r)
      for (int s = 0; s < along.count; ++s)
        maximum.add(widen(tile.values[(across.first + r * across.step) * pool.columns.in + along.first + s * along.step]),
                    maximum.index(pool, across, along, r, s));
    if constexpr (kind != MaxIndex::none) *at = I(maximum.at);
    return maximum.best;
  });
}

template <class T, MaxIndex kind>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    max_backward_band(Pooling<int> pool, Bands bands, const T* gy, const Index<kind>* index, T* gx) {
  using I = Index<kind>;
  each_band<false, T, I>(pool, bands, gy, index, gx, nullptr, [&](const BandTile<T, I>& tile, int h, int w, I*) {
    return gathered_maximum<T, kind>(
        pool, h, w, [&](int p, int q) { return widen(tile.values[p * pool.columns.out + q]); },
        [&](int p, int q) { return tile.indices[p * pool.columns.out + q]; });
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    average_forward_band(Pooling<int> pool, Bands bands, const T* x, T* y) {
  using Tile = BandTile<T, uint8_t>;
  each_band<true, T, uint8_t>(pool, bands, x, nullptr, y, nullptr, [&](const Tile& tile, int p, int q, uint8_t*) {
    const Span<int> across = pool.rows.window(p), along = pool.columns.window(q);
    Compute<T> sum = 0;
    for (int r = 0; r < across.count; ++r)
      for (int s = 0; s < along.count; ++s) sum += widen(tile.values[(across.first + r) * pool.columns.in + along.first + s]);
    const bool empty = across.count == 0 || along.count == 0;
    return empty ? Compute<T>(0) : sum / divisor_of<T>(pool, across, along);
  });
}

template <class T>
__global__ void __launch_bounds__(threads_a_block, blocks_resident)
    average_backward_band(Pooling<int> pool, Bands bands, const T* gy, T* gx) {
  using Tile = BandTile<T, uint8_t>;
  each_band<false, T, uint8_t>(pool, bands, gy, nullptr, gx, nullptr, [&](const Tile& tile, int h, int w, uint8_t*) {
    return gathered_average<T>(pool, h, w, [&](int p, int q) { return widen(tile.values[p * pool.columns.out + q]); });
  });
}

// ---- choosing ----

// `source_rows(rows)` bounds the source rows of `rows` neighbouring destination rows. Indices go with the sources of a backward
// pass and with the results of a forward pass.
template <class SourceRows>
Bands cut(const PoolProblem& p, int64_t total_rows, int64_t source_width, int64_t result_width, int64_t source_bytes,
          int64_t result_bytes, const SourceRows& source_rows) {
  const auto elements = [](int64_t count) { return (count + 16 + 15) / 16 * 16; };  // 16 for the skew within an access
  for (int64_t rows = total_rows < 64 ? total_rows : 64; rows > 0; rows /= 2) {
    const int64_t source = elements(source_rows(rows) * source_width), result = elements(rows * result_width);
    const int64_t bytes = source * source_bytes + result * result_bytes;
    if (bytes > band_bytes) continue;
    const int64_t count = (total_rows + rows - 1) / rows;
    return {int(rows), int(count), int(source), int(result), p.n * p.c * count, bytes};
  }
  return {};
}

Bands input_bands(const PoolProblem& p, int64_t size, int64_t index_size) {
  return cut(p, p.p, p.w, p.q, size, size + index_size, [&](int64_t rows) {
    const int64_t span = p.adaptive ? (rows * p.h + p.p - 1) / p.p + 2 : (rows - 1) * p.stride_h + (p.r - 1) * p.dilation_h + 1;
    return span < p.h ? span : p.h;
  });
}
Bands output_bands(const PoolProblem& p, int64_t size, int64_t index_size) {
  return cut(p, p.h, p.q, p.w, size + index_size, size, [&](int64_t rows) {
    const int64_t span = p.adaptive ? (rows * p.p + p.h - 1) / p.h + 2 : (rows + (p.r - 1) * p.dilation_h) / p.stride_h + 2;
    return span < p.p ? span : p.p;
  });
}

bool is_last(const PoolProblem& p) { return p.layout == Layout::channels_last; }

template <class T>
bool packs_channels(const PoolProblem& p, const void* a, const void* b, const void* index) {
  const auto aligned = [](const void* q) { return reinterpret_cast<uintptr_t>(q) % 16 == 0; };
  return is_last(p) && fits_32_bits(p) && p.c % pack<T> == 0 && aligned(a) && aligned(b) && aligned(index);
}

template <class T>
dim3 grid_of_packs(const PoolProblem& p, int64_t pixels) {
  return {blocks_for(pixels * (p.c / pack<T>), threads_a_block), unsigned(p.n < 65535 ? p.n : 65535)};
}

Place place_in(const PoolProblem& p) { return {p.c, p.h * p.w, is_last(p)}; }
Place place_out(const PoolProblem& p) { return {p.c, p.p * p.q, is_last(p)}; }
dim3 grid_of(const Place& place, int64_t n) { return {blocks_for(n * place.channels * place.pixels, threads_a_block)}; }

template <class T, MaxIndex kind>
void max_forward_of(const PoolProblem& p, const T* x, T* y, Index<kind>* index, void* stream) {
  if (packs_channels<T>(p, x, y, index))
    return launch("max_forward_last", max_forward_last<T, kind>, grid_of_packs<T>(p, p.p * p.q), dim3(threads_a_block), 0,
                  stream, pooling_of<int>(p), x, y, index);
  const Bands bands =
      is_last(p) || !fits_32_bits(p) ? Bands{} : input_bands(p, sizeof(T), kind == MaxIndex::none ? 0 : sizeof(Index<kind>));
  if (bands.rows)
    return launch("max_forward_band", max_forward_band<T, kind>, dim3(blocks_for(bands.blocks, 1)), dim3(threads_a_block),
                  size_t(bands.shared_bytes), stream, pooling_of<int>(p), bands, x, y, index);
  launch("max_forward_any", max_forward_any<T, kind>, grid_of(place_out(p), p.n), dim3(threads_a_block), 0, stream,
         pooling_of<int64_t>(p), place_in(p), place_out(p), x, y, index);
}

template <class T, MaxIndex kind>
void max_backward_of(const PoolProblem& p, const T* gy, const Index<kind>* index, T* gx, void* stream) {
  if (packs_channels<T>(p, gy, gx, index))
    return launch("max_backward_last", max_backward_last<T, kind>, grid_of_packs<T>(p, p.h * p.w), dim3(threads_a_block), 0,
                  stream, pooling_of<int>(p), gy, index, gx);
  const Bands bands = is_last(p) || !fits_32_bits(p) ? Bands{} : output_bands(p, sizeof(T), sizeof(Index<kind>));
  if (bands.rows)
    return launch("max_backward_band", max_backward_band<T, kind>, dim3(blocks_for(bands.blocks, 1)), dim3(threads_a_block),
                  size_t(bands.shared_bytes), stream, pooling_of<int>(p), bands, gy, index, gx);
  launch("max_backward_any", max_backward_any<T, kind>, grid_of(place_in(p), p.n), dim3(threads_a_block), 0, stream,
         pooling_of<int64_t>(p), place_out(p), place_in(p), gy, index, gx);
}

template <class T, MaxIndex kind>
void max_gather_of(const PoolProblem& p, const T* v, const Index<kind>* index, T* y, void* stream) {
  launch("max_gather_any", max_gather_any<T, kind>, grid_of(place_out(p), p.n), dim3(threads_a_block), 0, stream,
         pooling_of<int64_t>(p), place_in(p), place_out(p), v, index, y);
}

template <class T>
void average_forward_of(const PoolProblem& p, const T* x, T* y, void* stream) {
  if (packs_channels<T>(p, x, y, nullptr))
    return launch("average_forward_last", average_forward_last<T>, grid_of_packs<T>(p, p.p * p.q), dim3(threads_a_block), 0,
                  stream, pooling_of<int>(p), x, y);
  const Bands bands = is_last(p) || !fits_32_bits(p) ? Bands{} : input_bands(p, sizeof(T), 0);
  if (bands.rows)
    return launch("average_forward_band", average_forward_band<T>, dim3(blocks_for(bands.blocks, 1)), dim3(threads_a_block),
                  size_t(bands.shared_bytes), stream, pooling_of<int>(p), bands, x, y);
  launch("average_forward_any", average_forward_any<T>, grid_of(place_out(p), p.n), dim3(threads_a_block), 0, stream,
         pooling_of<int64_t>(p), place_in(p), place_out(p), x, y);
}

template <class T>
void average_backward_of(const PoolProblem& p, const T* gy, T* gx, void* stream) {
  if (packs_channels<T>(p, gy, gx, nullptr))
    return launch("average_backward_last", average_backward_last<T>, grid_of_packs<T>(p, p.h * p.w), dim3(threads_a_block), 0,
                  stream, pooling_of<int>(p), gy, gx);
  const Bands bands = is_last(p) || !fits_32_bits(p) ? Bands{} : output_bands(p, sizeof(T), 0);
  if (bands.rows)
    return launch("average_backward_band", average_backward_band<T>, dim3(blocks_for(bands.blocks, 1)), dim3(threads_a_block),
                  size_t(bands.shared_bytes), stream, pooling_of<int>(p), bands, gy, gx);
  launch("average_backward_any", average_backward_any<T>, grid_of(place_in(p), p.n), dim3(threads_a_block), 0, stream,
         pooling_of<int64_t>(p), place_out(p), place_in(p), gy, gx);
}

}  // namespace

void max_forward(const PoolProblem& p, const void* x, void* y, void* index, MaxIndex kind, void* stream) {
  const auto run = [&](auto from, auto to) {
    using T = std::remove_pointer_t<decltype(to)>;
    if (kind == MaxIndex::none) return max_forward_of<T, MaxIndex::none>(p, from, to, nullptr, stream);
    if (kind == MaxIndex::window) return max_forward_of<T, MaxIndex::window>(p, from, to, static_cast<uint8_t*>(index), stream);
    max_forward_of<T, MaxIndex::plane>(p, from, to, static_cast<int64_t*>(index), stream);
  };
  FASTCONV_FOR_DTYPE(p.dtype, run(static_cast<const T*>(x), static_cast<T*>(y)))
}

void max_backward(const PoolProblem& p, const void* gy, const void* index, MaxIndex kind, void* gx, void* stream) {
  const auto run = [&](auto from, auto to) {
    using T = std::remove_pointer_t<decltype(to)>;
    if (kind == MaxIndex::window)
      return max_backward_of<T, MaxIndex::window>(p, from, static_cast<const uint8_t*>(index), to, stream);
    max_backward_of<T, MaxIndex::plane>(p, from, static_cast<const int64_t*>(index), to, stream);
  };
  FASTCONV_FOR_DTYPE(p.dtype, run(static_cast<const T*>(gy), static_cast<T*>(gx)))
}

void max_gather(const PoolProblem& p, const void* v, const void* index, MaxIndex kind, void* y, void* stream) {
  const auto run = [&](auto from, auto to) {
    using T = std::remove_pointer_t<decltype(to)>;
    if (kind == MaxIndex::window)
      return max_gather_of<T, MaxIndex::window>(p, from, static_cast<const uint8_t*>(index), to, stream);
    max_gather_of<T, MaxIndex::plane>(p, from, static_cast<const int64_t*>(index), to, stream);
  };
  FASTCONV_FOR_DTYPE(p.dtype, run(static_cast<const T*>(v), static_cast<T*>(y)))
}

void average_forward(const PoolProblem& p, const void* x, void* y, void* stream) {
  FASTCONV_FOR_DTYPE(p.dtype, average_forward_of<T>(p, static_cast<const T*>(x), static_cast<T*>(y), stream))
}

void average_backward(const PoolProblem& p, const void* gy, void* gx, void* stream) {
  FASTCONV_FOR_DTYPE(p.dtype, average_backward_of<T>(p, static_cast<const T*>(gy), static_cast<T*>(gx), stream))
}

}  // namespace fastconv::FASTCONV_BACKEND
