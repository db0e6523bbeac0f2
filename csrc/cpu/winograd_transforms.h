// The matrices of Winograd's convolutions F(4, 3) and F(2, 5) and of their transposes F(3, 4) and F(5, 2), applied to vectors.
//
// A one-dimensional convolution of three taps g over six inputs d gives four outputs y = A^T [(G g) * (B^T d)]: six products
// instead of twelve; one of five taps gives two outputs by six products instead of ten. The matrices come from the Chinese
// remainder theorem with the points 0, +-a, +-b and infinity (Winograd 1980; Lavin and Gray, arXiv 1509.09308). a = 5/8 and b =
// 3/2 round less than the usual 1 and 2: their powers spread less (Barabasz et al., arXiv 1803.10986, search such points). In
// two dimensions each matrix is applied to rows and columns.
//
// The weight gradient is a convolution of six inputs with the gradients of a tile that gives the taps: the same products, so
// the same B^T, with the other two matrices' roles exchanged. All of them are values or moments of a polynomial at the points.
#pragma once

#include "vectors.h"

namespace fastconv::cpu::FASTCONV_ISA::winograd {

constexpr int window = 6;                  // inputs an output tile reads along an axis
constexpr int products = window * window;  // of a tile: as many matrix products are formed

using V = Vec<float>;

constexpr float a = 5.0f / 8, b = 3.0f / 2;
constexpr float a2 = a * a, b2 = b * b, a3 = a * a2, b3 = b * b2, a4 = a2 * a2, b4 = b2 * b2;
// The rows of G are powers of the points over the derivative of the polynomial with all points as roots.
constexpr float over_0 = float(1.0 / (25.0 / 64 * 9.0 / 4)), over_a = float(1.0 / (2 * 25.0 / 64 * (25.0 / 64 - 9.0 / 4))),
                over_b = float(1.0 / (2 * 9.0 / 4 * (9.0 / 4 - 25.0 / 64)));

// B^T d
struct InputTransform {
  static constexpr int in = window, out = window;
  static FASTCONV_INLINE void apply(const V (&d)[in], V (&r)[out]) {
    const V product = splat(a2 * b2), sum = splat(-(a2 + b2));
    r[0] = fma(product, d[0], fma(sum, d[2], d[4]));
    const V even_a = fma(splat(-b2), d[2], d[4]), odd_a = fma(splat(-b2), d[1], d[3]);
    r[1] = fma(splat(a), odd_a, even_a), r[2] = fma(splat(-a), odd_a, even_a);
    const V even_b = fma(splat(-a2), d[2], d[4]), odd_b = fma(splat(-a2), d[1], d[3]);
    r[3] = fma(splat(b), odd_b, even_b), r[4] = fma(splat(-b), odd_b, even_b);
    r[5] = fma(product, d[1], fma(sum, d[3], d[5]));
  }
};

// G g: the values of the polynomial with these coefficients at the points, scaled.
template <int coefficients>
struct PointTransform {
  static constexpr int in = coefficients, out = window;
  static FASTCONV_INLINE void apply(const V (&g)[in], V (&r)[out]) {
    r[0] = splat(over_0) * g[0];
    at_points(a, a2, a3, a4, over_a, g, r[1], r[2]);
    at_points(b, b2, b3, b4, over_b, g, r[3], r[4]);
    r[5] = g[coefficients - 1];
  }

 private:
  static FASTCONV_INLINE void at_points(float point, float square, float cube, float fourth, float scale, const V (&g)[in],
                                        V& plus, V& minus) {
    V even = splat(scale) * g[0], odd = splat(scale * point) * g[1];
    if constexpr (coefficients > 2) even = fma(splat(scale * square), g[2], even);
    if constexpr (coefficients > 3) odd = fma(splat(scale * cube), g[3], odd);
    if constexpr (coefficients > 4) even = fma(splat(scale * fourth), g[4], even);
    plus = even + odd, minus = even - odd;
  }
};

// A^T m: moments of the products over the points.
template <int moments>
struct MomentTransform {
  static constexpr int in = window, out = moments;
  static FASTCONV_INLINE void apply(const V (&m)[in], V (&y)[out]) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = (m[0] + sum_a) + sum_b;
    y[1] = moment<1>(a, difference_a, b, difference_b, m[5]);
    if constexpr (moments > 2) y[2] = moment<2>(a2, sum_a, b2, sum_b, m[5]);
    if constexpr (moments > 3) y[3] = moment<3>(a3, difference_a, b3, difference_b, m[5]);
    if constexpr (moments > 4) y[4] = moment<4>(a4, sum_a, b4, sum_b, m[5]);
  }

 private:
  template <int degree>
  static FASTCONV_INLINE V moment(float power_a, V of_a, float power_b, V of_b, V at_infinity) {
    if constexpr (degree == moments - 1)
      return fma(splat(power_a), of_a, fma(splat(power_b), of_b, at_infinity));
    else
      return fma(splat(power_a), of_a, splat(power_b) * of_b);
  }
};

// The convolution with kernels of so many taps along an axis.
template <int TAPS>
struct Sizes {
  static constexpr int taps = TAPS, outputs = window + 1 - TAPS;  // outputs of a tile along an axis
  using WeightTransform = PointTransform<taps>;
  using OutputTransform = MomentTransform<outputs>;
  using OutputGradientTransform = PointTransform<outputs>;
  using WeightGradientTransform = MomentTransform<taps>;
};

// The transform of a square along both axes: `read(i, row)` fills row i of the square, `write(j, column)` takes column j of the
// result.
template <class Transform, class Read, class Write>
FASTCONV_INLINE void transform_square(const Read& read, const Write& write) {
  V half[Transform::in][Transform::out];
#pragma GCC unroll 6
  for (int i = 0; i < Transform::in; ++i) {
    V row[Transform::in];
    read(i, row);
    Transform::apply(row, half[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < Transform::out; ++j) {
    V column[Transform::in], result[Transform::out];
#pragma GCC unroll 6
    for (int i = 0; i < Transform::in; ++i) column[i] = half[i][j];
    Transform::apply(column, result);
    write(j, result);
  }
}

// What takes the 36 products of a vector's tiles or channels to `to`, `product` floats apart.
struct StoreProducts {
  float* to;
  int64_t product;
  FASTCONV_INLINE void operator()(int j, const V (&column)[window]) const {
#pragma GCC unroll 6
    for (int i = 0; i < window; ++i) store(to + (window * i + j) * product, column[i]);
  }
};

// What reads them column by column: transform_square then gives the rows of the result.
struct LoadProducts {
  const float* from;
  int64_t product;
  FASTCONV_INLINE void operator()(int j, V (&column)[window]) const {
#pragma GCC unroll 6
    for (int i = 0; i < window; ++i) column[i] = load(from + (window * i + j) * product);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA::winograd
