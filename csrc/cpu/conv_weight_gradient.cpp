// The weight gradient as a matrix product over pixels: gw[k][e] = the sum over output pixels of gy[k][pixel] * x[e][pixel],
// where e counts channels times taps and x[e][pixel] is what the forward convolution reads.
//
// Pixels are taken in chunks that are summed in registers; chunk after chunk is added to sums in memory, which are gw itself
// where its order allows. Where sums are few, the pixels are also cut into slices, so that many threads find work; slices
// depend on the problem alone, and their sums are added in order.
#include "conv.h"
#include "gemm_tile.h"
#include "im2col.h"
#include "parallel.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr bool wide = FASTCONV_VECTOR_BYTES == 64;  // 32 registers instead of 16
constexpr int64_t most_slices = 16;
constexpr int64_t sums_to_slice = 1 << 18;  // below so many sums in all slices, slice
constexpr int64_t chunk_pixels = 256;
constexpr int64_t e_step = wide ? 96 : 48;  // threads share e in multiples of it: whole tiles

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Sizes are per group.
template <class T>
struct Operands {
  bool channels_last, padded_rows;
  const T *x, *gy;
  int64_t groups, c, k, taps, pixels, out_pixels;  // out_pixels: of one image
  PixelGrid grid;
  int64_t gy_image, gy_channel, gy_pixel;  // strides

  Operands(const ConvProblem& p, const ConvArgs& args, Workspace& space)
      : channels_last(p.layout == Layout::channels_last),
        padded_rows(PaddedRows<T>::worth(p, chunk_pixels)),
        x(static_cast<const T*>(args.x)),
        gy(static_cast<const T*>(args.gy)),
        groups(p.groups),
        c(p.c / p.groups),
        k(p.k / p.groups),
        taps(p.r * p.s),
        pixels(p.n * p.p * p.q),
        out_pixels(p.p * p.q),
        gy_image(p.k * out_pixels),
        gy_channel(channels_last ? 1 : out_pixels),
        gy_pixel(channels_last ? p.k : 1) {
    Tap* row_taps = space.take<Tap>(p.r);
    Tap* column_taps = space.take<Tap>(p.s);
    if (row_taps) {
      for (int64_t r = 0; r < p.r; ++r) row_taps[r] = {r * p.dilation_h - p.pad_top, r};
      for (int64_t s = 0; s < p.s; ++s) column_taps[s] = {s * p.dilation_w - p.pad_left, s};
    }
    grid = {p.p, p.q, p.stride_h, p.stride_w, p.h, p.w, p.c * p.h * p.w, 0, 0, 0, row_taps, column_taps, p.r, p.s};
    if (channels_last)
      grid.channel = 1, grid.row = p.w * p.c, grid.column = p.c;
    else
      grid.channel = p.h * p.w, grid.row = p.w, grid.column = 1;
  }

  int64_t reduction() const { return c * taps; }
  const T* x_of(int64_t group) const { return x + group * c * grid.channel; }
  const T* gy_of(int64_t group, int64_t channel) const { return gy + (group * k + channel) * gy_channel; }
  // Whether e = tap * channels + channel, as NHWC has them, and not channel * taps + tap.
  bool channels_inner() const { return channels_last && !padded_rows; }
};

// Sums go to memory (first) or are added to it.
template <class T, int rows, int vectors>
inline __attribute__((always_inline)) void add_tile(const Vec<T> (&acc)[rows][vectors], T* sums, int64_t pitch, int64_t columns,
                                                    bool first) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      T* to = sums + i * pitch + v * L;
      const int left = int(minimum<int64_t>(columns - v * L, L));
      if (left == L)
        store(to, first ? acc[i][v] : load(to) + acc[i][v]);
      else if (left > 0)
        store_first(to, first ? acc[i][v] : load_first(to, left) + acc[i][v], left);
    }
}

// The sums are far away: they come while the tile is computed.
template <class T>
inline __attribute__((always_inline)) void fetch_sums(const T* sums, int64_t pitch, int rows, int width) {
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    __builtin_prefetch(sums + i * pitch, 1);
    __builtin_prefetch(sums + i * pitch + width - 1, 1);
  }
}

// Vectors of output channels: x as [e][pixel], e = channel * taps + tap, times gy as [pixel][width of k]. For NCHW, where only
// gy is transposed, and for NHWC with so few channels that copies of them would be too short.
template <class T>
struct PixelRows {
  static constexpr int vectors = 2, rows = wide ? 12 : 6, width = vectors * lanes<T>;
  static constexpr int64_t chunk = chunk_pixels, block_e = 192 / rows * rows, block_k = width;
  // Rows begin a cache line apart from a power of two.
  static constexpr int64_t pitch = chunk + 64 / int64_t(sizeof(T));

  const Operands<T>& o;
  T *x, *gy;
  PaddedRows<T> padded;

  PixelRows(const Operands<T>& operands, const ConvProblem& problem, Workspace& space)
      : o(operands), x(space.take<T>(block_e * pitch)), gy(space.take<T>(chunk * width)) {
    if (o.padded_rows) padded = PaddedRows<T>(problem, chunk, space);
  }

  // Sums lie as [panel of k][e][width].
  static int64_t sums_count(const Operands<T>& o) { return o.reduction() * ceil_div(o.k, width) * width; }
  static int64_t sums_offset(const Operands<T>& o, int64_t k, int64_t e) {
    return k / width * o.reduction() * width + e * width;
  }

  void begin(int64_t group, int64_t first, int64_t end) {
    if (o.padded_rows) padded.fill(o.grid, o.x_of(group), first, end);
  }

  void read_x(int64_t group, int64_t begin_e, int64_t end_e, int64_t first, int64_t end) {
    if (o.grid.pointwise()) return copy_channels(group, begin_e, end_e, first, end);
    for (int64_t i = 0; i < end - first; i += lanes<T>) {
      const PixelVector<T> pixels(o.grid, first + i, end);
      if (o.padded_rows)
        padded.read(o.grid, pixels, begin_e, end_e, x + i, pitch);
      else
        read_taps(o.grid, pixels, o.x_of(group), begin_e, end_e, x + i, pitch);
    }
  }

  void copy_channels(int64_t group, int64_t begin_e, int64_t end_e, int64_t first, int64_t end) {
    for (int64_t at = first, count; at < end; at += count) {
      const int64_t within = at % o.out_pixels;
      count = minimum(end - at, o.out_pixels - within);
      const T* from = o.x_of(group) + at / o.out_pixels * o.grid.image + begin_e * o.grid.channel + within;
      T* to = x + at - first;
      for (int64_t e = begin_e; e < end_e; ++e, from += o.grid.channel, to += pitch) {
        int64_t i = 0;
        for (; i + lanes<T> <= count; i += lanes<T>) store(to + i, load(from + i));
        if (i < count) store(to + i, load_first(from + i, int(count - i)));
      }
    }
  }

  void read_gy(int64_t group, int64_t begin_k, int64_t end_k, int64_t first, int64_t end) {
    const int64_t channels = end_k - begin_k;
    const T* from = o.gy_of(group, begin_k);
    T* to = gy;
    if (o.channels_last) {
      from += first * o.gy_pixel;
      for (int64_t i = first; i < end; ++i, from += o.gy_pixel, to += width) {
        if (channels == width)
          std::memcpy(to, from, width * sizeof(T));
        else
          for (int j = 0; j < width; ++j) to[j] = j < channels ? from[j] : T(0);
      }
      return;
    }
    for (int64_t at = first, count; at < end; at += count) {
      const int64_t within = at % o.out_pixels;
      count = minimum(end - at, o.out_pixels - within);
      const T* image = from + at / o.out_pixels * o.gy_image + within;
      for (int64_t i = 0; i < count; i += lanes<T>) {
        const int valid = int(minimum<int64_t>(count - i, lanes<T>));
        for (int part = 0; part < vectors; ++part) {
          Vec<T> block[lanes<T>];
#pragma GCC unroll 16
          for (int j = 0; j < lanes<T>; ++j) {
            const int64_t channel = part * lanes<T> + j;
            const T* pixel = image + channel * o.gy_channel + i;
            block[j] = channel >= channels ? Vec<T>{} : valid == lanes<T> ? load(pixel) : load_first(pixel, valid);
          }
          transpose<T>(block);
          for (int j = 0; j < valid; ++j) store(to + (i + j) * width + part * lanes<T>, block[j]);
        }
      }
      to += count * width;
    }
  }

  template <int E>
  static __attribute__((noinline)) void tile(int64_t count, const T* x, const T* gy, T* sums, bool first) {
    fetch_sums(sums, width, E, width);
    Vec<T> acc[E][vectors];
    multiply_tile<T, E, vectors, pitch, 1>(count, x, gy, acc);
    add_tile(acc, sums, width, width, first);
  }

  template <int E = rows>
  static void any_tile(int64_t left, int64_t count, const T* x, const T* gy, T* sums, bool first) {
    if constexpr (E > 1)
      if (left < E) return any_tile<E - 1>(left, count, x, gy, sums, first);
    tile<E>(count, x, gy, sums, first);
  }

  void multiply(int64_t count, int64_t, int64_t e_count, T* sums, bool first) const {
    for (int64_t e = 0; e < e_count; e += rows) any_tile(e_count - e, count, x + e * pitch, gy, sums + e * width, first);
  }

  void add_gy(int64_t, int64_t begin_k, int64_t end_k, int64_t first, int64_t end, T* sums, bool first_chunk) const {
    Vec<T> sum[vectors] = {};
    for (int64_t i = 0; i < end - first; ++i)
      for (int v = 0; v < vectors; ++v) sum[v] += load(gy + i * width + v * lanes<T>);
    for (int64_t j = 0; j < end_k - begin_k; ++j) {
      const T more = sum[j / lanes<T>][j % lanes<T>];
      sums[j] = first_chunk ? more : sums[j] + more;
    }
  }

  // Adds the slices, which are `apart` from each other, of at most `finish_k` output channels from `begin_k` of a group on.
  static constexpr int64_t finish_k = width;
  static void finish(const Operands<T>& o, const T* sums, int64_t slices, int64_t apart, int64_t begin_k,
                     bool weight_channels_last, T* gw) {
    constexpr int L = lanes<T>;
    const int64_t length = o.reduction();
    const bool as_is = o.taps == 1 || !weight_channels_last;
    for (int64_t k = begin_k; k < minimum(begin_k + width, o.k); k += L)
      for (int64_t e = 0; e < length; e += L) {
        const int count = int(minimum<int64_t>(length - e, L));
        const T* from = sums + sums_offset(o, begin_k, e) + k - begin_k;
        Vec<T> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          block[i] = i < count ? load(from + i * width) : Vec<T>{};
          for (int64_t slice = 1; i < count && slice < slices; ++slice) block[i] += load(from + slice * apart + i * width);
        }
        transpose<T>(block);
        for (int j = 0; j < minimum<int64_t>(o.k - k, L); ++j) {
          T* to = gw + (k + j) * length;
          if (as_is && count == L)
            store(to + e, block[j]);
          else
            for (int i = 0; i < count; ++i) to[as_is ? e + i : (e + i) % o.taps * o.c + (e + i) / o.taps] = block[j][i];
        }
      }
  }
};

// Vectors of e = tap * channels + channel: gy as [pixel][rows of k] times x as [pixel][width of e]. For NHWC.
template <class T>
struct ChannelVectors {
  static constexpr int vectors = 2, rows = wide ? 12 : 6, width = vectors * lanes<T>;
  static constexpr int64_t chunk = chunk_pixels, block_e = 256 / width * width, block_k = 132;
  // Panels begin a cache line apart from a power of two.
  static constexpr int64_t x_panel = chunk * width + 64 / int64_t(sizeof(T)), gy_panel = chunk * rows + 64 / int64_t(sizeof(T));

  const Operands<T>& o;
  T *x, *gy, *zeros;
  const T** pointers;  // what the pixels read under a tap

  ChannelVectors(const Operands<T>& operands, const ConvProblem&, Workspace& space)
      : o(operands),
        x(space.take<T>(block_e / width * x_panel)),
        gy(space.take<T>(block_k / rows * gy_panel)),
        zeros(space.take<T>(o.c)),
        pointers(space.take<const T*>(chunk)) {
    if (zeros)
      for (int64_t i = 0; i < o.c; ++i) zeros[i] = T(0);
  }

  // Sums lie as [k][e], like gw.
  static int64_t sums_count(const Operands<T>& o) { return o.k * o.reduction(); }
  static int64_t sums_offset(const Operands<T>& o, int64_t k, int64_t e) { return k * o.reduction() + e; }

  void begin(int64_t, int64_t, int64_t) {}

  void read_x(int64_t group, int64_t begin_e, int64_t end_e, int64_t first, int64_t end) {
    for (int64_t e = begin_e, count; e < end_e; e += count) {
      const int64_t channel = e % o.c;
      count = minimum(end_e - e, o.c - channel);
      point(group, e / o.c, first, end);
      for (int64_t i = 0; i < end - first; ++i) copy_channels(pointers[i] + channel, count, e - begin_e, i);
    }
    const int64_t used = (end_e - begin_e) % width;
    T* last = x + (end_e - begin_e) / width * x_panel;
    if (used)
      for (int64_t i = 0; i < end - first; ++i)
        for (int64_t j = used; j < width; ++j) last[i * width + j] = T(0);
  }

  // To the panels, from place e of the block on.
  inline __attribute__((always_inline)) void copy_channels(const T* from, int64_t count, int64_t e, int64_t pixel) const {
    T* to = x + e / width * x_panel + pixel * width;
    for (int64_t lane = e % width; count > 0; to += x_panel, lane = 0) {
      const int64_t length = minimum(width - lane, count);
      if (length == width) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store(to + v * lanes<T>, load(from + v * lanes<T>));
      } else {
        for (int64_t j = 0; j < length; ++j) to[lane + j] = from[j];
      }
      from += length, count -= length;
    }
  }

  // The first channel that each pixel reads under a tap, or zeros.
  void point(int64_t group, int64_t tap, int64_t first, int64_t end) {
    const PixelGrid& grid = o.grid;
    const int64_t dh = grid.row_taps[tap / grid.column_tap_count].offset,
                  dw = grid.column_taps[tap % grid.column_tap_count].offset;
    int64_t column = first % grid.columns, row = first / grid.columns % grid.rows, n = first / o.out_pixels;
    for (int64_t i = 0; i < end - first; ++i) {
      const int64_t h = row * grid.stride_h + dh, w = column * grid.stride_w + dw;
      const bool inside = h >= 0 && h < grid.height && w >= 0 && w < grid.width;
      pointers[i] = inside ? o.x_of(group) + n * grid.image + h * grid.row + w * grid.column : zeros;
      if (++column == grid.columns) {
        column = 0;
        if (++row == grid.rows) row = 0, ++n;
      }
    }
  }

  void read_gy(int64_t group, int64_t begin_k, int64_t end_k, int64_t first, int64_t end) {
    const T* from = o.gy_of(group, begin_k) + first * o.gy_pixel;
    for (int64_t i = 0; i < end - first; ++i, from += o.gy_pixel) {
      T* to = gy;
      int64_t j = 0;
      // A vector is more than a panel is wide: what is too much, the next pixel overwrites.
      if constexpr (lanes<T> >= rows)
        for (; j + lanes<T> <= end_k - begin_k; j += rows, to += gy_panel) store(to + i * rows, load(from + j));
      for (; j + rows <= end_k - begin_k; j += rows, to += gy_panel) std::memcpy(to + i * rows, from + j, rows * sizeof(T));
      const int64_t left = end_k - begin_k - j;
      for (int64_t r = 0; r < left; ++r) to[i * left + r] = from[j + r];
    }
  }

  template <int K>
  static __attribute__((noinline)) void tile(int64_t count, const T* gy, const T* x, T* sums, int64_t sum_pitch, int64_t valid,
                                             bool first) {
    fetch_sums(sums, sum_pitch, K, width);
    Vec<T> acc[K][vectors];
    multiply_tile<T, K, vectors>(count, gy, x, acc);
    add_tile(acc, sums, sum_pitch, valid, first);
  }

  template <int K = rows>
  static void any_tile(int64_t channels, int64_t count, const T* gy, const T* x, T* sums, int64_t sum_pitch, int64_t valid,
                       bool first) {
    if constexpr (K > 1)
      if (channels < K) return any_tile<K - 1>(channels, count, gy, x, sums, sum_pitch, valid, first);
    tile<K>(count, gy, x, sums, sum_pitch, valid, first);
  }

  void multiply(int64_t count, int64_t k_count, int64_t e_count, T* sums, bool first) const {
    const int64_t sum_pitch = o.reduction();
    for (int64_t e = 0; e < e_count; e += width)
      for (int64_t j = 0; j < k_count; j += rows)
        any_tile(k_count - j, count, gy + j / rows * gy_panel, x + e / width * x_panel, sums + j * sum_pitch + e, sum_pitch,
                 e_count - e, first);
  }

  void add_gy(int64_t group, int64_t begin_k, int64_t end_k, int64_t first, int64_t end, T* sums, bool first_chunk) const {
    for (int64_t j = begin_k; j < end_k; j += lanes<T>) {
      const int channels = int(minimum<int64_t>(end_k - j, lanes<T>));
      const T* from = o.gy_of(group, j) + first * o.gy_pixel;
      Vec<T> sum{};
      for (int64_t i = first; i < end; ++i, from += o.gy_pixel) sum += load_first(from, channels);
      T* to = sums + j - begin_k;
      store_first(to, first_chunk ? sum : load_first(to, channels) + sum, channels);
    }
  }

  // Adds the slices, which are `apart` from each other, of an output channel of a group.
  static constexpr int64_t finish_k = 1;
  static void finish(const Operands<T>& o, const T* sums, int64_t slices, int64_t apart, int64_t k, bool weight_channels_last,
                     T* gw) {
    const int64_t length = o.reduction();
    const bool as_is = o.taps == 1 || weight_channels_last;
    const T* from = sums + k * length;
    T* to = gw + k * length;
    for (int64_t e = 0; e < length; e += lanes<T>) {
      const int count = int(minimum<int64_t>(length - e, lanes<T>));
      const bool whole = count == lanes<T>;
      Vec<T> sum{};
      for (int64_t slice = 0; slice < slices; ++slice) {
        const T* part = from + slice * apart + e;
        const Vec<T> more = whole ? load(part) : load_first(part, count);
        sum = slice ? sum + more : more;
      }
      if (as_is && whole)
        store(to + e, sum);
      else
        for (int i = 0; i < count; ++i) to[as_is ? e + i : (e + i) % o.c * o.taps + (e + i) / o.c] = sum[i];
    }
  }
};

template <class T, class Core>
struct WeightGradient {
  Workspace space;
  Operands<T> operands;
  T *gw, *gb;
  bool in_place;  // the sums are gw
  bool weight_channels_last;
  int64_t slices, group_sums;
  T *sums, *bias_sums;  // [slice][group], in the core's order, and [slice][group][k]
  char* scratch;
  int64_t scratch_bytes, bytes;

  WeightGradient(const ConvProblem& p, const ConvArgs& args)
      : space(args.workspace),
        operands(p, args, space),
        gw(static_cast<T*>(args.gw)),
        gb(static_cast<T*>(args.gb)),
        weight_channels_last(p.weight_layout == Layout::channels_last) {
    const Operands<T>& o = operands;
    group_sums = Core::sums_count(o);
    const int64_t all = o.groups * group_sums;
    slices = minimum(minimum(ceil_div(o.pixels, Core::chunk), most_slices), maximum<int64_t>(1, sums_to_slice / all));
    in_place = slices == 1 && Core::finish_k == 1 && (o.taps == 1 || weight_channels_last);
    sums = in_place ? gw : space.take<T>(slices * all);
    bias_sums = space.take<T>(slices * p.k);
    Workspace one(nullptr);
    (void)Core(o, p, one);
    scratch_bytes = one.bytes();
    scratch = space.take<char>(scratch_bytes * args.threads);
    bytes = space.bytes();
  }

  // The sums of one slice and group, of e in a range.
  void sum_slice(int64_t slice, int64_t group, Range es, Core& core) const {
    const Operands<T>& o = operands;
    const Range chunks = share(ceil_div(o.pixels, Core::chunk), int(slice), int(slices));
    T* const gw_sums = sums + (slice * o.groups + group) * group_sums;
    T* const gb_sums = bias_sums + (slice * o.groups + group) * o.k;
    for (int64_t i = chunks.begin; i < chunks.end; ++i) {
      const int64_t first = i * Core::chunk, end = minimum(first + Core::chunk, o.pixels);
      const bool first_chunk = i == chunks.begin;
      core.begin(group, first, end);
      for (int64_t e = es.begin; e < es.end; e += Core::block_e) {
        const int64_t end_e = minimum(e + Core::block_e, es.end);
        core.read_x(group, e, end_e, first, end);
        for (int64_t j = 0; j < o.k; j += Core::block_k) {
          const int64_t end_k = minimum(j + Core::block_k, o.k);
          core.read_gy(group, j, end_k, first, end);
          core.multiply(end - first, end_k - j, end_e - e, gw_sums + Core::sums_offset(o, j, e), first_chunk);
          if (gb && e == 0) core.add_gy(group, j, end_k, first, end, gb_sums + j, first_chunk);
        }
      }
    }
  }

  void run(const ConvProblem& problem, int threads) const {
    const Operands<T>& o = operands;
    parallel(threads, [&](int id, int parts) {
      Workspace mine(scratch + id * scratch_bytes);
      Core core(o, problem, mine);
      // e is split only as far as threads need it: every part reads the same gy.
      const int64_t units = o.groups * slices, steps = ceil_div(o.reduction(), e_step);
      const int64_t splits = units % parts ? minimum<int64_t>(parts, steps) : 1;
      const Range work = share(units * splits, id, parts);
      for (int64_t i = work.begin; i < work.end; ++i) {
        const Range es = share(steps, int(i % splits), int(splits));
        sum_slice(i / splits % slices, i / splits / slices, {es.begin * e_step, minimum(es.end * e_step, o.reduction())}, core);
      }
      if (parts > 1) barrier();
      const int64_t pieces = ceil_div(o.k, Core::finish_k);
      const Range written = share(in_place ? 0 : o.groups * pieces, id, parts);
      for (int64_t i = written.begin; i < written.end; ++i) {
        const int64_t group = i / pieces;
        Core::finish(o, sums + group * group_sums, slices, o.groups * group_sums, i % pieces * Core::finish_k,
                     weight_channels_last, gw + group * o.k * o.reduction());
      }
      const Range biases = share(gb ? o.groups * o.k : 0, id, parts);
      for (int64_t i = biases.begin; i < biases.end; ++i) {
        T sum = bias_sums[i];
        for (int64_t slice = 1; slice < slices; ++slice) sum += bias_sums[slice * o.groups * o.k + i];
        gb[i] = sum;
      }
    });
  }
};

// Calls f with the kernel for the problem's type and layout.
template <class T, class F>
auto with_core(const ConvProblem& p, const ConvArgs& args, const F& f) {
  Workspace none(nullptr);
  return Operands<T>(p, args, none).channels_inner() ? f(WeightGradient<T, ChannelVectors<T>>(p, args))
                                                     : f(WeightGradient<T, PixelRows<T>>(p, args));
}
template <class F>
auto with_kernel(const ConvProblem& p, const ConvArgs& args, const F& f) {
  return p.dtype == Dtype::float64 ? with_core<double>(p, args, f) : with_core<float>(p, args, f);
}

void run(const ConvProblem& problem, const ConvArgs& args) {
  with_kernel(problem, args, [&](const auto& kernel) { kernel.run(problem, args.threads); });
}

int64_t workspace_bytes(const ConvProblem& problem, int threads) {
  ConvArgs args{};
  args.threads = threads;
  return with_kernel(problem, args, [](const auto& kernel) { return kernel.bytes; });
}

bool always(const ConvProblem&) { return true; }

}  // namespace

const ConvAlgorithm implicit_gemm_weight_gradient = {
    "implicit_gemm", Primitive::weight_gradient, always, always, workspace_bytes, run};

}  // namespace fastconv::cpu::FASTCONV_ISA
