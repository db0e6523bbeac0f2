// The windows of a pooling problem, in 64 bits.
#pragma once

#include "../problem.h"
#include "../windows.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {

using Span = WindowSpan<int64_t>;

struct Axis : WindowAxis<int64_t> {
  Range covering(int64_t x) const { return {covering_begin(x), covering_end(x)}; }
  int64_t positions() const { return window_positions(adaptive, in, out, kernel); }
};

inline Axis vertical(const PoolProblem& p) {
  return {{p.h, p.p, p.r, p.stride_h, p.pad_top, p.pad_bottom, p.dilation_h, p.adaptive, p.count_include_pad}};
}
inline Axis horizontal(const PoolProblem& p) {
  return {{p.w, p.q, p.s, p.stride_w, p.pad_left, p.pad_right, p.dilation_w, p.adaptive, p.count_include_pad}};
}

// The windows that cover a position, for positions that follow each other: a division for each would take longer than its sums.
// Fixed windows without dilation.
class CoveringWalk {
 public:
  CoveringWalk(const Axis& axis, int64_t x) : axis_(axis), range_(axis.covering(x)) {}
  const Range& range() const { return range_; }
  // From x - 1 to x, or to 0.
  void advance(int64_t x) {
    if (x == 0) range_ = {0, 0};
    while (range_.begin < axis_.out && axis_.start(range_.begin) + axis_.kernel <= x) ++range_.begin;
    while (range_.end < axis_.out && axis_.start(range_.end) <= x) ++range_.end;
  }

 private:
  Axis axis_;
  Range range_;
};

// Calls body(rows, columns) with the numbers of windows that cover a position as constants where they are the usual ones, else
// with zeros: loops that run once or twice, by turns, would be foreseen wrongly at most pixels.
template <class Body>
inline __attribute__((always_inline)) void with_counts(int64_t rows, int64_t columns, const Body& body) {
  using std::integral_constant;
  if (rows == 1 && columns == 1) return body(integral_constant<int, 1>{}, integral_constant<int, 1>{});
  if (rows == 1 && columns == 2) return body(integral_constant<int, 1>{}, integral_constant<int, 2>{});
  if (rows == 2 && columns == 1) return body(integral_constant<int, 2>{}, integral_constant<int, 1>{});
  if (rows == 3 && columns == 1) return body(integral_constant<int, 3>{}, integral_constant<int, 1>{});
  if (rows == 2 && columns == 2) return body(integral_constant<int, 2>{}, integral_constant<int, 2>{});
  body(integral_constant<int, 0>{}, integral_constant<int, 0>{});
}

// at(x) for the positions of an axis, which every row asks for again: the divisions would take longer than a pixel's sums. Of a
// long axis the first are kept.
template <class At>
class Lookup {
 public:
  Lookup(int64_t positions, const At& at) : kept_(minimum<int64_t>(positions, most)), at_(at) {
    for (int64_t x = 0; x < kept_; ++x) values_[x] = at(x);
  }
  auto operator()(int64_t x) const { return x < kept_ ? values_[x] : at_(x); }

 private:
  static constexpr int64_t most = 256;
  decltype(std::declval<At>()(0)) values_[most];
  int64_t kept_;
  const At& at_;
};

// The last tap of a kernel that is congruent to `phase` modulo the stride: negative if there is none.
inline int64_t last_tap(int64_t kernel, int64_t phase, int64_t stride) {
  return kernel - 1 - (kernel - 1 - phase + stride) % stride;
}

// The same windows, as fixed ones where an adaptive pooling's are all alike and disjoint.
inline PoolProblem with_fixed_windows(PoolProblem p) {
  if (!p.adaptive || p.h % p.p || p.w % p.q) return p;
  p.adaptive = false;
  p.stride_h = p.r = p.h / p.p;
  p.stride_w = p.s = p.w / p.q;
  p.pad_top = p.pad_bottom = p.pad_left = p.pad_right = 0;
  p.dilation_h = p.dilation_w = 1;
  p.divisor = 0;
  return p;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
