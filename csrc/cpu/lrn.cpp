// Local response normalisation, forward and backward: one pass, in which a window of channels slides along.
//
// Every window is summed anew, always in the same order, so no error accumulates along the channels and the bits depend neither
// on the layout nor on the threads. With d the base k + alpha * sum x^2:
//   y[i]  = x[i] d[i]^-beta
//   gx[i] = gy[i] d[i]^-beta - 2 alpha beta x[i] * sum of t[j] over the windows j that have i,  t[j] = gy[j] x[j] d[j]^(-beta -
//   1)
// NCHW is vectorised along the pixels of a tile, NHWC along the channels. The squares and the terms t are kept where the
// windows' sums read them: as rows of a tile, or as the channels of some pixels, with zeros for the channels that do not exist.
#include "lrn.h"

#include <new>

#include "parallel.h"
#include "stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

namespace {

FASTCONV_INLINE Vec<float> square_root(Vec<float> v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < lanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
FASTCONV_INLINE Vec<double> square_root(Vec<double> v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < lanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// About 1 / sqrt(v), to 11 bits or more.
FASTCONV_INLINE Vec<float> about_reciprocal_root(Vec<float> v) {
#if FASTCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_rsqrt14_ps((__m512)v);
#elif FASTCONV_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<float>)_mm256_rsqrt_ps((__m256)v);
#elif FASTCONV_VECTOR_BYTES == 16
  return (Vec<float>)_mm_rsqrt_ps((__m128)v);
#else
  return 1.0f / square_root(v);
#endif
}

// v^(-3/4) without the square roots and the division, which take longer than everything else together: about right from two
// reciprocal roots, then a step of third order for y in v^3 y^4 = 1. For v from 1e-20 to 1e20.
FASTCONV_INLINE Vec<float> reciprocal_three_quarters(Vec<float> v) {
  const Vec<float> root = about_reciprocal_root(v), y = root * root * about_reciprocal_root(root);
  const Vec<float> power = v * y * y;                                  // v^(-1/2)
  const Vec<float> rest = fma(-(v * power), power, splat(1.0f));       // 1 - v^3 y^4
  return fma(y * rest, fma(rest, splat(5.0f / 32), splat(0.25f)), y);  // y (1 - rest)^(-1/4)
}

enum class Exponent { three_quarters, half, one, any };

// v / base^beta.
template <Exponent exponent, class C>
FASTCONV_INLINE Vec<C> over_power(Vec<C> v, Vec<C> base, C beta) {
  if constexpr (exponent == Exponent::three_quarters) {
    const auto exactly = [&]() FASTCONV_INLINE_LAMBDA {
      const C infinity = C(__builtin_inf());
      const Vec<C> root = square_root(base == -infinity ? splat(infinity) : base);  // as pow() has it
      return v / (root * square_root(root));
    };
    if constexpr (sizeof(C) == 8) {
      return exactly();
    } else {
      const Vec<C> quickly = v * reciprocal_three_quarters(base);
      const Mask<C> usual = (base > C(1e-20)) & (base < C(1e20));
      return all<C>(usual) ? quickly : usual ? quickly : exactly();
    }
  } else if constexpr (exponent == Exponent::half) {
    return v / square_root(base);
  } else if constexpr (exponent == Exponent::one) {
    return v / base;
  } else {
    Vec<C> power{};
    for (int i = 0; i < lanes<C>; ++i)
      power[i] = sizeof(C) == 4 ? C(__builtin_powf(float(base[i]), float(beta))) : C(__builtin_pow(base[i], beta));
    return v / power;
  }
}

// Calls body(i, n) for vectors of n elements from i on that together are 0..count: all whole but the last.
template <class C, class Body>
FASTCONV_INLINE void each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + lanes<C> <= count; i += lanes<C>) body(i, lanes<C>);
  if (i < count) body(i, int(count - i));
}

template <class C>
struct Window {
  int64_t lower, upper, terms;  // channels of the window before and after its own, and all
  C alpha, k, beta;
  C slope;  // of the gradient's second term

  explicit Window(const LrnProblem& p)
      : lower(minimum(p.size / 2, p.c)),
        upper(minimum((p.size - 1) / 2, p.c)),
        terms(lower + 1 + upper),
        alpha(C(p.alpha)),
        k(C(p.k)),
        beta(C(p.beta)),
        slope(C(-2 * p.alpha * p.beta)) {}
};

// Calls body with the number of a window's terms as a constant if it is the usual one, else with 0.
template <class Body>
FASTCONV_INLINE void with_terms(int64_t terms, const Body& body) {
  if (terms == 5)
    body(std::integral_constant<int, 5>{});
  else
    body(std::integral_constant<int, 0>{});
}

// at(0) + at(1) + ... `known` is the number of terms if it is known beforehand: then by halves, which gives the sum sooner.
template <int known, class At>
FASTCONV_INLINE auto sum_of(int64_t terms, const At& at) {
  if constexpr (known == 5) {
    return ((at(0) + at(1)) + (at(2) + at(3))) + at(4);
  } else {
    auto sum = at(0);
    for (int64_t j = 1; j < terms; ++j) sum += at(j);
    return sum;
  }
}

// `n` values of one channel, or of one pixel. `squares(i)` sums the squares of the windows from the i-th value on.
template <Exponent exponent, class T, class Sum>
void normalise(Window<Compute<T>> window, Sum squares, const T* x, T* y, int64_t count, const T* next, bool past) {
  using C = Compute<T>;
  each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
    __builtin_prefetch(next + i);
    const Vec<C> base = fma(splat(window.alpha), squares(i), splat(window.k));
    put(y + i, over_power<exponent>(load_part(x + i, n), base, window.beta), n, past);
  });
}

// The two factors of a gradient: own = gy d^-beta, and the terms t, with zeros up to the end of the last vector.
template <Exponent exponent, class T, class Sum>
void weigh(Window<Compute<T>> window, Sum squares, const T* x, const T* gy, Compute<T>* own, Compute<T>* terms, int64_t count,
           const T* next_x, const T* next_gy) {
  using C = Compute<T>;
  each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
    __builtin_prefetch(next_x + i);
    __builtin_prefetch(next_gy + i);
    const Vec<C> base = fma(splat(window.alpha), squares(i), splat(window.k));
    const Vec<C> scaled = over_power<exponent>(load_part(gy + i, n), base, window.beta);
    const Vec<C> term = scaled * load_part(x + i, n) / base;
    const Mask<C> inside = lane_numbers<C>() < splat_code<C>(n);
    store(own + i, scaled);
    store(terms + i, n == lanes<C> ? term : inside ? term : Vec<C>{});
  });
}

template <class T, class Sum>
void differentiate(Window<Compute<T>> window, Sum terms, const Compute<T>* own, const T* x, T* gx, int64_t count, bool past) {
  using C = Compute<T>;
  each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
    put(gx + i, fma(splat(window.slope) * terms(i), load_part(x + i, n), load(own + i)), n, past);
  });
}

// Memory for each thread, allocated before the team starts: std::bad_alloc cannot cross its region.
template <class C>
class Scratch {
 public:
  Scratch(int64_t size, int threads)
      : size_(size), memory_(static_cast<C*>(::operator new(size_t(size) * size_t(threads) * sizeof(C), alignment))) {}
  ~Scratch() { ::operator delete(memory_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  C* of_thread(int id) const { return memory_ + id * size_; }

 private:
  static constexpr std::align_val_t alignment{64};
  int64_t size_;
  C* memory_;
};

// NCHW: the work is shared by images, tiles of pixels and, if those are few, parts of the channels.
template <class Body>
void share_tiles(const LrnProblem& problem, int64_t tile, int threads, const Body& body) {
  const int64_t tiles = (problem.spatial + tile - 1) / tile;
  const int64_t wanted = (4 * threads + problem.n * tiles - 1) / (problem.n * tiles), least = 32;
  const int64_t chunks = threads == 1 ? 1 : maximum<int64_t>(minimum(wanted, problem.c / least), 1);
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(problem.n * tiles * chunks, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t n = item / chunks / tiles, begin = item / chunks % tiles * tile;
      body(id, n * problem.c * problem.spatial + begin, minimum(tile, problem.spatial - begin),
           share(problem.c, int(item % chunks), int(chunks)));
    }
    end_stream();
  });
}

// The newest rows of a tile, of channels that follow each other, oldest first.
template <class C>
class Rows {
 public:
  Rows(C* memory, int64_t count, int64_t tile) : memory_(memory), count_(count), tile_(tile) {}
  int64_t count() const { return count_; }
  const C* operator[](int64_t i) const { return row(i); }
  // Drops the oldest row and gives its memory to the next channel's.
  C* advance() {
    C* const next = row(0);
    first_ = first_ + 1 < count_ ? first_ + 1 : 0;
    return next;
  }

 private:
  C* row(int64_t i) const { return memory_ + (first_ + i < count_ ? first_ + i : first_ + i - count_) * tile_; }
  C* memory_;
  int64_t count_, tile_, first_ = 0;
};

// The sum of the rows from column i on.
template <int known, class C>
class RowSum {
 public:
  explicit RowSum(const Rows<C>& rows) : rows_(rows) {
    for (int j = 0; j < known; ++j) known_rows_[j] = rows[j];
  }
  FASTCONV_INLINE Vec<C> operator()(int64_t i) const {
    return sum_of<known>(rows_.count(),
                         [&](int64_t j) FASTCONV_INLINE_LAMBDA { return load((known ? known_rows_[j] : rows_[j]) + i); });
  }

 private:
  Rows<C> rows_;
  const C* known_rows_[known ? known : 1];
};

template <class C>
void zero_row(C* row, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes<C>) store(row + i, Vec<C>{});
}
template <class T>
void square_row(const T* x, int64_t count, Compute<T>* squares) {
  using C = Compute<T>;
  each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
    const Vec<C> value = load_part(x + i, n);
    store(squares + i, value * value);
  });
}

// Pixels of a tile of which so many rows are kept, in the L1 cache together with those of the tensors. Very long windows need
// more.
template <class C>
int64_t tile_pixels(int64_t rows) {
  return maximum<int64_t>(20 * 1024 / rows / vector_bytes, 1) * lanes<C>;
}

// The system zeroes fresh memory 2 MB at a time, and all channels of an image are written before the next tile: by then its
// zeros are no longer in the caches, so these results go past them in either case.
constexpr bool even_fresh = true;

template <class T, Exponent exponent>
void forward_planes(const LrnProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const int64_t step = problem.spatial, tile = tile_pixels<C>(window.terms);
  const Scratch<C> scratches(window.terms * tile, threads);
  const bool past = put_past_caches(y, problem.n * problem.c, problem.spatial, even_fresh);
  share_tiles(problem, tile, threads, [&](int id, int64_t offset, int64_t count, Range channels) {
    Rows<C> squares(scratches.of_thread(id), window.terms, tile);
    for (int64_t c = channels.begin + 1 - window.terms; c < channels.end; ++c) {
      const int64_t newest = c + window.upper;
      C* row = squares.advance();
      if (newest >= 0 && newest < problem.c)
        square_row(x + offset + newest * step, count, row);
      else
        zero_row(row, count);
      if (c < channels.begin) continue;
      const T* from = x + offset + c * step;
      T* to = y + offset + c * step;
      const T* next = x + offset + (newest + 1) * step;
      with_terms(window.terms,
                 [&](auto known) { normalise<exponent>(window, RowSum<known, C>(squares), from, to, count, next, past); });
    }
  });
}

template <class T, Exponent exponent>
void backward_planes(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const int64_t step = problem.spatial, rows = 2 * window.terms + window.lower + 1, tile = tile_pixels<C>(rows);
  const Scratch<C> scratches(rows * tile, threads);
  const bool past = put_past_caches(gx, problem.n * problem.c, problem.spatial, even_fresh);
  share_tiles(problem, tile, threads, [&](int id, int64_t offset, int64_t count, Range channels) {
    C* memory = scratches.of_thread(id);
    Rows<C> squares(memory, window.terms, tile);
    Rows<C> terms(memory + window.terms * tile, window.terms, tile);
    Rows<C> own(memory + 2 * window.terms * tile, window.lower + 1, tile);
    // The gradient of channel c needs the terms up to channel `centre`, and that one the squares up to `newest`.
    for (int64_t c = channels.begin + 2 * (1 - window.terms); c < channels.end; ++c) {
      const int64_t centre = c + window.lower, newest = centre + window.upper;
      C* row = squares.advance();
      if (newest >= 0 && newest < problem.c)
        square_row(x + offset + newest * step, count, row);
      else
        zero_row(row, count);
      if (c <= channels.begin - window.terms) continue;
      C* its_own = own.advance();
      C* its_terms = terms.advance();
      if (centre >= 0 && centre < problem.c) {
        const T* from = x + offset + centre * step;
        const T* gradient = gy + offset + centre * step;
        const T* next = x + offset + (newest + 1) * step;
        with_terms(window.terms, [&](auto known) {
          weigh<exponent>(window, RowSum<known, C>(squares), from, gradient, its_own, its_terms, count, next, gradient + step);
        });
      } else {
        zero_row(its_terms, count);
      }
      if (c < channels.begin) continue;
      const T* from = x + offset + c * step;
      T* to = gx + offset + c * step;
      with_terms(window.terms,
                 [&](auto known) { differentiate(window, RowSum<known, C>(terms), own[0], from, to, count, past); });
    }
  });
}

// The sum of neighbours, from the i-th on.
template <int known, class C>
struct NeighbourSum {
  const C* first;
  int64_t terms;
  FASTCONV_INLINE Vec<C> operator()(int64_t i) const {
    return sum_of<known>(terms, [&](int64_t j) FASTCONV_INLINE_LAMBDA { return load(first + i + j); });
  }
};

// NHWC: pixels are taken a few at a time, so that no sum reads what has just been written, and their channels in chunks. Of a
// chunk and its neighbours copies are kept: squares and terms, zeros beyond the ends.
struct Chunks {
  int64_t reach;   // neighbours needed before and after a chunk
  int64_t length;  // channels of a chunk
  int64_t pitch;   // elements of a pixel's copy
  int64_t group;   // pixels at a time
};
template <class C>
Chunks chunks_of(const LrnProblem& problem, int64_t reach, int64_t buffers) {
  constexpr int64_t step = lanes<C>;
  const int64_t room = 8 * 1024 / int64_t(sizeof(C)) / buffers, margin = 2 * reach + 2 * step;
  const int64_t length = minimum(problem.c, maximum<int64_t>(room - margin, 256)), pitch = length + margin;
  return {reach, length, pitch, maximum<int64_t>(room / pitch, 1)};
}

template <class C, class Body>
void share_pixels(const LrnProblem& problem, const Chunks& chunks, int threads, const Body& body) {
  const int64_t pixels = problem.n * problem.spatial;
  const int64_t group = maximum<int64_t>(minimum(chunks.group, pixels / threads), 1), groups = (pixels + group - 1) / group;
  const int64_t parts_of_c = (problem.c + chunks.length - 1) / chunks.length;
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(groups * parts_of_c, id, parts);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t pixel = item / parts_of_c * group, c = item % parts_of_c * chunks.length;
      body(id, pixel, minimum(group, pixels - pixel), c, minimum(chunks.length, problem.c - c));
    }
    end_stream();
  });
}

// squares[i] = x[c - reach + i]^2 for channels there are, else 0; 0 <= i < count + 2 * reach.
template <class T>
void square_chunk(const LrnProblem& problem, const Chunks& chunks, const T* x, int64_t c, int64_t count, Compute<T>* squares) {
  const int64_t begin = maximum<int64_t>(c - chunks.reach, 0), end = minimum(c + count + chunks.reach, problem.c);
  const int64_t skipped = begin - (c - chunks.reach), filled = skipped + end - begin;
  zero_row(squares, skipped);
  square_row(x + begin, end - begin, squares + skipped);
  zero_row(squares + filled, count + 2 * chunks.reach - filled);
}

template <class T, Exponent exponent>
void forward_pixels(const LrnProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const Chunks chunks = chunks_of<C>(problem, window.lower, 1);
  const Scratch<C> scratches(chunks.group * chunks.pitch, threads);
  const bool past = put_past_caches(y, problem.n * problem.spatial, problem.c);
  share_pixels<C>(problem, chunks, threads, [&](int id, int64_t pixel, int64_t pixels, int64_t c, int64_t count) {
    C* squares = scratches.of_thread(id);
    for (int64_t i = 0; i < pixels; ++i)
      square_chunk(problem, chunks, x + (pixel + i) * problem.c, c, count, squares + i * chunks.pitch);
    with_terms(window.terms, [&](auto known) {
      for (int64_t i = 0; i < pixels; ++i) {
        const NeighbourSum<known, C> sum{squares + i * chunks.pitch, window.terms};
        const int64_t at = (pixel + i) * problem.c + c;
        normalise<exponent>(window, sum, x + at, y + at, count, x + at, past);
      }
    });
  });
}

template <class T, Exponent exponent>
void backward_pixels(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  // A gradient needs the terms of window.upper channels before it and window.lower after, and those the windows' squares.
  const int64_t margin = window.lower;
  const Chunks chunks = chunks_of<C>(problem, 2 * margin, 3);
  const int64_t buffer = chunks.group * chunks.pitch;
  const Scratch<C> scratches(3 * buffer, threads);
  const bool past = put_past_caches(gx, problem.n * problem.spatial, problem.c);
  share_pixels<C>(problem, chunks, threads, [&](int id, int64_t pixel, int64_t pixels, int64_t c, int64_t count) {
    C* squares = scratches.of_thread(id);
    C* terms = squares + buffer;
    C* own = terms + buffer;
    for (int64_t i = 0; i < pixels; ++i)
      square_chunk(problem, chunks, x + (pixel + i) * problem.c, c, count, squares + i * chunks.pitch);
    const int64_t begin = maximum<int64_t>(c - margin, 0), end = minimum(c + count + margin, problem.c);
    const int64_t skipped = begin - (c - margin), filled = skipped + end - begin;
    with_terms(window.terms, [&](auto known) {
      for (int64_t i = 0; i < pixels; ++i) {
        const NeighbourSum<known, C> sum{squares + i * chunks.pitch + skipped + margin - window.lower, window.terms};
        const int64_t at = (pixel + i) * problem.c + begin;
        C* its_terms = terms + i * chunks.pitch;
        zero_row(its_terms, skipped);
        weigh<exponent>(window, sum, x + at, gy + at, own + i * chunks.pitch + skipped, its_terms + skipped, end - begin,
                        x + at, gy + at);
        zero_row(its_terms + filled, count + 2 * margin - filled);
      }
      for (int64_t i = 0; i < pixels; ++i) {
        const NeighbourSum<known, C> sum{terms + i * chunks.pitch + margin - window.upper, window.terms};
        const int64_t at = (pixel + i) * problem.c + c;
        differentiate(window, sum, own + i * chunks.pitch + margin, x + at, gx + at, count, past);
      }
    });
  });
}

template <class T, Exponent exponent>
void forward_of(const LrnProblem& problem, const T* x, T* y, int threads) {
  if (problem.layout == Layout::channels_last)
    forward_pixels<T, exponent>(problem, x, y, threads);
  else
    forward_planes<T, exponent>(problem, x, y, threads);
}

template <class T, Exponent exponent>
void backward_of(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  if (problem.layout == Layout::channels_last)
    backward_pixels<T, exponent>(problem, x, gy, gx, threads);
  else
    backward_planes<T, exponent>(problem, x, gy, gx, threads);
}

template <class T>
void forward_any(const LrnProblem& problem, const void* x, void* y, int threads) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  if (problem.beta == 0.75) return forward_of<T, Exponent::three_quarters>(problem, from, to, threads);
  if (problem.beta == 0.5) return forward_of<T, Exponent::half>(problem, from, to, threads);
  if (problem.beta == 1) return forward_of<T, Exponent::one>(problem, from, to, threads);
  return forward_of<T, Exponent::any>(problem, from, to, threads);
}

template <class T>
void backward_any(const LrnProblem& problem, const void* x, const void* gy, void* gx, int threads) {
  const T* from = static_cast<const T*>(x);
  const T* gradient = static_cast<const T*>(gy);
  T* to = static_cast<T*>(gx);
  if (problem.beta == 0.75) return backward_of<T, Exponent::three_quarters>(problem, from, gradient, to, threads);
  if (problem.beta == 0.5) return backward_of<T, Exponent::half>(problem, from, gradient, to, threads);
  if (problem.beta == 1) return backward_of<T, Exponent::one>(problem, from, gradient, to, threads);
  return backward_of<T, Exponent::any>(problem, from, gradient, to, threads);
}

}  // namespace

void lrn_forward(const LrnProblem& problem, const void* x, void* y, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, forward_any<T>(problem, x, y, threads))
}

void lrn_backward(const LrnProblem& problem, const void* x, const void* gy, void* gx, int threads) {
  FASTCONV_FOR_DTYPE(problem.dtype, backward_any<T>(problem, x, gy, gx, threads))
}

}  // namespace fastconv::cpu::FASTCONV_ISA
