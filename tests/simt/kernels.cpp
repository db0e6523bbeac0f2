// The CUDA kernels, run on a CPU under the simulation's checks and compared with plain loops: bit for bit on small integers,
// which every order of summation adds exactly. Prints a line for each operator, layout and type that is wrong or faults, then
// "done".
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.h"
#include "../../csrc/simt/memory.h"
#include "../../csrc/simt/scalar.h"
#include "../../csrc/simt/simt.h"

using namespace fastconv;

namespace {

using cpu::MaxIndex;

struct Shape {
  int64_t n, c, h, w;
  Layout layout;
  int64_t count() const { return n * c * h * w; }
  int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return layout == Layout::channels_last ? ((in * h + ih) * w + iw) * c + ic : ((in * c + ic) * h + ih) * w + iw;
  }
};

// A tensor in a dtype, in memory of exactly its size, and the same values in double.
struct Tensor {
  Dtype dtype;
  std::vector<double> values;
  std::vector<unsigned char> bytes;

  Tensor(Dtype dtype, int64_t count, int seed = 0)
      : dtype(dtype), values(size_t(count)), bytes(size_t(count * size_of(dtype) + 16)) {
    if (!seed) return;
    uint32_t state = uint32_t(seed) * 2654435761u;
    for (size_t i = 0; i < values.size(); ++i) {
      state = state * 1664525u + 1013904223u;
      values[i] = double(int(state >> 24) % 7 - 3);
      put(i, values[i]);
    }
  }
  // 16-byte aligned, as torch's allocations are.
  unsigned char* data() { return bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16; }
  int64_t size() const { return int64_t(values.size()) * size_of(dtype); }
  void put(size_t i, double x) {
    if (dtype == Dtype::float64) reinterpret_cast<double*>(data())[i] = x;
    if (dtype == Dtype::float32) reinterpret_cast<float*>(data())[i] = float(x);
    if (dtype == Dtype::float16) reinterpret_cast<Half*>(data())[i] = simt::narrow_half(float(x));
    if (dtype == Dtype::bfloat16) reinterpret_cast<BFloat16*>(data())[i] = simt::narrow_bfloat16(float(x));
  }
  double get(size_t i) {
    if (dtype == Dtype::float64) return reinterpret_cast<double*>(data())[i];
    if (dtype == Dtype::float32) return reinterpret_cast<float*>(data())[i];
    if (dtype == Dtype::float16) return simt::widen(reinterpret_cast<Half*>(data())[i]);
    return simt::widen(reinterpret_cast<BFloat16*>(data())[i]);
  }
  simt::Buffer input(const char* name) { return {name, data(), size_t(size()), simt::Access::read_only, false}; }
  simt::Buffer output(const char* name) { return {name, data(), size_t(size()), simt::Access::read_write, true}; }
  // Rounds the expected values to the dtype and compares.
  bool equals(const std::vector<double>& want, double tolerance = 0) {
    for (size_t i = 0; i < want.size(); ++i) {
      Tensor one(dtype, 1);
      one.put(0, want[i]);
      const double got = get(i), expected = one.get(0);
      if (tolerance ? !(std::abs(got - expected) <= tolerance * (1 + std::abs(expected))) : got != expected) return false;
    }
    return true;
  }
};

template <class Call>
void guarded(const std::string& what, const Call& call) {
  try {
    if (!call()) std::printf("%s: wrong\n", what.c_str());
  } catch (const simt::KernelFault& fault) {
    std::printf("%s: %s\n", what.c_str(), fault.what());
  }
}

// ---- convolution ----

const char* const primitives[] = {"forward", "input_gradient", "weight_gradient"};

void check_conv(ConvProblem p) {
  p.p = (p.h + p.pad_top + p.pad_bottom - p.dilation_h * (p.r - 1) - 1) / p.stride_h + 1;
  p.q = (p.w + p.pad_left + p.pad_right - p.dilation_w * (p.s - 1) - 1) / p.stride_w + 1;
  const Shape xs{p.n, p.c, p.h, p.w, p.layout}, ys{p.n, p.k, p.p, p.q, p.layout};
  const auto activated = [&](std::vector<double>& values) {
    for (double& value : values) value = p.relu && value < 0 ? 0 : value;
  };
  const int64_t cg = p.c / p.groups, kg = p.k / p.groups;
  const Shape ws{p.k, cg, p.r, p.s, p.weight_layout};
  Tensor x(p.dtype, xs.count(), 1), w(p.dtype, ws.count(), 2), b(p.dtype, p.k, 3), gy(p.dtype, ys.count(), 4);
  std::vector<double> y(size_t(ys.count())), gx(size_t(xs.count())), gw(size_t(ws.count())), gb(size_t(p.k));
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t i = 0; i < p.p; ++i)
        for (int64_t j = 0; j < p.q; ++j) {
          const size_t out = size_t(ys.at(n, k, i, j));
          y[out] += b.values[size_t(k)];
          gb[size_t(k)] += gy.values[out];
          for (int64_t c = 0; c < cg; ++c)
            for (int64_t r = 0; r < p.r; ++r)
              for (int64_t s = 0; s < p.s; ++s) {
                const int64_t h = i * p.stride_h - p.pad_top + r * p.dilation_h,
                              v = j * p.stride_w - p.pad_left + s * p.dilation_w;
                if (h < 0 || h >= p.h || v < 0 || v >= p.w) continue;
                const size_t in = size_t(xs.at(n, k / kg * cg + c, h, v)), weight = size_t(ws.at(k, c, r, s));
                y[out] += x.values[in] * w.values[weight];
                gx[in] += gy.values[out] * w.values[weight];
                gw[weight] += gy.values[out] * x.values[in];
              }
        }
  activated(y);
  activated(gx);
  const cuda::Kernels& table = simulation::kernels();
  for (int a = 0; a < table.conv_count; ++a) {
    const cpu::ConvAlgorithm& algorithm = table.conv[a];
    // Matrix products of many small groups take the simulation long: they are padded to whole tiles.
    const bool product = std::string(algorithm.name) == "tensor_core" || std::string(algorithm.name) == "implicit_gemm";
    if (!algorithm.applies(p) || (product && p.groups > 2)) continue;
    const std::string what = std::string(algorithm.name) + " " + primitives[int(algorithm.primitive)] + ", dtype " +
                             std::to_string(int(p.dtype)) + ", layout " + std::to_string(int(p.layout)) + ", c " +
                             std::to_string(p.c) + ", kernel " + std::to_string(p.r) + "x" + std::to_string(p.s);
    const double tolerance = std::string(algorithm.name) == "winograd_f4" ? 1e-4 : 0;  // its matrices hold fractions
    guarded(what, [&] {
      constexpr int multiprocessors = 4;
      Tensor workspace(Dtype::float64, algorithm.workspace_bytes(p, multiprocessors) / 8 + 1);
      const simt::Buffer scratch = {"workspace", workspace.data(), size_t(workspace.size()), simt::Access::read_write, false};
      cpu::ConvArgs args{};
      args.workspace = workspace.data();
      args.threads = multiprocessors;
      if (algorithm.primitive == Primitive::forward) {
        Tensor out(p.dtype, ys.count());
        args.x = x.data(), args.w = w.data(), args.b = b.data(), args.y = out.data();
        simt::DeviceMemory memory({x.input("x"), w.input("w"), b.input("b"), out.output("y"), scratch});
        algorithm.run(p, args);
        memory.finish();
        return out.equals(y, tolerance);
      }
      if (algorithm.primitive == Primitive::input_gradient) {
        Tensor out(p.dtype, xs.count());
        args.gy = gy.data(), args.w = w.data(), args.gx = out.data();
        simt::DeviceMemory memory({gy.input("gy"), w.input("w"), out.output("gx"), scratch});
        algorithm.run(p, args);
        memory.finish();
        return out.equals(gx, tolerance);
      }
      Tensor out(p.dtype, ws.count()), bias(p.dtype, p.k);
      args.gy = gy.data(), args.x = x.data(), args.gw = out.data(), args.gb = bias.data();
      simt::DeviceMemory memory({gy.input("gy"), x.input("x"), out.output("gw"), bias.output("gb"), scratch});
      algorithm.run(p, args);
      memory.finish();
      return out.equals(gw) && bias.equals(gb);
    });
  }
}

// ---- pooling ----

void check_pool(PoolProblem p) {
  const Shape xs{p.n, p.c, p.h, p.w, p.layout}, ys{p.n, p.c, p.p, p.q, p.layout};
  Tensor x(p.dtype, xs.count(), 1), gy(p.dtype, ys.count(), 2);
  std::vector<double> largest(size_t(ys.count())), mean(size_t(ys.count())), gmax(size_t(xs.count())),
      gmean(size_t(xs.count()));
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t i = 0; i < p.p; ++i)
        for (int64_t j = 0; j < p.q; ++j) {
          const size_t out = size_t(ys.at(n, c, i, j));
          double best = -INFINITY, sum = 0;
          size_t where = 0;
          std::vector<size_t> window;
          const int64_t h0 = p.adaptive ? i * p.h / p.p : i * p.stride_h - p.pad_top,
                        w0 = p.adaptive ? j * p.w / p.q : j * p.stride_w - p.pad_left;
          const int64_t rows = p.adaptive ? ((i + 1) * p.h + p.p - 1) / p.p - h0 : p.r,
                        columns = p.adaptive ? ((j + 1) * p.w + p.q - 1) / p.q - w0 : p.s;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t s = 0; s < columns; ++s) {
              const int64_t h = h0 + r * p.dilation_h, v = w0 + s * p.dilation_w;
              if (h < 0 || h >= p.h || v < 0 || v >= p.w) continue;
              const size_t in = size_t(xs.at(n, c, h, v));
              window.push_back(in);
              sum += x.values[in];
              if (x.values[in] > best) best = x.values[in], where = in;
            }
          const double divisor = double(p.divisor ? p.divisor : rows * columns);
          largest[out] = best;
          mean[out] = sum / divisor;
          gmax[where] += gy.values[out];
          for (size_t in : window) gmean[in] += gy.values[out] / divisor;
        }
  const cuda::PoolKernels& pool = simulation::kernels().pool;
  const std::string suffix = ", dtype " + std::to_string(int(p.dtype)) + ", layout " + std::to_string(int(p.layout)) +
                             ", width " + std::to_string(p.w);
  for (const MaxIndex kind : {MaxIndex::none, MaxIndex::window, MaxIndex::plane})
    guarded("max pool, index " + std::to_string(int(kind)) + suffix, [&] {
      Tensor y(p.dtype, ys.count()), gathered(p.dtype, ys.count()), gx(p.dtype, xs.count());
      Tensor index(Dtype::float64, kind == MaxIndex::window ? (ys.count() + 7) / 8 : ys.count());
      const size_t index_bytes = size_t(ys.count()) * (kind == MaxIndex::window ? 1 : 8);
      const bool indexed = kind != MaxIndex::none;
      {
        simt::DeviceMemory memory(
            {x.input("x"), y.output("y"), {"index", index.data(), indexed ? index_bytes : 0, simt::Access::read_write, true}});
        pool.max_forward(p, x.data(), y.data(), indexed ? index.data() : nullptr, kind, nullptr);
        memory.finish();
      }
      if (!y.equals(largest) || !indexed) return y.equals(largest);
      simt::DeviceMemory memory({x.input("v"),
                                 gy.input("gy"),
                                 {"index", index.data(), index_bytes, simt::Access::read_only, false},
                                 gx.output("gx"),
                                 gathered.output("y")});
      pool.max_backward(p, gy.data(), index.data(), kind, gx.data(), nullptr);
      pool.max_gather(p, x.data(), index.data(), kind, gathered.data(), nullptr);
      memory.finish();
      return gx.equals(gmax) && gathered.equals(largest);
    });
  if (p.dilation_h == 1 && p.dilation_w == 1)
    guarded("average pool" + suffix, [&] {
      Tensor y(p.dtype, ys.count()), gx(p.dtype, xs.count());
      simt::DeviceMemory memory({x.input("x"), gy.input("gy"), y.output("y"), gx.output("gx")});
      pool.average_forward(p, x.data(), y.data(), nullptr);
      pool.average_backward(p, gy.data(), gx.data(), nullptr);
      memory.finish();
      const double tolerance = size_of(p.dtype) == 2 ? 1e-2 : 1e-6;
      return y.equals(mean, tolerance) && gx.equals(gmean, tolerance);
    });
}

// ---- local response normalisation ----

void check_lrn(LrnProblem p) {
  const Shape shape{p.n, p.c, p.spatial, 1, p.layout};
  Tensor x(p.dtype, shape.count(), 1), gy(p.dtype, shape.count(), 2);
  std::vector<double> y(size_t(shape.count())), gx(size_t(shape.count()));
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t i = 0; i < p.spatial; ++i) {
      const auto at = [&](int64_t c) { return size_t(shape.at(n, c, i, 0)); };
      const auto inside = [&](int64_t c) { return c >= 0 && c < p.c; };
      std::vector<double> d(size_t(p.c), p.k);
      for (int64_t c = 0; c < p.c; ++c)
        for (int64_t j = c - p.size / 2; j <= c + (p.size - 1) / 2; ++j)
          if (inside(j)) d[size_t(c)] += p.alpha * x.values[at(j)] * x.values[at(j)];
      for (int64_t c = 0; c < p.c; ++c) {
        y[at(c)] = x.values[at(c)] * std::pow(d[size_t(c)], -p.beta);
        gx[at(c)] += gy.values[at(c)] * std::pow(d[size_t(c)], -p.beta);
        for (int64_t j = c - p.size / 2; j <= c + (p.size - 1) / 2; ++j)
          if (inside(j))
            gx[at(j)] -= 2 * p.alpha * p.beta * x.values[at(j)] * gy.values[at(c)] * x.values[at(c)] *
                         std::pow(d[size_t(c)], -p.beta - 1);
      }
    }
  guarded("lrn, dtype " + std::to_string(int(p.dtype)) + ", layout " + std::to_string(int(p.layout)) + ", size " +
              std::to_string(p.size),
          [&] {
            Tensor out(p.dtype, shape.count()), gradient(p.dtype, shape.count());
            simt::DeviceMemory memory({x.input("x"), gy.input("gy"), out.output("y"), gradient.output("gx")});
            simulation::kernels().lrn.forward(p, x.data(), out.data(), nullptr);
            simulation::kernels().lrn.backward(p, x.data(), gy.data(), gradient.data(), nullptr);
            memory.finish();
            const double tolerance = p.dtype == Dtype::float64 ? 1e-12 : p.dtype == Dtype::float32 ? 1e-5 : 2e-2;
            return out.equals(y, tolerance) && gradient.equals(gx, tolerance);
          });
}

}  // namespace

// Arguments: the order of threads.
int main(int argc, char** argv) {
  const std::string order = argc > 1 ? argv[1] : "forward";
  simt::options().order = order == "reverse"  ? simt::Order::reverse
                          : order == "random" ? simt::Order::random
                                              : simt::Order::forward;
  for (const Dtype dtype : {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16})
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      const bool tf32 = layout == Layout::channels_last;  // integers below 2^11 survive it
      // n c h w, k r s, p q (filled in), strides, padding, dilations, groups
      const ConvProblem convolutions[] = {
          {2, 5, 6, 7, 9, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, layout, layout, dtype, tf32, true},
          {1, 10, 9, 8, 6, 3, 2, 0, 0, 2, 2, 1, 0, 1, 2, 1, 1, 2, layout, layout, dtype, tf32},
          {1, 4, 11, 9, 6, 3, 3, 0, 0, 2, 2, 2, 2, 2, 2, 3, 3, 1, layout, Layout::channels_first, dtype, tf32},
          {1, 3, 8, 8, 5, 4, 4, 0, 0, 4, 4, 0, 0, 0, 0, 1, 1, 1, layout, layout, dtype, tf32},
          {1, 72, 3, 4, 130, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, layout, layout, dtype, tf32},
          {3, 1, 1, 40, 8, 1, 5, 0, 0, 1, 3, 0, 0, 4, 4, 1, 2, 1, layout, layout, dtype, tf32},
          // first layers: positions that begin at every pixel, at every second, with kernels of odd and even width
          {2, 3, 9, 11, 9, 7, 7, 0, 0, 2, 2, 3, 2, 3, 3, 1, 1, 1, layout, layout, dtype, tf32},
          {1, 4, 5, 9, 70, 3, 2, 0, 0, 1, 3, 1, 1, 2, -1, 1, 1, 1, layout, Layout::channels_first, dtype, tf32, true},
          // depthwise: strips and tiles that end early, channels in packs and not, multipliers, rows as columns
          {2, 8, 9, 19, 8, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 8, layout, layout, dtype, tf32},
          {1, 16, 9, 8, 16, 3, 3, 0, 0, 2, 2, 1, 1, 1, 1, 1, 1, 16, layout, layout, dtype, tf32, true},
          {1, 12, 8, 6, 12, 5, 7, 0, 0, 1, 1, 2, 2, 3, 3, 1, 1, 12, layout, layout, dtype, tf32},
          {1, 3, 8, 9, 6, 5, 3, 0, 0, 2, 1, 2, 0, 1, 0, 1, 2, 3, layout, layout, dtype, tf32},
          {1, 8, 10, 7, 8, 3, 3, 0, 0, 3, 2, 2, 2, 1, 1, 2, 1, 8, layout, layout, dtype, tf32},
          {1, 8, 1, 45, 8, 1, 4, 0, 0, 1, 1, 0, 0, 3, 0, 1, 1, 8, layout, layout, dtype, tf32},
          // groups of few channels
          {2, 16, 8, 8, 16, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 4, layout, layout, dtype, tf32},
          {1, 12, 9, 9, 18, 4, 3, 0, 0, 2, 2, 1, 2, 0, 1, 1, 1, 6, layout, Layout::channels_first, dtype, tf32, true},
          {1, 10, 9, 7, 10, 3, 3, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, layout, layout, dtype, tf32},
          // groups of 8 to 32 channels: an odd number of pieces, strips and tiles that end early, strides, dilation
          {1, 24, 9, 19, 24, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 3, layout, layout, dtype, tf32},
          {2, 32, 7, 9, 64, 3, 2, 0, 0, 2, 2, 1, 1, 0, 2, 1, 1, 2, layout, layout, dtype, tf32, true},
          {1, 32, 6, 7, 32, 3, 3, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, layout, Layout::channels_first, dtype, tf32},
          {2, 24, 8, 9, 48, 3, 4, 0, 0, 3, 2, 1, 3, 2, 1, 2, 1, 3, layout, layout, dtype, tf32},
          {1, 48, 1, 40, 48, 1, 3, 0, 0, 1, 1, 0, 0, 2, 0, 1, 1, 3, layout, layout, dtype, tf32},
      };
      for (const ConvProblem& p : convolutions) check_conv(p);
      if (dtype == Dtype::float32) {  // several tiles of rows, columns and groups
        check_conv({1, 3, 21, 67, 3, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 3, layout, layout, dtype, tf32});
        check_conv({1, 36, 18, 17, 36, 3, 3, 0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 36, layout, layout, dtype, tf32});
      }
      // a group whose taps are more than the warps of a block hold
      if (dtype == Dtype::float16)
        check_conv({1, 96, 4, 3, 96, 5, 5, 0, 0, 1, 1, 2, 2, 2, 2, 1, 1, 3, layout, layout, dtype, tf32});
      const PoolProblem pools[] = {
          {2, 3, 9, 11, 3, 3, 5, 6, 2, 2, 1, 1, 1, 1, 1, 1, true, 0, false, layout, dtype},
          {1, 8, 8, 12, 2, 2, 4, 6, 2, 2, 0, 0, 0, 0, 1, 1, true, 3, false, layout, dtype},
          {1, 16, 7, 9, 3, 2, 3, 7, 1, 1, 0, 0, 0, 0, 2, 2, true, 0, false, layout, dtype},
          {1, 8, 7, 9, 1, 1, 3, 4, 1, 1, 0, 0, 0, 0, 1, 1, true, 0, true, layout, dtype},
          {1, 3, 5, 4, 1, 1, 7, 9, 1, 1, 0, 0, 0, 0, 1, 1, true, 0, true, layout, dtype},
          {1, 2, 2, 9000, 1, 3, 2, 4499, 1, 2, 0, 0, 0, 0, 1, 1, true, 0, false, layout, dtype},
      };
      for (const PoolProblem& p : pools) check_pool(p);
      for (const int64_t size : {1, 2, 5, 200}) check_lrn({2, 37, 21, size, 0.25, size == 2 ? 0.6 : 0.75, 1.5, layout, dtype});
    }
  std::puts("done");
  return 0;
}
