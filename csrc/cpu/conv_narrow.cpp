// Convolutions of stride 1 and input gradients with few output channels a group: gradients of the layers that read an image,
// and layers that end in one.
//
// The other kernels fill their tiles with output channels; here these are too few, so a tile is all of them times as many
// vectors of pixels as registers hold. Rows of the input are copied to cache with their padding, channel by channel in either
// layout. Then a tap is a distance in memory, and rows follow each other: outputs are computed along one flat axis, of which
// the columns of padding are dropped.
//
// An input gradient of stride s is s * s convolutions of stride 1, one for each residue of the output's position (its phases),
// which read the same rows; their results are interleaved.
#include "conv.h"
#include "conv_axis.h"
#include "gemm_tile.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr bool wide = FASTCONV_VECTOR_BYTES == 64;  // 32 registers instead of 16
constexpr int64_t most_outs = 16;                   // that it offers to compute
constexpr int64_t panel_outs = 4;                   // of a tile
constexpr int64_t chunk_steps = 256;                // of the reduction that are summed in registers
constexpr int64_t cached_bytes = 192 << 10;         // of rows and sums
constexpr int64_t least_units = 4;                  // a thread

constexpr int vectors_of(int outs) { return minimum((wide ? 24 : 12) / outs, wide ? 12 : 8); }
template <class T>
constexpr int64_t most_pixels = vectors_of(1) * lanes<T>;  // of a tile

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Narrow {
  const ConvProblem& problem;
  Axis rows, columns;
  const T *in, *weights, *bias;
  T* out;
  bool forward, channels_last;
  int64_t ins, outs;  // channels of a group
  int64_t panels, panel;
  int64_t row_count, column_count;  // outputs of the largest phase
  int64_t chunks, chunk;            // of input channels
  int64_t band, bands;              // rows of outputs computed at once
  int64_t pitch, plane;             // of the copied rows
  int64_t flat;                     // places of outputs in a band
  int64_t* offsets;                 // of all taps: from a place in the copied rows to what it reads
  int64_t* first_tap;               // of each phase, and the number of all
  T* packed;                        // [group][input channel][tap][panel][outs of a panel], by chunks and phases
  char* scratch;
  int64_t scratch_bytes, bytes;

  struct Scratch {
    T *copied, *sums;  // [channel][row][column]; [phase][out][place]
    Scratch(Workspace& space, const Narrow& a)
        : copied(space.take<T>(a.chunk * a.plane)), sums(space.take<T>(a.phases() * a.panels * a.panel * a.flat)) {}
  };

  Narrow(const ConvProblem& p, Primitive primitive, const ConvArgs& args)
      : problem(p),
        rows(row_axis(p, primitive == Primitive::forward)),
        columns(column_axis(p, primitive == Primitive::forward)),
        in(static_cast<const T*>(primitive == Primitive::forward ? args.x : args.gy)),
        weights(static_cast<const T*>(args.w)),
        bias(static_cast<const T*>(args.b)),
        out(static_cast<T*>(primitive == Primitive::forward ? args.y : args.gx)),
        forward(primitive == Primitive::forward),
        channels_last(p.layout == Layout::channels_last),
        ins((forward ? p.c : p.k) / p.groups),
        outs((forward ? p.k : p.c) / p.groups),
        panels(ceil_div(outs, panel_outs)),
        panel(ceil_div(outs, panels)),
        row_count(rows.phase[0].count),
        column_count(columns.phase[0].count) {
    int64_t most_taps = 1;
    for (int64_t i = 0; i < phases(); ++i) most_taps = maximum(most_taps, taps_of(i));
    chunks = ceil_div(ins, maximum<int64_t>(1, chunk_steps / most_taps));
    chunk = ceil_div(ins, chunks);
    pitch = columns.reach(column_count);
    const int64_t row_bytes = pitch * int64_t(sizeof(T)) * (chunk + phases() * panels * panel);
    const int64_t fixed = (rows.extent - 1) * pitch * int64_t(sizeof(T)) * chunk;
    band = minimum(maximum<int64_t>((cached_bytes - fixed) / row_bytes, 2), row_count);
    const int64_t others = p.n * p.groups;
    bands = maximum(ceil_div(row_count, band), minimum(row_count, ceil_div(least_units * args.threads, others)));
    band = ceil_div(row_count, bands), bands = ceil_div(row_count, band);
    flat = ceil_div(band * pitch, most_pixels<T>) * most_pixels<T> + most_pixels<T>;
    // An odd number of cache lines, so that the channels do not fall on the same sets.
    plane = (ceil_div(rows.reach(band) * pitch + flat - band * pitch, 16) | 1) * 16;
    Workspace space(args.workspace);
    offsets = space.take<int64_t>(p.r * p.s);
    first_tap = space.take<int64_t>(phases() + 1);
    packed = space.take<T>(p.groups * ins * p.r * p.s * panels * panel);
    Workspace one(nullptr);
    (void)Scratch(one, *this);
    scratch_bytes = one.bytes();
    scratch = space.take<char>(scratch_bytes * args.threads);
    bytes = space.bytes();
  }

  int64_t phases() const { return rows.phases * columns.phases; }
  const AxisPhase& row_phase(int64_t i) const { return rows.phase[i / columns.phases]; }
  const AxisPhase& column_phase(int64_t i) const { return columns.phase[i % columns.phases]; }
  int64_t taps_of(int64_t i) const { return row_phase(i).taps * column_phase(i).taps; }
  // The weights of a panel for one phase: [input channel][tap][out].
  T* packed_panel(int64_t group, int64_t i, int64_t p) const {
    return packed + ((group * first_tap[phases()] + first_tap[i]) * panels + p * taps_of(i)) * ins * panel;
  }

  void number_taps() const {
    int64_t* to = offsets;
    first_tap[0] = 0;
    for (int64_t i = 0; i < phases(); ++i) {
      first_tap[i + 1] = first_tap[i] + taps_of(i);
      for (int64_t r = 0; r < row_phase(i).taps; ++r)
        for (int64_t s = 0; s < column_phase(i).taps; ++s)
          *to++ = (row_phase(i).start + r * rows.tap_step - rows.lowest) * pitch + column_phase(i).start +
                  s * columns.tap_step - columns.lowest;
    }
  }

  void pack(int64_t group, int64_t i) const {
    const int64_t c = problem.c / problem.groups, k = problem.k / problem.groups;
    const bool last = problem.weight_layout == Layout::channels_last;
    const int64_t along_k = c * problem.r * problem.s, along_c = last ? 1 : problem.r * problem.s;
    const int64_t along_r = problem.s * (last ? c : 1), along_s = last ? c : 1;
    const int64_t along_in = forward ? along_c : along_k, along_out = forward ? along_k : along_c;
    for (int64_t p = 0; p < panels; ++p) {
      T* to = packed_panel(group, i, p);
      for (int64_t channel = 0; channel < ins; ++channel)
        for (int64_t r = 0; r < row_phase(i).taps; ++r)
          for (int64_t s = 0; s < column_phase(i).taps; ++s) {
            const int64_t row = row_phase(i).first_weight + r * rows.weight_step,
                          column = column_phase(i).first_weight + s * columns.weight_step;
            const T* from = weights + group * k * along_k + channel * along_in + row * along_r + column * along_s;
            for (int64_t o = p * panel; o < (p + 1) * panel; ++o) *to++ = o < outs ? from[o * along_out] : T(0);
          }
    }
  }

  // What `row_count` rows of outputs from `first_row` on read in `count` channels.
  void copy(int64_t n, int64_t first_channel, int64_t count, int64_t first_row, int64_t row_count, T* to) const {
    const int64_t channels = ins * problem.groups;
    const T* image = in + n * channels * rows.in * columns.in;
    for (int64_t r = 0; r < rows.reach(row_count); ++r, to += pitch) {
      const int64_t h = first_row + rows.lowest + r;
      const bool inside = h >= 0 && h < rows.in;
      if (channels_last && inside)
        transpose_row(image + h * columns.in * channels + first_channel, channels, count, to);
      else
        for (int64_t c = 0; c < count; ++c)
          copy_padded(image + (first_channel + c) * rows.in * columns.in + (inside ? h * columns.in : 0),
                      inside ? columns.in : 0, columns.lowest, 1, to + c * plane, pitch);
    }
  }

  // Writes up to a vector beyond the end of a row.
  void transpose_row(const T* row, int64_t channels, int64_t count, T* to) const {
    constexpr int L = lanes<T>;
    for (int64_t c = 0; c < count; c += L) {
      const int valid = int(minimum<int64_t>(count - c, L));
      for (int64_t j = 0; j < pitch; j += L) {
        Vec<T> block[L];
        for (int i = 0; i < L; ++i) {
          const int64_t w = j + i + columns.lowest;
          const T* from = row + w * channels + c;
          block[i] = w < 0 || w >= columns.in ? Vec<T>{} : valid == L ? load(from) : load_first(from, valid);
        }
        transpose<T>(block);
        for (int i = 0; i < valid; ++i) store(to + (c + i) * plane + j, block[i]);
      }
    }
  }

  // The sums of one panel at a tile of places over the channels of a chunk, to (first) or onto those of the chunks before.
  template <int OUTS>
  static void tile(int64_t channels, int64_t plane, const T* from, int64_t taps, const int64_t* offset, const T* weight,
                   bool first, const T* bias, T* to, int64_t to_pitch) {
    constexpr int vectors = vectors_of(OUTS), L = lanes<T>;
    Vec<T> sum[OUTS][vectors];
#pragma GCC unroll 4
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 12
      for (int v = 0; v < vectors; ++v) sum[o][v] = Vec<T>{};
    for (int64_t c = 0; c < channels; ++c, from += plane)
      for (int64_t t = 0; t < taps; ++t, weight += OUTS) {
        const T* at = from + offset[t];
        // The shorter side stays in registers: all sixteen are in use.
        if constexpr (OUTS <= vectors) {
          Vec<T> value[OUTS];
#pragma GCC unroll 4
          for (int o = 0; o < OUTS; ++o) value[o] = splat(weight[o]);
#pragma GCC unroll 12
          for (int v = 0; v < vectors; ++v) {
            const Vec<T> column = load(at + v * L);
#pragma GCC unroll 4
            for (int o = 0; o < OUTS; ++o) sum[o][v] = fma(value[o], column, sum[o][v]);
          }
        } else {
          Vec<T> column[vectors];
#pragma GCC unroll 12
          for (int v = 0; v < vectors; ++v) column[v] = load(at + v * L);
#pragma GCC unroll 4
          for (int o = 0; o < OUTS; ++o) {
            const Vec<T> value = splat(weight[o]);
#pragma GCC unroll 12
            for (int v = 0; v < vectors; ++v) sum[o][v] = fma(value, column[v], sum[o][v]);
          }
        }
      }
#pragma GCC unroll 4
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 12
      for (int v = 0; v < vectors; ++v) {
        T* place = to + o * to_pitch + v * L;
        const Vec<T> total = first ? sum[o][v] : load(place) + sum[o][v];
        store(place, bias ? total + splat(bias[o]) : total);
      }
  }
  static constexpr decltype(&tile<1>) tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};

  void compute(int64_t n, int64_t group, int64_t first_row, const Scratch& mine) const {
    const int64_t height = minimum(band, row_count - first_row), step = vectors_of(int(panel)) * lanes<T>;
    T bias_of[most_outs];
    for (int64_t o = 0; o < panels * panel; ++o) bias_of[o] = bias && o < outs ? bias[group * outs + o] : T(0);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t begin = i * chunk, count = minimum(chunk, ins - begin);
      copy(n, group * ins + begin, count, first_row, height, mine.copied);
      for (int64_t place = 0; place < height * pitch; place += step) {
        for (int64_t f = 0; f < phases(); ++f)
          for (int64_t p = 0; p < panels; ++p)
            tiles[panel - 1](count, plane, mine.copied + place, taps_of(f), offsets + first_tap[f],
                             packed_panel(group, f, p) + begin * taps_of(f) * panel, i == 0,
                             bias && i == chunks - 1 ? bias_of + p * panel : nullptr,
                             mine.sums + (f * panels + p) * panel * flat + place, flat);
      }
    }
    write(n, group, first_row, mine.sums);
  }

  // Puts the phases together.
  void write(int64_t n, int64_t group, int64_t first_row, const T* sums) const {
    const int64_t channels = outs * problem.groups, of_phase = panels * panel * flat;
    T* image = out + n * channels * rows.out * columns.out;
    for (int64_t a = 0; a < rows.phases; ++a)
      for (int64_t i = first_row; i < minimum(first_row + band, rows.phase[a].count); ++i) {
        const T* from = sums + a * columns.phases * of_phase + (i - first_row) * pitch;
        const int64_t h = a + i * rows.out_step;
        for (int64_t o = 0; o < outs; ++o, from += flat) {
          const int64_t channel = group * outs + o;
          if (!channels_last) {
            interleave_row(from, of_phase, columns.out_step, image + (channel * rows.out + h) * columns.out, columns.out);
            continue;
          }
          T* to = image + h * columns.out * channels + channel;
          for (int64_t b = 0; b < columns.phases; ++b)
            for (int64_t j = 0; j < columns.phase[b].count; ++j)
              to[(b + j * columns.out_step) * channels] = from[b * of_phase + j];
        }
      }
  }

  void run(int threads) const {
    number_taps();
    parallel(threads, [&](int id, int parts) {
      const Range packing = share(problem.groups * phases(), id, parts);
      for (int64_t i = packing.begin; i < packing.end; ++i) pack(i / phases(), i % phases());
      if (parts > 1) barrier();
      Workspace space(scratch + id * scratch_bytes);
      const Scratch mine(space, *this);
      const Range work = share(problem.n * problem.groups * bands, id, parts);
      for (int64_t i = work.begin; i < work.end; ++i)
        compute(i / bands / problem.groups, i / bands % problem.groups, i % bands * band, mine);
    });
  }
};

template <Primitive primitive, class F>
auto with_type(const ConvProblem& p, const ConvArgs& args, const F& f) {
  if (p.dtype == Dtype::float64) return f(Narrow<double>(p, primitive, args));
  return f(Narrow<float>(p, primitive, args));
}

template <Primitive primitive>
int64_t outs_of(const ConvProblem& p) {
  return (primitive == Primitive::forward ? p.k : p.c) / p.groups;
}

template <Primitive primitive>
bool applies(const ConvProblem& p) {
  const bool steps = primitive == Primitive::input_gradient || (p.stride_h == 1 && p.stride_w == 1);
  return steps && outs_of<primitive>(p) <= most_outs && worth_padding(p, primitive);
}

// As measured. Where few channels are read too, direct is faster but for gradients of images in colour.
template <Primitive primitive>
bool preferred(const ConvProblem& p) {
  constexpr bool forward = primitive == Primitive::forward;
  const int64_t ins = (forward ? p.c : p.k) / p.groups, outs = outs_of<primitive>(p);
  const bool colours = !forward && ins >= 16 && (outs == 3 || outs == 4);
  return (colours || (ins > 32 && outs <= 12)) && p.r * p.s > 1 && p.q >= 14;
}

template <Primitive primitive>
int64_t workspace_bytes(const ConvProblem& p, int threads) {
  ConvArgs args{};
  args.threads = threads;
  return with_type<primitive>(p, args, [](const auto& narrow) { return narrow.bytes; });
}

template <Primitive primitive>
void run(const ConvProblem& p, const ConvArgs& args) {
  with_type<primitive>(p, args, [&](const auto& narrow) { narrow.run(args.threads); });
}

template <Primitive primitive>
constexpr ConvAlgorithm algorithm = {
    "narrow", primitive, applies<primitive>, preferred<primitive>, workspace_bytes<primitive>, run<primitive>};

}  // namespace

const ConvAlgorithm narrow_forward = algorithm<Primitive::forward>;
const ConvAlgorithm narrow_input_gradient = algorithm<Primitive::input_gradient>;

}  // namespace fastconv::cpu::FASTCONV_ISA
