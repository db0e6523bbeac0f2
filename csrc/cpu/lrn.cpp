// Local response normalisation, forward and backward: one pass, in which a window of channels slides along.
//
// Every window is summed anew, in the order of its channels, so no error accumulates along the channels and the bits depend
// neither on the layout nor on the threads. With d the base k + alpha * sum x^2:
//   y[i]  = x[i] d[i]^-beta
//   gx[i] = gy[i] d[i]^-beta - 2 alpha beta x[i] * sum of t[j] over the windows j that have i,  t[j] = gy[j] x[j] d[j]^(-beta -
//   1)
// NCHW is vectorised along the pixels of a tile, NHWC along the channels.
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
FASTCONV_INLINE Vec<float> reciprocal_root(Vec<float> v) {
  const Vec<float> about = about_reciprocal_root(v);
  return fma(about * 0.5f, fma(-(v * about), about, splat(1.0f)), about);  // a Newton step
}

// v^(-3/4) without the square roots and the division, which take longer than everything else together: from reciprocal roots,
// and a Newton step for y in v^3 y^4 = 1. For v from 1e-20 to 1e20.
FASTCONV_INLINE Vec<float> reciprocal_three_quarters(Vec<float> v) {
  const Vec<float> root = reciprocal_root(v), y = root * root * reciprocal_root(root);
  const Vec<float> power = v * y * y;  // v^(-1/2)
  return fma(y * 0.25f, fma(-(v * power), power, splat(1.0f)), y);
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
  int64_t lower, upper;  // channels of the window before and after its own
  C alpha, k, beta;
  C slope;  // of the gradient's second term

  explicit Window(const LrnProblem& p)
      : lower(minimum(p.size / 2, p.c)),
        upper(minimum((p.size - 1) / 2, p.c)),
        alpha(C(p.alpha)),
        k(C(p.k)),
        beta(C(p.beta)),
        slope(C(-2 * p.alpha * p.beta)) {}
};

// The base of n elements at `x`: `before` and `after` are how many channels of the window there are on either side.
template <class T>
FASTCONV_INLINE Vec<Compute<T>> base_of(const Window<Compute<T>>& window, const T* x, int64_t step, int64_t before,
                                        int64_t after, int n) {
  using C = Compute<T>;
  Vec<C> sum{};
  for (int64_t j = -before; j <= after; ++j) {
    const Vec<C> value = load_part(x + j * step, n);
    sum = fma(value, value, sum);
  }
  return fma(splat(window.alpha), sum, splat(window.k));
}

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

template <class T, Exponent exponent>
void forward_planes(const LrnProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const int64_t tile = 4096 / int64_t(sizeof(C)), step = problem.spatial;  // some rows of a tile stay in the L1 cache
  const bool past = put_past_caches(y, problem.n * problem.c, problem.spatial);
  share_tiles(problem, tile, threads, [&](int, int64_t offset, int64_t count, Range channels) {
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      const int64_t before = minimum(window.lower, c), after = minimum(window.upper, problem.c - 1 - c);
      const T* from = x + offset + c * step;
      T* to = y + offset + c * step;
      each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
        const Vec<C> base = base_of(window, from + i, step, before, after, n);
        put(to + i, over_power<exponent>(load_part(from + i, n), base, window.beta), n, past);
      });
    }
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

// What a thread's scratch should fit in: with the inputs it stays in the L2 cache. Very long windows need more.
constexpr int64_t scratch_bytes = 48 * 1024;

template <class T, Exponent exponent>
void backward_planes(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const int64_t step = problem.spatial, terms = window.lower + window.upper + 1, owns = window.lower + 1;
  // Rows of a tile that are kept: t of a window, and gy d^-beta of the channels whose window is not complete yet.
  const int64_t rows = terms + owns, vectors = minimum<int64_t>(scratch_bytes / rows, 2048) / vector_bytes;
  const int64_t tile = maximum<int64_t>(vectors, 1) * lanes<C>;
  const Scratch<C> scratches(rows * tile, threads);
  const bool past = put_past_caches(gx, problem.n * problem.c, problem.spatial);
  share_tiles(problem, tile, threads, [&](int id, int64_t offset, int64_t count, Range channels) {
    C* scratch = scratches.of_thread(id);
    const auto term = [&](int64_t c) { return scratch + c % terms * tile; };
    const auto own = [&](int64_t c) { return scratch + (terms + c % owns) * tile; };
    const int64_t first = maximum<int64_t>(channels.begin - window.upper, 0), end = channels.end + window.lower;
    for (int64_t c = first; c < end; ++c) {
      if (c < problem.c) {
        const int64_t before = minimum(window.lower, c), after = minimum(window.upper, problem.c - 1 - c);
        const T* from = x + offset + c * step;
        const T* gradient = gy + offset + c * step;
        C* its_term = term(c);
        C* its_own = own(c);
        each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
          const Vec<C> base = base_of(window, from + i, step, before, after, n);
          const Vec<C> scaled = over_power<exponent>(load_part(gradient + i, n), base, window.beta);
          store(its_own + i, scaled);
          store(its_term + i, scaled * load_part(from + i, n) / base);
        });
      }
      const int64_t e = c - window.lower;
      if (e < channels.begin) continue;
      const int64_t begin = maximum<int64_t>(e - window.upper, 0), stop = minimum(c + 1, problem.c);
      const T* from = x + offset + e * step;
      const C* its_own = own(e);
      T* to = gx + offset + e * step;
      each_vector<C>(count, [&](int64_t i, int n) FASTCONV_INLINE_LAMBDA {
        Vec<C> sum{};
        int64_t slot = begin % terms;
        for (int64_t j = begin; j < stop; ++j) {
          sum += load(scratch + slot * tile + i);
          slot = slot + 1 == terms ? 0 : slot + 1;
        }
        put(to + i, fma(splat(window.slope) * sum, load_part(from + i, n), load(its_own + i)), n, past);
      });
    }
  });
}

// NHWC: pixels are taken a few at a time, and their channels in chunks; a chunk is copied with its neighbours, zeros beyond the
// ends.
struct Chunks {
  int64_t reach;   // neighbours needed before and after a chunk
  int64_t length;  // channels of a chunk
  int64_t pitch;   // elements of a pixel's copy
  int64_t group;   // pixels at a time
};
template <class C>
Chunks chunks_of(const LrnProblem& problem, int64_t reach, int64_t buffers) {
  constexpr int64_t step = lanes<C>;
  const int64_t room = scratch_bytes / int64_t(sizeof(C)) / buffers, margin = 2 * reach + 2 * step;
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

// copy[i] = x[c - reach + i] for channels there are, else 0; 0 <= i < count + 2 * reach.
template <class T>
void copy_chunk(const LrnProblem& problem, const Chunks& chunks, const T* x, int64_t c, int64_t count, Compute<T>* copy) {
  using C = Compute<T>;
  const int64_t begin = maximum<int64_t>(c - chunks.reach, 0), end = minimum(c + count + chunks.reach, problem.c);
  const int64_t skipped = begin - (c - chunks.reach);
  for (int64_t i = 0; i < skipped; i += lanes<C>) store(copy + i, Vec<C>{});
  int64_t i = skipped;
  each_vector<C>(end - begin, [&](int64_t j, int n) FASTCONV_INLINE_LAMBDA {
    store(copy + skipped + j, load_part(x + begin + j, n));
    i += lanes<C>;
  });
  for (; i < count + 2 * chunks.reach; i += lanes<C>) store(copy + i, Vec<C>{});
}

template <class T, Exponent exponent>
void forward_pixels(const LrnProblem& problem, const T* x, T* y, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  const Chunks chunks = chunks_of<C>(problem, window.lower, 1);
  const Scratch<C> scratches(chunks.group * chunks.pitch, threads);
  const bool past = put_past_caches(y, problem.n * problem.spatial, problem.c);
  share_pixels<C>(problem, chunks, threads, [&](int id, int64_t pixel, int64_t pixels, int64_t c, int64_t count) {
    C* copies = scratches.of_thread(id);
    for (int64_t i = 0; i < pixels; ++i)
      copy_chunk(problem, chunks, x + (pixel + i) * problem.c, c, count, copies + i * chunks.pitch);
    for (int64_t i = 0; i < pixels; ++i) {
      const C* copy = copies + i * chunks.pitch + chunks.reach;
      T* to = y + (pixel + i) * problem.c + c;
      each_vector<C>(count, [&](int64_t j, int n) FASTCONV_INLINE_LAMBDA {
        const Vec<C> base = base_of(window, copy + j, 1, window.lower, window.upper, lanes<C>);
        put(to + j, over_power<exponent>(load(copy + j), base, window.beta), n, past);
      });
    }
  });
}

template <class T, Exponent exponent>
void backward_pixels(const LrnProblem& problem, const T* x, const T* gy, T* gx, int threads) {
  using C = Compute<T>;
  const Window<C> window(problem);
  // A gradient needs the terms of window.upper channels before it and window.lower after, and those the windows' inputs.
  const int64_t margin = window.lower;
  const Chunks chunks = chunks_of<C>(problem, 2 * margin, 3);
  const int64_t buffer = chunks.group * chunks.pitch;
  const Scratch<C> scratches(3 * buffer, threads);
  const bool past = put_past_caches(gx, problem.n * problem.spatial, problem.c);
  share_pixels<C>(problem, chunks, threads, [&](int id, int64_t pixel, int64_t pixels, int64_t c, int64_t count) {
    C* copies = scratches.of_thread(id);
    C* terms = copies + buffer;
    C* owns = terms + buffer;
    for (int64_t i = 0; i < pixels; ++i)
      copy_chunk(problem, chunks, x + (pixel + i) * problem.c, c, count, copies + i * chunks.pitch);
    const int64_t begin = maximum<int64_t>(c - margin, 0), end = minimum(c + count + margin, problem.c);
    const int64_t skipped = begin - (c - margin);
    for (int64_t i = 0; i < pixels; ++i) {
      const C* copy = copies + i * chunks.pitch + margin + skipped;
      C* term = terms + i * chunks.pitch;
      C* own = owns + i * chunks.pitch + skipped;
      const T* gradient = gy + (pixel + i) * problem.c + begin;
      for (int64_t j = 0; j < skipped; j += lanes<C>) store(term + j, Vec<C>{});
      int64_t filled = skipped;
      each_vector<C>(end - begin, [&](int64_t j, int n) FASTCONV_INLINE_LAMBDA {
        const Vec<C> base = base_of(window, copy + j, 1, window.lower, window.upper, lanes<C>);
        const Vec<C> scaled = over_power<exponent>(load_part(gradient + j, n), base, window.beta);
        store(own + j, scaled);
        const Vec<C> value = scaled * load(copy + j) / base;
        const Mask<C> inside = lane_numbers<C>() < splat_code<C>(n);
        store(term + skipped + j, n == lanes<C> ? value : inside ? value : Vec<C>{});
        filled += lanes<C>;
      });
      for (; filled < count + 2 * margin; filled += lanes<C>) store(term + filled, Vec<C>{});
    }
    for (int64_t i = 0; i < pixels; ++i) {
      const C* copy = copies + i * chunks.pitch + 2 * margin;
      const C* term = terms + i * chunks.pitch + margin;
      const C* own = owns + i * chunks.pitch + margin;
      T* to = gx + (pixel + i) * problem.c + c;
      each_vector<C>(count, [&](int64_t j, int n) FASTCONV_INLINE_LAMBDA {
        Vec<C> sum{};
        for (int64_t s = -window.upper; s <= window.lower; ++s) sum += load(term + j + s);
        put(to + j, fma(splat(window.slope) * sum, load(copy + j), load(own + j)), n, past);
      });
    }
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
