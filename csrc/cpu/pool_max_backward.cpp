// Max pooling: the two derivatives, which use the positions of the maxima.
//
// Every index is checked before it is used. A window that lies wholly in the padding, and a window index that selects padding,
// receive and give nothing. Sums run over the outputs in row-major order, in every path.
#include <cstdlib>

#include "pool.h"
#include "pool_vectors.h"
#include "pool_windows.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

constexpr int64_t invalid = -1, nothing = -2;

// Where the indices of one problem point: the position in the input plane, `invalid` or `nothing`.
template <MaxIndex kind>
class Positions {
 public:
  explicit Positions(const PoolProblem& p) : width_(p.w), plane_(p.h * p.w) {
    if (kind == MaxIndex::plane) return;
    const int64_t pitch = horizontal(p).positions();
    codes_ = vertical(p).positions() * pitch;
    for (int64_t code = 0; code < codes_; ++code) {
      row_taps_[code] = uint8_t(code / pitch);
      column_taps_[code] = uint8_t(code % pitch);
    }
  }

  // Of the window at rows `across` and columns `along`.
  FASTCONV_INLINE int64_t operator()(const Span& across, const Span& along, int64_t index) const {
    if (kind == MaxIndex::plane) {
      if (across.count == 0 || along.count == 0) return nothing;
      return index < 0 || index >= plane_ ? invalid : index;
    }
    if (index >= codes_) return invalid;
    const int64_t i = row_taps_[index] - across.tap, j = column_taps_[index] - along.tap;
    if (i < 0 || i >= across.count || j < 0 || j >= along.count) return nothing;
    return (across.first + i * across.step) * width_ + along.first + j * along.step;
  }

 private:
  int64_t width_, plane_, codes_ = 0;
  uint8_t row_taps_[256], column_taps_[256];
};

// Sums of the 16-bit types are formed in float, in a plane of their own: this one, or as many parts of it as memory allows.
class FloatPlane {
 public:
  FloatPlane(bool needed, int64_t size) {
    if (!needed) return;
    capacity_ = minimum<int64_t>(size, 4 << 20);
    memory_ = static_cast<float*>(std::malloc(size_t(capacity_) * sizeof(float)));
    if (!memory_) capacity_ = minimum<int64_t>(size, 1024);
  }
  ~FloatPlane() { std::free(memory_); }
  FloatPlane(const FloatPlane&) = delete;
  FloatPlane& operator=(const FloatPlane&) = delete;

  float* data() { return memory_ ? memory_ : small_; }
  int64_t capacity() const { return capacity_; }

 private:
  float* memory_ = nullptr;
  int64_t capacity_ = 0;
  float small_[1024];
};

// Any problem and any indices inside the plane, in blocks of channels of one image: a block's gradient belongs to one thread.
template <class T, MaxIndex kind, bool last>
bool backward_scattered(const PoolProblem& problem, const T* gy, const IndexType<kind>* index, T* gx, int threads) {
  using C = Compute<T>;
  constexpr bool widen = sizeof(T) < sizeof(C);
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Positions<kind> positions(problem);
  const int64_t block = last ? minimum<int64_t>(problem.c, widen ? 16 : 64) : 1, blocks = (problem.c + block - 1) / block;
  const int64_t pixel = last ? problem.c : 1, inputs = problem.h * problem.w, outputs = problem.p * problem.q;
  bool valid = true;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * blocks, id, parts);
    bool mine_valid = true;
    FloatPlane sums(widen, inputs * block);
    // Positions that are summed at a time: all, unless they need sums in float and memory is short.
    const int64_t span = widen ? maximum<int64_t>(sums.capacity() / block, 1) : inputs;
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t n = item / blocks, begin = item % blocks * block, count = last ? minimum(block, problem.c - begin) : 1;
      const int64_t offset = last ? begin : begin * inputs;
      const int64_t out_offset = n * problem.c * outputs + (last ? begin : begin * outputs);
      T* image = gx + n * problem.c * inputs + offset;
      for (int64_t from = 0; from < inputs; from += span) {
        const int64_t to = minimum(from + span, inputs);
        if constexpr (widen)
          for (int64_t i = 0; i < (to - from) * count; ++i) sums.data()[i] = 0;
        else
          for (int64_t i = from; i < to; ++i)
            for (int64_t c = 0; c < count; ++c) image[i * pixel + c] = 0;
        for (int64_t p = 0; p < problem.p; ++p) {
          const Span across = rows.window(p);
          for (int64_t q = 0; q < problem.q; ++q) {
            const Span along = columns.window(q);
            const int64_t out = out_offset + (p * problem.q + q) * pixel;
            for (int64_t c = 0; c < count; ++c) {
              const int64_t position = positions(across, along, index[out + c]);
              if (position == invalid) mine_valid = false;
              if (position < from || position >= to) continue;
              if constexpr (widen)
                sums.data()[(position - from) * count + c] += load_one(gy + out + c);
              else
                image[position * pixel + c] += gy[out + c];
            }
          }
        }
        if constexpr (widen)
          for (int64_t i = from; i < to; ++i)
            for (int64_t c = 0; c < count; ++c) store_one(image + i * pixel + c, sums.data()[(i - from) * count + c]);
      }
    }
    if (!mine_valid) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

// Which windows that contain an input select it: those whose index is the input's tap. NHWC, any windows.
template <class T>
bool backward_channels_last(const PoolProblem& problem, const T* gy, const uint8_t* index, T* gx, int threads) {
  using C = Compute<T>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t pitch = columns.positions(), codes = rows.positions() * pitch, pixel = problem.c;
  const bool past = put_past_caches(gx, problem.n * problem.h * problem.w, pixel);
  bool valid = true;
  struct Row {
    int64_t image, h;  // the first pixel of the image's outputs
    Range above;
  };
  struct Column {
    int64_t w;
    Range beside;
  };
  share_channel_blocks<C>(
      problem.n, problem.h, problem.w, problem.c, threads,
      [&](int64_t n, int64_t h) { return Row{n * problem.p * problem.q, h, rows.covering(h)}; },
      [&](const Row&, int64_t w) { return Column{w, columns.covering(w)}; },
      [&](int64_t in, const Row& row, const Column& column, int64_t c, int64_t count) FASTCONV_INLINE_LAMBDA {
        each_vector<C>(count, [&](auto vectors, int64_t i, int m) FASTCONV_INLINE_LAMBDA {
          Vec<C> sums[vectors.count] = {};
          Mask<C> bad{};
          for (int64_t p = row.above.begin; p < row.above.end; ++p) {
            const int64_t r = rows.tap(p, row.h);
            if (r < 0) continue;
            for (int64_t q = column.beside.begin; q < column.beside.end; ++q) {
              const int64_t s = columns.tap(q, column.w);
              if (s < 0) continue;
              const int64_t at = (row.image + p * problem.q + q) * pixel + c + i;
              const Mask<C> here = splat_code<C>(r * pitch + s);
              for (int v = 0; v < vectors.count; ++v) {
                const Mask<C> its_code = load_codes_part<C>(index + at + v * step, m);
                const Vec<C> term = load_part(gy + at + v * step, m);
                sums[v] += its_code == here ? term : Vec<C>{};
                bad |= its_code >= splat_code<C>(codes);
              }
            }
          }
          for (int v = 0; v < vectors.count; ++v) put(gx + in * pixel + c + i + v * step, sums[v], m, past);
          if (any<C>(bad)) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
        });
      });
  return valid;
}

// How many rows of outputs see one input row, and how many of those are kept as lines: a power of two.
constexpr int64_t ring_rows = 8;

// A kept row of outputs that sees the input row at hand.
template <class C>
struct SeenRow {
  const C* terms;          // gradients
  const CodeOf<C>* codes;  // indices
  CodeOf<C> first_code;    // the index that stands for the input row and the window's first column
};

// The gradients of an input row, for each of the positions congruent modulo the stride, from so many rows of outputs.
template <class C, int stride, class Count>
FASTCONV_INLINE void sum_row(const SeenRow<C>* rows, Count seen, int64_t kernel, int64_t count, C* out) {
  constexpr int step = lanes<C>;
  for (int64_t j = 0; j < count; j += step) {
    Vec<C> sums[stride] = {};
    for (int i = 0; i < seen; ++i)
#pragma GCC unroll 2
      for (int phase = 0; phase < stride; ++phase)
#pragma GCC unroll 4
        for (int64_t s = last_tap(kernel, phase, stride); s >= 0; s -= stride) {
          const int64_t at = j - s / stride;
          const Mask<C> here = load(rows[i].codes + at) == splat_code<C>(rows[i].first_code + s);
          sums[phase] += here ? load(rows[i].terms + at) : Vec<C>{};
        }
    if constexpr (stride == 1) {
      store(out + j, sums[0]);
    } else {
      store(out + 2 * j, interleaved_low<C>(sums[0], sums[1]));
      store(out + 2 * j + step, interleaved_high<C>(sums[0], sums[1]));
    }
  }
}

// The same in NCHW, for stride 1 or 2 along the width, without dilation: vectorised along the width, from lines with borders of
// the outputs' gradients and indices. `taps` is the kernel's width if known beforehand, else 0.
template <class T, int stride, int taps>
bool backward_lines(const PoolProblem& problem, const T* gy, const uint8_t* index, T* gx, int threads) {
  using C = Compute<T>;
  using Code = CodeOf<C>;
  constexpr int step = lanes<C>;
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const int64_t seen_most = (rows.kernel - 1) / rows.stride + 1;
  int64_t slots = 1;
  while (slots < seen_most) slots *= 2;
  const int64_t pitch = line_capacity<C> / slots / step * step;
  const int64_t kernel = taps ? taps : columns.kernel;
  const int64_t before = (kernel - 1) / stride;  // a position sees the windows q - before … q
  const int64_t tile = (pitch - before) / step * step - 2 * step;
  const int64_t first = columns.before / stride, last = (problem.w - 1 + columns.before) / stride + 1;
  const bool past = std::is_same_v<T, C> && past_caches(gx, problem.n * problem.c * problem.h * problem.w * int64_t(sizeof(T)));
  bool valid = true;
  parallel(threads, [&](int id, int parts) {
    alignas(64) C terms[line_capacity<C>];
    alignas(64) Code codes[line_capacity<C>];
    alignas(64) C out[stride * line_capacity<C>];
    SeenRow<C> seen[ring_rows];
    Mask<C> bad{};
    const Range mine = share(problem.n * problem.c * problem.h, id, parts);
    for (int64_t begin = first; begin < last; begin += tile) {
      const int64_t count = minimum(tile, last - begin), start = begin - before;
      const int64_t length = (count + step - 1) / step * step + before;
      // The columns of gx this tile gives.
      const int64_t from = maximum<int64_t>(begin * stride - columns.before, 0);
      const int64_t to = minimum((begin + count) * stride - columns.before, problem.w);
      int64_t plane = mine.begin / problem.h, h = mine.begin % problem.h;
      CoveringWalk covering(rows, h);
      int64_t kept = 0;  // the rows of outputs before this one are lines, as far as they are still needed
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const Range above = covering.range();
        for (kept = maximum(kept, above.begin); kept < above.end; ++kept) {
          const int64_t line = (kept & (slots - 1)) * pitch, in = (plane * problem.p + kept) * problem.q;
          fill_line(terms + line, length, start, problem.q, C(0),
                    [&](int64_t q, int n) FASTCONV_INLINE_LAMBDA { return load_part(gy + in + q, n); });
          fill_line(codes + line, length, start, problem.q, Code(-1), [&](int64_t q, int n) FASTCONV_INLINE_LAMBDA {
            const Mask<C> its_codes = load_codes_part<C>(index + in + q, n);
            bad |= its_codes >= splat_code<C>(rows.kernel * columns.kernel);
            return its_codes;
          });
        }
        for (int64_t p = above.begin; p < above.end; ++p) {
          const int64_t line = (p & (slots - 1)) * pitch + before;
          seen[p - above.begin] = {terms + line, codes + line, Code((h - rows.start(p)) * kernel)};
        }
        // Most rows are seen by one or two: loops that know it.
        const int seen_count = int(maximum<int64_t>(above.end - above.begin, 0));
        if (seen_count == 1)
          sum_row<C, stride>(seen, std::integral_constant<int, 1>{}, kernel, count, out);
        else if (seen_count == 2)
          sum_row<C, stride>(seen, std::integral_constant<int, 2>{}, kernel, count, out);
        else
          sum_row<C, stride>(seen, seen_count, kernel, count, out);
        put_row(out + columns.before - begin * stride + from, gx + item * problem.w + from, to - from, past);
        if (++h == problem.h) ++plane, h = 0, kept = 0;
        covering.advance(h);
      }
    }
    end_stream();
    if (any<C>(bad)) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

template <class T>
bool backward_of(const PoolProblem& problem, const void* gy, const void* index, MaxIndex kind, void* gx, int threads) {
  const T* from = static_cast<const T*>(gy);
  T* to = static_cast<T*>(gx);
  const bool last = problem.layout == Layout::channels_last;
  if (kind == MaxIndex::plane) {
    const int64_t* positions = static_cast<const int64_t*>(index);
    return last ? backward_scattered<T, MaxIndex::plane, true>(problem, from, positions, to, threads)
                : backward_scattered<T, MaxIndex::plane, false>(problem, from, positions, to, threads);
  }
  const uint8_t* codes = static_cast<const uint8_t*>(index);
  if (last) return backward_channels_last(problem, from, codes, to, threads);
  const bool lines = !problem.adaptive && problem.dilation_h == 1 && problem.dilation_w == 1 &&
                     problem.q >= lanes<Compute<T>> / 2 && (problem.r - 1) / problem.stride_h < ring_rows;
  if constexpr (sizeof(T) == 4) {  // the usual kernels in the usual type
    if (lines && problem.stride_w == 1 && problem.s == 3) return backward_lines<T, 1, 3>(problem, from, codes, to, threads);
    if (lines && problem.stride_w == 2 && problem.s == 2) return backward_lines<T, 2, 2>(problem, from, codes, to, threads);
    if (lines && problem.stride_w == 2 && problem.s == 3) return backward_lines<T, 2, 3>(problem, from, codes, to, threads);
  }
  if (lines && problem.stride_w == 1) return backward_lines<T, 1, 0>(problem, from, codes, to, threads);
  if (lines && problem.stride_w == 2) return backward_lines<T, 2, 0>(problem, from, codes, to, threads);
  return backward_scattered<T, MaxIndex::window, false>(problem, from, codes, to, threads);
}

template <class T, MaxIndex kind>
bool gather(const PoolProblem& problem, const T* v, const IndexType<kind>* index, T* y, int threads) {
  const Axis rows = vertical(problem), columns = horizontal(problem);
  const Positions<kind> positions(problem);
  const bool last = problem.layout == Layout::channels_last;
  // Innermost: the channels of a pixel, or the only plane of an image that has one channel.
  const int64_t images = last ? problem.n : problem.n * problem.c, inner = last ? problem.c : 1;
  bool valid = true;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(images * problem.p, id, parts);
    bool mine_valid = true;
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t image = item / problem.p, p = item % problem.p;
      const T* from = v + image * problem.h * problem.w * inner;
      const Span across = rows.window(p);
      for (int64_t q = 0; q < problem.q; ++q) {
        const Span along = columns.window(q);
        for (int64_t c = 0; c < inner; ++c) {
          const int64_t out = (item * problem.q + q) * inner + c, position = positions(across, along, index[out]);
          if (position == invalid) mine_valid = false;
          y[out] = position < 0 ? T{} : from[position * inner + c];
        }
      }
    }
    if (!mine_valid) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

template <class T>
bool gather_of(const PoolProblem& problem, const void* v, const void* index, MaxIndex kind, void* y, int threads) {
  const T* from = static_cast<const T*>(v);
  T* to = static_cast<T*>(y);
  return kind == MaxIndex::window ? gather<T, MaxIndex::window>(problem, from, static_cast<const uint8_t*>(index), to, threads)
                                  : gather<T, MaxIndex::plane>(problem, from, static_cast<const int64_t*>(index), to, threads);
}

}  // namespace

bool max_backward(const PoolProblem& problem, const void* gy, const void* index, MaxIndex kind, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, backward_of<T>(with_fixed_windows(problem), gy, index, kind, gx, threads))
}

bool max_gather(const PoolProblem& problem, const void* v, const void* index, MaxIndex kind, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, gather_of<T>(with_fixed_windows(problem), v, index, kind, y, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
