// The weight gradient by Winograd's F(3x3, 4x4) and F(5x5, 2x2), float32: the transforms of the input's windows and of the
// output gradient's tiles are multiplied as matrices over the tiles of all images, 36 products a tile instead of 144 or 100.
//
// Tiles are taken in blocks. All threads transform a block, then each adds its share of the 36 products to sums in memory; so
// every sum has one order, whatever the threads. At last the sums are transformed to taps. Where a result is not finite, all is
// computed again by implicit_gemm (conv_winograd.cpp says why).
#include "conv.h"
#include "gemm_tile.h"
#include "parallel.h"
#include "winograd_gemm.h"
#include "winograd_tiles.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using namespace winograd;

constexpr int64_t block_floats = 2 << 20;  // of a block's transforms: they should stay in the last-level cache
constexpr int64_t slice = 32;              // channels transformed at a time

template <bool channels_last, int taps>
struct WeightGradient {
  static constexpr int outputs = Sizes<taps>::outputs, all_taps = taps * taps;
  using OutputGradientTransform = typename Sizes<taps>::OutputGradientTransform;
  using WeightGradientTransform = typename Sizes<taps>::WeightGradientTransform;

  const ConvProblem& problem;
  Images x_images, gy_images;
  Tiles grid;
  const float *x, *gy;  // of the group at hand
  float *gw, *gb;
  int64_t c, k;        // channels of a group
  int64_t tile_block;  // a multiple of a chunk
  // A: x[e][channel][tile], in NHWC x[e][tile][channel]. B: gy[e][panel of channels][tile][2 vectors].
  int64_t x_step, x_product, gy_panel, gy_product, sum_row, sum_product;
  float *x_transforms, *gy_transforms, *sums;
  uint8_t* spoiled;
  int64_t bytes;

  WeightGradient(const ConvProblem& p, const ConvArgs& args)
      : problem(p),
        x_images(images_of(p, true)),
        gy_images(images_of(p, false)),
        grid(outputs, p.n, p.p, p.q, p.dilation_h, p.dilation_w),
        x(static_cast<const float*>(args.x)),
        gy(static_cast<const float*>(args.gy)),
        gw(static_cast<float*>(args.gw)),
        gb(static_cast<float*>(args.gb)),
        c(p.c / p.groups),
        k(p.k / p.groups) {
    x_images.pad_top = p.pad_top, x_images.pad_left = p.pad_left;
    const int64_t fitting = block_floats / (products * (c + k)) / chunk * chunk;
    tile_block = minimum(maximum(fitting, chunk), round_up(grid.count, L));
    x_step = row_stride(channels_last ? c : tile_block);
    x_product = product_stride((channels_last ? tile_block : c) * x_step);
    gy_panel = tile_block * panel;
    gy_product = product_stride(ceil_div(k, panel) * gy_panel);
    sum_row = round_up(k, panel);
    sum_product = product_stride(c * sum_row);
    Workspace space(args.workspace);
    spoiled = space.take<uint8_t>(1);
    x_transforms = space.take<float>(products * x_product);
    gy_transforms = space.take<float>(products * gy_product);
    sums = space.take<float>(products * sum_product);
    bytes = space.bytes();
  }

  // The transforms of a vector's number of tiles, of which those beyond the last are zero, in some channels; `at`: the first
  // one's place in the block.
  void transform_x(int64_t tile, int64_t at, int64_t begin, int64_t end) const {
    const float* from = x + begin * x_images.channel;
    if constexpr (channels_last) {
      for (int64_t t = 0; t < L && at + t < tile_block; ++t)
        transform_channels<InputTransform>(x_images, grid.window(x_images, window, tile + t), from, end - begin,
                                           x_transforms + (at + t) * x_step + begin, panel, x_product);
    } else {
      TileReader<window> reader(grid, x_images, tile);
      for (int64_t i = begin; i < end; ++i, from += x_images.channel) {
        reader.open(from);
        transform_square<InputTransform>(reader, StoreProducts{x_transforms + i * x_step + at, x_product});
      }
    }
  }

  void transform_gy(int64_t tile, int64_t at, int64_t begin, int64_t end) const {
    const float* from = gy + begin * gy_images.channel;
    float* to = gy_transforms + begin / panel * gy_panel + at * panel;
    if constexpr (channels_last) {
      for (int64_t t = 0; t < L && at + t < tile_block; ++t)
        transform_channels<OutputGradientTransform>(gy_images, grid.window(gy_images, outputs, tile + t), from, end - begin,
                                                    to + t * panel, gy_panel, gy_product);
    } else {
      TileReader<outputs> reader(grid, gy_images, tile);
      alignas(64) float by_channel[products][L * L];
      for (int64_t v = 0; v * L < end - begin; ++v) {
        for (int i = 0; i < L; ++i) {
          const int64_t channel = minimum(begin + v * L + i, end - 1);  // beyond the last, results are not used
          reader.open(gy + channel * gy_images.channel);
          transform_square<OutputGradientTransform>(reader, StoreProducts{by_channel[0] + i * L, L * L});
        }
        float* pair = to + v / panel_vectors * gy_panel + v % panel_vectors * L;
        for (int e = 0; e < products; ++e) {
          V rows[L];
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) rows[i] = load(by_channel[e] + i * L);
          transpose<float>(rows);
#pragma GCC unroll 16
          for (int t = 0; t < L; ++t) store(pair + e * gy_product + t * panel, rows[t]);
        }
      }
    }
  }

  void transform_block(int64_t first, int64_t count, int id, int parts) const {
    const int64_t x_slices = ceil_div(c, slice), slices = x_slices + ceil_div(k, slice);
    const Range work = share(ceil_div(count, L) * slices, id, parts);
    for (int64_t i = work.begin; i < work.end; ++i) {
      const int64_t at = i / slices * L, s = i % slices;
      if (s < x_slices)
        transform_x(first + at, at, s * slice, minimum((s + 1) * slice, c));
      else
        transform_gy(first + at, at, (s - x_slices) * slice, minimum((s - x_slices + 1) * slice, k));
    }
  }

  void add_block(int64_t first, int64_t count, int id, int parts) const {
    const int64_t panels = ceil_div(k, panel);
    const Range work = share(products * panels, id, parts);
    for (int64_t i = work.begin; i < work.end; ++i) {
      const int e = int(i / panels);
      const int64_t p = i % panels, vectors = minimum<int64_t>(ceil_div(k, L) - p * panel_vectors, panel_vectors);
      multiply<channels_last>(e, e + 1, c, vectors, count, {x_transforms, x_product, x_step},
                              {gy_transforms + p * gy_panel, gy_product, gy_panel}, {sums + p * panel, sum_product, sum_row},
                              gradient_chunk, first > 0);
    }
  }

  // The taps of all channels of x and a vector of output channels.
  void transform_sums(int64_t v) const {
    const int count = int(minimum<int64_t>(k - v * L, L));
    const bool last = problem.weight_layout == Layout::channels_last;
    const int64_t tap = last ? c : 1, channel = last ? 1 : all_taps;
    V check{};
    for (int64_t i = 0; i < c; ++i) {
      alignas(64) float by_tap[all_taps][L];
      transform_square<WeightGradientTransform>(LoadProducts{sums + i * sum_row + v * L, sum_product},
                                                [&](int r, const V(&row)[taps]) FASTCONV_INLINE_LAMBDA {
                                                  for (int s = 0; s < taps; ++s) {
                                                    check = fma(row[s], V{}, check);
                                                    store(by_tap[taps * r + s], row[s]);
                                                  }
                                                });
      float* to = gw + v * L * c * all_taps + i * channel;
      for (int lane = 0; lane < count; ++lane, to += c * all_taps)
        for (int t = 0; t < all_taps; ++t) to[t * tap] = by_tap[t][lane];
    }
    for (int lane = 0; lane < count; ++lane)
      if (check[lane] != check[lane]) __atomic_store_n(spoiled, uint8_t(1), __ATOMIC_RELAXED);
  }

  // The sums of gy over images and pixels, of a vector of channels: `run` pixels at a time.
  void sum_channels(int64_t v) const {
    constexpr int64_t run = 256;
    const int64_t pixels = problem.p * problem.q;
    const int count = int(minimum<int64_t>(k - v * L, L));
    V total{};
    for (int64_t n = 0; n < problem.n; ++n)
      for (int64_t first = 0; first < pixels; first += run) {
        const int64_t end = minimum(first + run, pixels);
        const float* from = gy + n * gy_images.image + v * L * gy_images.channel;
        V sum{};
        if constexpr (channels_last) {
          for (int64_t i = first; i < end; ++i) sum = sum + load_part(from + i * gy_images.column, count);
        } else {
          for (int lane = 0; lane < count; ++lane) {
            V part{};
            const float* plane = from + lane * gy_images.channel;
            for (int64_t i = first; i < end; i += L) part = part + load_part(plane + i, int(minimum<int64_t>(end - i, L)));
            for (int i = 0; i < L; ++i) sum[lane] += part[i];
          }
        }
        total = total + sum;
      }
    store_part(gb + v * L, total, count);
  }

  void run_group(int id, int parts) const {
    for (int64_t first = 0; first < grid.count; first += tile_block) {
      const int64_t count = minimum(tile_block, grid.count - first);
      transform_block(first, count, id, parts);
      if (parts > 1) barrier();
      add_block(first, count, id, parts);
      if (parts > 1) barrier();
    }
    const Range vectors = share(ceil_div(k, L), id, parts);
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      transform_sums(v);
      if (gb) sum_channels(v);
    }
  }

  // Whether the result is finite.
  bool run(int threads) {
    *spoiled = 0;
    for (int64_t group = 0; group < problem.groups; ++group) {
      parallel(threads, [&](int id, int parts) { run_group(id, parts); });
      x += c * x_images.channel;
      gy += k * gy_images.channel;
      gw += k * c * all_taps;
      if (gb) gb += k;
    }
    return !*spoiled;
  }
};

template <int taps, class F>
auto with_layout(const ConvProblem& p, const ConvArgs& args, const F& f) {
  if (p.layout == Layout::channels_last) {
    WeightGradient<true, taps> gradient(p, args);
    return f(gradient);
  }
  WeightGradient<false, taps> gradient(p, args);
  return f(gradient);
}

template <int taps>
int64_t workspace_bytes(const ConvProblem& p, int threads) {
  const int64_t own = with_layout<taps>(p, ConvArgs{}, [](const auto& gradient) { return gradient.bytes; });
  return maximum(own, implicit_gemm_weight_gradient.workspace_bytes(p, threads));
}

template <int taps>
void run(const ConvProblem& p, const ConvArgs& args) {
  if (!with_layout<taps>(p, args, [&](auto& gradient) { return gradient.run(args.threads); }))
    implicit_gemm_weight_gradient.run(p, args);
}

// The sums are transformed once, so there must be tiles enough to pay for it.
template <int taps>
bool preferred(const ConvProblem& p) {
  const Tiles tiles(Sizes<taps>::outputs, p.n, p.p, p.q, p.dilation_h, p.dilation_w);
  const int64_t weights = p.c / p.groups * (p.k / p.groups);
  const bool small = weights <= 1 << 14;
  return enough_channels(p) && weights > 16 * 16 && tiles.count >= (small ? 16 : 32) &&
         3 * p.p * p.q > tiles.of_image * tiles.outputs * tiles.outputs;
}

template <int taps>
constexpr ConvAlgorithm algorithm = {winograd_name<taps>, Primitive::weight_gradient, winograd_applies<taps>,
                                     preferred<taps>,     workspace_bytes<taps>,      run<taps>};

}  // namespace

const ConvAlgorithm winograd_weight_gradient = algorithm<3>;
const ConvAlgorithm winograd_5x5_weight_gradient = algorithm<5>;

}  // namespace fastconv::cpu::FASTCONV_ISA
