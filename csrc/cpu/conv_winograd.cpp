// Convolution and its input gradient by Winograd's F(4x4, 3x3), float32: 36 products for 16 outputs instead of 144; and by
// F(2x2, 5x5): 36 for 4 outputs instead of 100. Windows, and what is done to them, are the same.
//
// Windows of the input and the weights are transformed, their 36 parts multiplied as matrices over the channels, and the
// products transformed to outputs. Tiles and output channels are taken in blocks, so that what is transformed stays in cache.
// Blocks are shared among threads in one of two ways that give the same bits: either all weights are transformed first and each
// thread takes tiles, or all tiles first and each takes output channels. Weights that were transformed before the call are read
// in either way.
//
// The input gradient is the convolution of the output gradient with the kernels turned around.
//
// A tile's outputs are sums over its whole window, so that an infinity or NaN, which a convolution shows only where the kernel
// touches it, spoils the tile, and numbers near the greatest overflow. An image with such outputs is computed again by
// implicit_gemm: results other than finite are those of implicit_gemm.
#include "conv.h"
#include "gemm_tile.h"
#include "parallel.h"
#include "winograd_gemm.h"
#include "winograd_tiles.h"
#include "workspace.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using namespace winograd;

// Distances in memory of the weights of one group.
struct Weights {
  int64_t out, reduction, tap;
  bool turned;  // the last tap first
};

// The taps of `count` weights, `lane` apart, as vectors.
template <int all>
FASTCONV_INLINE void load_taps(const float* w, int64_t lane, int64_t tap, int count, bool turned, V (&g)[all]) {
  if (lane == 1) {
    for (int t = 0; t < all; ++t) g[t] = load_part(w + t * tap, count);
  } else if (tap == 1 && count == L) {
    constexpr int rest = all % L;  // taps that no transposition brings
    for (int t = 0; t + L <= all; t += L) {
      V rows[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) rows[i] = load(w + i * lane + t);
      transpose<float>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) g[t + i] = rows[i];
    }
    for (int t = all - rest; t < all; ++t)
      for (int i = 0; i < L; ++i) g[t][i] = w[i * lane + t];
  } else {
    for (int t = 0; t < all; ++t) {
      g[t] = V{};
      for (int i = 0; i < count; ++i) g[t][i] = w[i * lane + t * tap];
    }
  }
  if (turned)
    for (int t = 0; t < all / 2; ++t) {
      const V other = g[t];
      g[t] = g[all - 1 - t], g[all - 1 - t] = other;
    }
}

template <int taps>
FASTCONV_INLINE void transform_taps(const V (&g)[taps * taps], float* to, int64_t product) {
  transform_square<PointTransform<taps>>(
      [&](int i, V(&row)[taps]) FASTCONV_INLINE_LAMBDA {
        for (int j = 0; j < taps; ++j) row[j] = g[taps * i + j];
      },
      StoreProducts{to, product});
}

// One group. A forward convolution and an input gradient differ in what they read and write and in the order of the weights.
struct Geometry {
  Images read, written;
  Weights weights;
  int64_t reduction, out;  // channels of a group
  Tiles tiles;

  template <int taps>
  Geometry(const ConvProblem& p, bool forward, Sizes<taps>)
      : read(images_of(p, forward)),
        written(images_of(p, !forward)),
        reduction((forward ? p.c : p.k) / p.groups),
        out((forward ? p.k : p.c) / p.groups),
        tiles(Sizes<taps>::outputs, p.n, forward ? p.p : p.h, forward ? p.q : p.w, p.dilation_h, p.dilation_w) {
    read.pad_top = forward ? p.pad_top : (taps - 1) * p.dilation_h - p.pad_top;
    read.pad_left = forward ? p.pad_left : (taps - 1) * p.dilation_w - p.pad_left;
    const int64_t c = p.c / p.groups;
    const bool last = p.weight_layout == Layout::channels_last;
    const int64_t along_k = taps * taps * c, along_c = last ? 1 : taps * taps;
    weights = {forward ? along_k : along_c, forward ? along_c : along_k, last ? c : 1, !forward};
  }
};

// Of a block: multiples of a panel, so that every block of what is shared begins with one.
constexpr int64_t most_tiles = 96, few_tiles = wide ? 64 : 48, most_outputs = 96, few_outputs = 32;
static_assert(most_tiles % panel == 0 && few_tiles % panel == 0 && most_outputs % panel == 0 && few_outputs % panel == 0);

template <bool channels_last, int taps>
struct Winograd {
  static constexpr int outputs = Sizes<taps>::outputs;
  using OutputTransform = typename Sizes<taps>::OutputTransform;

  const ConvProblem& problem;
  Geometry geometry;
  const float *input, *weights, *bias;  // of the group at hand
  float* output;
  int64_t reduction, out, tiles;
  int64_t out_block, tile_block;
  bool weights_shared;  // all weights transformed first and used by all threads, or else all tiles
  // Floats from one of the 36 parts to the next.
  int64_t weights_product, tiles_product, d_product;
  int64_t a_row, d_row;
  uint8_t* spoiled;  // images
  float *packed, *shared;
  char* scratch;
  int64_t scratch_bytes, bytes;

  // In NCHW tiles come in vectors, in NHWC output channels.
  static constexpr int64_t tile_unit = channels_last ? 1 : L, out_unit = channels_last ? L : 1;

  int64_t size_of_a(int64_t rows) const { return product_stride(rows * a_row); }
  int64_t size_of_b(int64_t columns) const { return product_stride(ceil_div(columns, panel) * panel * reduction); }
  int64_t size_of_weights(int64_t count) const { return channels_last ? size_of_b(count) : size_of_a(count); }
  int64_t size_of_tiles(int64_t count) const { return channels_last ? size_of_a(count) : size_of_b(count); }

  int64_t own_product() const {
    if (weights_shared) return tiles_product;
    return packed ? 0 : weights_product;
  }

  struct Scratch {
    float *own, *d;
    Scratch(Workspace& space, const Winograd& w)
        : own(space.take<float>(products * w.own_product())), d(space.take<float>(products * w.d_product)) {}
  };

  Winograd(const ConvProblem& p, const ConvArgs& args, bool forward)
      : problem(p),
        geometry(p, forward, Sizes<taps>{}),
        input(static_cast<const float*>(forward ? args.x : args.gy)),
        weights(static_cast<const float*>(args.w)),
        bias(static_cast<const float*>(args.b)),
        output(static_cast<float*>(forward ? args.y : args.gx)),
        reduction(geometry.reduction),
        out(geometry.out),
        tiles(geometry.tiles.count),
        packed(static_cast<float*>(args.packed)) {
    weights_shared = tiles >= out;
    tile_block = minimum(weights_shared && reduction >= 128 ? most_tiles : few_tiles, round_up(tiles, L));
    out_block = minimum(weights_shared ? most_outputs : few_outputs, round_up(out, L));
    a_row = row_stride(reduction);
    weights_product = size_of_weights(weights_shared || packed ? out : out_block);
    tiles_product = size_of_tiles(weights_shared ? tile_block : tiles);
    d_row = channels_last ? round_up(out_block, panel) : round_up(tile_block, panel);
    d_product = product_stride((channels_last ? tile_block : out_block) * d_row);
    Workspace space(args.workspace);
    spoiled = space.take<uint8_t>(p.n);
    const int64_t shared_product = weights_shared ? weights_product : tiles_product;
    shared = packed && weights_shared ? packed : space.take<float>(products * shared_product);
    Workspace one(nullptr);
    (void)Scratch(one, *this);
    scratch_bytes = one.bytes();
    scratch = space.take<char>(scratch_bytes * args.threads);
    bytes = space.bytes();
  }

  // Where unit `i` of tiles or output channels lies among their transforms.
  float* tile_unit_at(float* transforms, int64_t i) const {
    return transforms + (channels_last ? i * a_row : i / panel_vectors * panel * reduction + i % panel_vectors * L);
  }
  float* out_unit_at(float* transforms, int64_t i) const {
    return transforms + (channels_last ? i / panel_vectors * panel * reduction + i % panel_vectors * L : i * a_row);
  }

  // The transforms of one unit of tiles in some channels.
  void transform_tiles(int64_t unit, int64_t begin, int64_t end, float* to) const {
    const float* from = input + begin * geometry.read.channel;
    if constexpr (channels_last) {
      transform_channels<InputTransform>(geometry.read, geometry.tiles.window(geometry.read, window, unit), from, end - begin,
                                         to + begin, panel, tiles_product);
    } else {
      TileReader<window> reader(geometry.tiles, geometry.read, unit * L);
      for (int64_t c = begin; c < end; ++c, from += geometry.read.channel) {
        reader.open(from);
        transform_square<InputTransform>(reader, StoreProducts{to + c * panel, tiles_product});
      }
    }
  }

  // The transforms of the weights of one unit of output channels.
  void transform_weights(int64_t unit, float* to) const {
    const Weights& strides = geometry.weights;
    const float* from = weights + unit * out_unit * strides.out;
    V g[taps * taps];
    if constexpr (channels_last) {
      const int count = int(minimum<int64_t>(out - unit * L, L));
      for (int64_t c = 0; c < reduction; ++c) {
        load_taps(from + c * strides.reduction, strides.out, strides.tap, count, strides.turned, g);
        transform_taps<taps>(g, to + c * panel, weights_product);
      }
    } else {
      for (int64_t c = 0; c < reduction; c += L) {
        const int count = int(minimum<int64_t>(reduction - c, L));
        load_taps(from + c * strides.reduction, strides.reduction, strides.tap, count, strides.turned, g);
        transform_taps<taps>(g, to + c, weights_product);
      }
    }
  }

  // One thread's share.
  void transform_all_weights(float* to, int id, int parts) const {
    const Range units = share(ceil_div(out, out_unit), id, parts);
    for (int64_t i = units.begin; i < units.end; ++i) transform_weights(i, out_unit_at(to, i));
  }

  // The outputs of tiles and output channels in D.
  void transform_outputs(int64_t first_tile, int64_t tile_count, int64_t first_out, int64_t out_count, const float* d) const {
    if constexpr (channels_last) {
      for (int64_t t = 0; t < tile_count; ++t) {
        const Window to = geometry.tiles.window(geometry.written, outputs, first_tile + t);
        V check{};
        for (int64_t k = 0; k < out_count; k += L) {
          const int count = int(minimum<int64_t>(out_count - k, L));
          const V add = bias ? load_part(bias + first_out + k, count) : V{};
          float* pixels = output + to.offset + first_out + k;
          transform_square<OutputTransform>(
              LoadProducts{d + t * d_row + k, d_product}, [&](int r, const V(&row)[outputs]) FASTCONV_INLINE_LAMBDA {
                for (int j = 0; j < outputs; ++j) {
                  const V y = row[j] + add;
                  check = fma(y, V{}, check);
                  if (r < to.bottom && j < to.right)
                    store_part(pixels + r * geometry.written.row_step() + j * geometry.written.column_step(), y, count);
                }
              });
        }
        note_spoiled(check, first_tile + t, 0);
      }
    } else {
      for (int64_t t = 0; t < tile_count; t += L) {
        TileWriter<outputs> writer(geometry.tiles, geometry.written, first_tile + t);
        V check{};
        for (int64_t k = 0; k < out_count; ++k) {
          const V add = splat(bias ? bias[first_out + k] : 0.0f);
          float* channel = output + (first_out + k) * geometry.written.channel;
          writer.open(channel);
          transform_square<OutputTransform>(LoadProducts{d + k * d_row + t, d_product},
                                            [&](int r, V(&row)[outputs]) FASTCONV_INLINE_LAMBDA {
                                              for (int j = 0; j < outputs; ++j) {
                                                row[j] = row[j] + add;
                                                check = fma(row[j], V{}, check);
                                              }
                                              writer(r, row);
                                            });
          writer.close(channel);
        }
        note_spoiled(check, first_tile + t, 1);
      }
    }
  }

  // A lane of `check` is NaN where an output of tile first + lane * step is not finite.
  void note_spoiled(V check, int64_t first, int64_t step) const {
    const Mask<float> bad = check != check;
    for (int i = 0; i < L; ++i)
      if (bad[i] && first + i * step < tiles)
        __atomic_store_n(&spoiled[geometry.tiles.image(first + i * step)], uint8_t(1), __ATOMIC_RELAXED);
  }

  // The outputs of a block of tiles and of output channels from their transforms.
  void compute(int64_t first_tile, int64_t tile_count, const float* tile_transforms, int64_t first_out, int64_t out_count,
               const float* weight_transforms, float* d) const {
    const Operand of_tiles = {tile_transforms, tiles_product, channels_last ? a_row : panel * reduction};
    const Operand of_weights = {weight_transforms, weights_product, channels_last ? panel * reduction : a_row};
    const Result result = {d, d_product, d_row};
    if (channels_last)
      multiply(0, products, tile_count, ceil_div(out_count, L), reduction, of_tiles, of_weights, result, chunk);
    else
      multiply(0, products, out_count, ceil_div(tile_count, L), reduction, of_weights, of_tiles, result, chunk);
    transform_outputs(first_tile, tile_count, first_out, out_count, d);
  }

  void run_with_weights_shared(int id, int parts) const {
    if (!packed) {
      transform_all_weights(shared, id, parts);
      if (parts > 1) barrier();
    }
    Workspace space(scratch + id * scratch_bytes);
    const Scratch mine(space, *this);
    const Range work = share(ceil_div(tiles, tile_unit), id, parts);
    const int64_t block_units = tile_block / tile_unit;
    for (int64_t begin = work.begin; begin < work.end; begin += block_units) {
      const int64_t end = minimum(begin + block_units, work.end);
      for (int64_t i = begin; i < end; ++i) transform_tiles(i, 0, reduction, tile_unit_at(mine.own, i - begin));
      for (int64_t k = 0; k < out; k += out_block)
        compute(begin * tile_unit, minimum(end * tile_unit, tiles) - begin * tile_unit, mine.own, k,
                minimum(out_block, out - k), out_unit_at(shared, k / out_unit), mine.d);
    }
  }

  void run_with_tiles_shared(int id, int parts) const {
    constexpr int64_t slice = 32;  // channels
    const int64_t slices = ceil_div(reduction, slice);
    const Range units = share(ceil_div(tiles, tile_unit) * slices, id, parts);
    for (int64_t i = units.begin; i < units.end; ++i) {
      const int64_t unit = i / slices, begin = i % slices * slice;
      transform_tiles(unit, begin, minimum(begin + slice, reduction), tile_unit_at(shared, unit));
    }
    if (parts > 1) barrier();
    Workspace space(scratch + id * scratch_bytes);
    const Scratch mine(space, *this);
    const int64_t block_units = out_block / out_unit, panel_units = channels_last ? panel_vectors : 1;
    const Range panels = share(ceil_div(out, out_unit * panel_units), id, parts);  // whole ones can be read where they lie
    const Range work = {panels.begin * panel_units, minimum(panels.end * panel_units, ceil_div(out, out_unit))};
    for (int64_t begin = work.begin; begin < work.end; begin += block_units) {
      const int64_t end = minimum(begin + block_units, work.end);
      const float* transforms = packed ? out_unit_at(packed, begin) : mine.own;
      if (!packed)
        for (int64_t i = begin; i < end; ++i) transform_weights(i, out_unit_at(mine.own, i - begin));
      for (int64_t t = 0; t < tiles; t += tile_block)
        compute(t, minimum(tile_block, tiles - t), tile_unit_at(shared, t / tile_unit), begin * out_unit,
                minimum(end * out_unit, out) - begin * out_unit, transforms, mine.d);
    }
  }

  void run(int threads) {
    std::memset(spoiled, 0, size_t(problem.n));
    for (int64_t group = 0; group < problem.groups; ++group) {
      parallel(threads, [&](int id, int parts) {
        if (weights_shared)
          run_with_weights_shared(id, parts);
        else
          run_with_tiles_shared(id, parts);
      });
      input += reduction * geometry.read.channel;
      output += out * geometry.written.channel;
      next_group();
      if (bias) bias += out;
    }
  }

  void pack(int threads) {
    for (int64_t group = 0; group < problem.groups; ++group) {
      parallel(threads, [&](int id, int parts) { transform_all_weights(packed, id, parts); });
      next_group();
    }
  }

  int64_t packed_floats() const { return products * size_of_weights(out); }  // of a group

  void next_group() {
    weights += problem.k / problem.groups * (problem.c / problem.groups) * taps * taps;
    if (!packed) return;
    packed += packed_floats();
    if (weights_shared) shared = packed;
  }
};

// Calls f with a Winograd for the problem's layout.
template <int taps, class F>
auto with_layout(const ConvProblem& p, const ConvArgs& args, bool forward, const F& f) {
  if (p.layout == Layout::channels_last) {
    Winograd<true, taps> w(p, args, forward);
    return f(w);
  }
  Winograd<false, taps> w(p, args, forward);
  return f(w);
}

template <Primitive primitive>
constexpr const ConvAlgorithm& exact() {
  return primitive == Primitive::forward ? implicit_gemm_forward : implicit_gemm_input_gradient;
}

ConvProblem one_image(ConvProblem p) {
  p.n = 1;
  return p;
}

template <Primitive primitive, int taps>
int64_t workspace_bytes(const ConvProblem& p, int threads) {
  ConvArgs args{};
  args.threads = threads;
  const int64_t own = with_layout<taps>(p, args, primitive == Primitive::forward, [](const auto& w) { return w.bytes; });
  Workspace space(nullptr);
  space.take<uint8_t>(p.n);
  return maximum(own, space.bytes() + exact<primitive>().workspace_bytes(one_image(p), threads));
}

template <Primitive primitive, int taps>
void run(const ConvProblem& p, const ConvArgs& args) {
  constexpr bool forward = primitive == Primitive::forward;
  const uint8_t* spoiled = with_layout<taps>(p, args, forward, [&](auto& w) {
    w.run(args.threads);
    return w.spoiled;
  });
  Workspace space(args.workspace);
  space.take<uint8_t>(p.n);
  ConvArgs again = args;
  again.packed = nullptr;
  again.workspace = static_cast<char*>(args.workspace) + space.bytes();
  const int64_t x_image = p.c * p.h * p.w, y_image = p.k * p.p * p.q;
  for (int64_t i = 0; i < p.n; ++i) {
    if (!spoiled[i]) continue;
    if (forward) {
      again.x = static_cast<const float*>(args.x) + i * x_image;
      again.y = static_cast<float*>(args.y) + i * y_image;
    } else {
      again.gy = static_cast<const float*>(args.gy) + i * y_image;
      again.gx = static_cast<float*>(args.gx) + i * x_image;
    }
    exact<primitive>().run(one_image(p), again);
  }
}

template <Primitive primitive, int taps>
int64_t packed_bytes(const ConvProblem& p) {
  return with_layout<taps>(p, ConvArgs{}, primitive == Primitive::forward, [&](const auto& w) {
    Workspace space(nullptr);
    space.take<float>(p.groups * w.packed_floats());
    return space.bytes();
  });
}

template <Primitive primitive, int taps>
void pack(const ConvProblem& p, const ConvArgs& args) {
  with_layout<taps>(p, args, primitive == Primitive::forward, [&](auto& w) { w.pack(args.threads); });
}

// Looks at one image: a sample's bits may not depend on its batch.
template <Primitive primitive, int taps>
bool preferred(const ConvProblem& p) {
  const Tiles tiles = Geometry(p, primitive == Primitive::forward, Sizes<taps>{}).tiles;
  const int64_t wanted = primitive == Primitive::forward ? p.p * p.q : p.h * p.w;
  const int64_t computed = tiles.of_image * tiles.outputs * tiles.outputs;
  return enough_channels(p) && 3 * wanted > computed;
}

template <Primitive primitive, int taps>
constexpr ConvAlgorithm algorithm = {winograd_name<taps>,
                                     primitive,
                                     winograd_applies<taps>,
                                     preferred<primitive, taps>,
                                     workspace_bytes<primitive, taps>,
                                     run<primitive, taps>,
                                     packed_bytes<primitive, taps>,
                                     pack<primitive, taps>};

}  // namespace

const ConvAlgorithm winograd_forward = algorithm<Primitive::forward, 3>;
const ConvAlgorithm winograd_input_gradient = algorithm<Primitive::input_gradient, 3>;
const ConvAlgorithm winograd_5x5_forward = algorithm<Primitive::forward, 5>;
const ConvAlgorithm winograd_5x5_input_gradient = algorithm<Primitive::input_gradient, 5>;

}  // namespace fastconv::cpu::FASTCONV_ISA
