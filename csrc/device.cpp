#include "device.h"

#include <mutex>
#include <sstream>
#include <stdexcept>

#include "checks.h"
#include "simt/memory.h"
#include "simt/simt.h"

namespace fastconv::device {
namespace {

using cpu::MaxIndex;
using simt::Access;
using simt::Buffer;

Buffer input(const char* name, const void* begin, int64_t bytes) {
  return {name, begin, size_t(begin ? bytes : 0), Access::read_only, false};
}
Buffer output(const char* name, const void* begin, int64_t bytes) {
  return {name, begin, size_t(begin ? bytes : 0), Access::read_write, true};
}
Buffer scratch(const void* begin, int64_t bytes) { return {"workspace", begin, size_t(bytes), Access::read_write, false}; }

// ---- how a simulated call is run, packed into what stands for its stream ----

constexpr int order_bits = 2, architecture_bits = 1, seed_bits = 32;

constexpr struct {
  const char* name;
  simt::Order order;
} orders[] = {{"forward", simt::Order::forward}, {"reverse", simt::Order::reverse}, {"random", simt::Order::random}};
constexpr const simt::Architecture* architectures[] = {&simt::sm_90, &simt::sm_80};

void set_options(void* stream) {
  const auto bits = reinterpret_cast<uintptr_t>(stream);
  simt::options() = {orders[bits & ((1 << order_bits) - 1)].order, unsigned(bits >> (order_bits + architecture_bits))};
  simt::architecture() = *architectures[bits >> order_bits & ((1 << architecture_bits) - 1)];
}

// ---- problems, for errors ----

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return "float32";
    case Dtype::float64:
      return "float64";
    case Dtype::float16:
      return "float16";
    default:
      return "bfloat16";
  }
}
const char* name_of(Layout layout) { return layout == Layout::channels_last ? "channels_last" : "channels_first"; }

std::string described(const ConvProblem& p) {
  std::ostringstream text;
  text << "convolution of [" << p.n << ", " << p.c << ", " << p.h << ", " << p.w << "] with [" << p.k << ", " << p.c / p.groups
       << ", " << p.r << ", " << p.s << "] to [" << p.n << ", " << p.k << ", " << p.p << ", " << p.q << "], stride ("
       << p.stride_h << ", " << p.stride_w << "), dilation (" << p.dilation_h << ", " << p.dilation_w << "), groups "
       << p.groups << ", " << name_of(p.dtype) << ", " << name_of(p.layout);
  return text.str();
}
std::string described(const PoolProblem& p) {
  std::ostringstream text;
  text << "pooling of [" << p.n << ", " << p.c << ", " << p.h << ", " << p.w << "] to [" << p.n << ", " << p.c << ", " << p.p
       << ", " << p.q << "], ";
  if (p.adaptive)
    text << "adaptive";
  else
    text << "kernel (" << p.r << ", " << p.s << "), stride (" << p.stride_h << ", " << p.stride_w << "), dilation ("
         << p.dilation_h << ", " << p.dilation_w << ")";
  text << ", " << name_of(p.dtype) << ", " << name_of(p.layout);
  return text.str();
}
std::string described(const LrnProblem& p) {
  std::ostringstream text;
  text << "local response normalisation of [" << p.n << ", " << p.c << ", " << p.spatial << "] over " << p.size << " channels, "
       << name_of(p.dtype) << ", " << name_of(p.layout);
  return text.str();
}

// Runs `call`; if simulated, with the given buffers as all of global memory.
template <class Problem, class Call>
void run(Backend backend, const Problem& problem, void* stream, std::vector<Buffer> buffers, const Call& call) {
  try {
    if (backend == Backend::cuda) return call(kernels(backend));
    static std::mutex one_call;  // the simulated GPU's options and memory
    const std::lock_guard<std::mutex> lock(one_call);
    set_options(stream);
    simt::DeviceMemory memory(std::move(buffers));
    call(kernels(backend));
    memory.finish();
  } catch (const simt::KernelFault& fault) {
    throw simt::KernelFault(std::string(fault.what()) + "\nin " + described(problem));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(error.what()) + "\nin " + described(problem));
  }
}

struct PoolBytes {
  int64_t x, y, index;
  PoolBytes(const PoolProblem& p, MaxIndex kind)
      : x(p.n * p.c * p.h * p.w * size_of(p.dtype)),
        y(p.n * p.c * p.p * p.q * size_of(p.dtype)),
        index(p.n * p.c * p.p * p.q *
              (kind == MaxIndex::window  ? 1
               : kind == MaxIndex::plane ? 8
                                         : 0)) {}
};

}  // namespace

const cuda::Kernels& kernels(Backend backend) {
#ifdef FASTCONV_CUDA
  if (backend == Backend::cuda) return cuda::kernels();
#endif
  if (backend == Backend::cuda) throw std::runtime_error("fastconv was built without CUDA");
  return simulation::kernels();
}

void* simulated_stream(const std::string& order, int64_t seed, const std::string& architecture) {
  uintptr_t bits = 0;
  bool known = false;
  for (uintptr_t i = 0; i < std::size(orders); ++i)
    if (order == orders[i].name) bits = i, known = true;
  if (!known) checks::fail("order: expected forward, reverse or random, got " + order);
  known = false;
  for (uintptr_t i = 0; i < std::size(architectures); ++i)
    if (architecture == architectures[i]->name) bits |= i << order_bits, known = true;
  if (!known) checks::fail("architecture: expected sm_80 or sm_90, got " + architecture);
  if (seed < 0 || seed >> seed_bits) checks::fail("seed: expected 0 to 2^32 - 1, got " + std::to_string(seed));
  return reinterpret_cast<void*>(bits | uintptr_t(seed) << (order_bits + architecture_bits));
}

void run_conv(Backend backend, const ConvPlan& plan, const cpu::ConvArgs& args) {
  const ConvProblem& p = plan.problem;
  const int64_t size = size_of(p.dtype);
  const int64_t x = p.n * p.c * p.h * p.w * size, y = p.n * p.k * p.p * p.q * size,
                w = p.k * (p.c / p.groups) * p.r * p.s * size;
  const bool forward = plan.primitive == Primitive::forward;
  run(backend, p, args.stream,
      {input("x", args.x, x), input("w", args.w, w), input("b", args.b, (forward ? p.k : p.c) * size), input("gy", args.gy, y),
       output("y", args.y, y), output("gx", args.gx, x), output("gw", args.gw, w), output("gb", args.gb, p.k * size),
       scratch(args.workspace, plan.workspace_bytes)},
      [&](const cuda::Kernels&) { plan.algorithm->run(p, args); });
}

void max_pool_forward(Backend backend, const PoolProblem& p, const void* x, void* y, void* index, MaxIndex kind, void* stream) {
  const PoolBytes bytes(p, kind);
  run(backend, p, stream, {input("x", x, bytes.x), output("y", y, bytes.y), output("index", index, bytes.index)},
      [&](const cuda::Kernels& k) { k.pool.max_forward(p, x, y, index, kind, stream); });
}

void max_pool_backward(Backend backend, const PoolProblem& p, const void* gy, const void* index, MaxIndex kind, void* gx,
                       void* stream) {
  const PoolBytes bytes(p, kind);
  run(backend, p, stream, {input("gy", gy, bytes.y), input("index", index, bytes.index), output("gx", gx, bytes.x)},
      [&](const cuda::Kernels& k) { k.pool.max_backward(p, gy, index, kind, gx, stream); });
}

void max_pool_gather(Backend backend, const PoolProblem& p, const void* v, const void* index, MaxIndex kind, void* y,
                     void* stream) {
  const PoolBytes bytes(p, kind);
  run(backend, p, stream, {input("v", v, bytes.x), input("index", index, bytes.index), output("y", y, bytes.y)},
      [&](const cuda::Kernels& k) { k.pool.max_gather(p, v, index, kind, y, stream); });
}

void average_pool_forward(Backend backend, const PoolProblem& p, const void* x, void* y, void* stream) {
  const PoolBytes bytes(p, MaxIndex::none);
  run(backend, p, stream, {input("x", x, bytes.x), output("y", y, bytes.y)},
      [&](const cuda::Kernels& k) { k.pool.average_forward(p, x, y, stream); });
}

void average_pool_backward(Backend backend, const PoolProblem& p, const void* gy, void* gx, void* stream) {
  const PoolBytes bytes(p, MaxIndex::none);
  run(backend, p, stream, {input("gy", gy, bytes.y), output("gx", gx, bytes.x)},
      [&](const cuda::Kernels& k) { k.pool.average_backward(p, gy, gx, stream); });
}

void lrn_forward(Backend backend, const LrnProblem& p, const void* x, void* y, void* stream) {
  const int64_t bytes = p.n * p.c * p.spatial * size_of(p.dtype);
  run(backend, p, stream, {input("x", x, bytes), output("y", y, bytes)},
      [&](const cuda::Kernels& k) { k.lrn.forward(p, x, y, stream); });
}

void lrn_backward(Backend backend, const LrnProblem& p, const void* x, const void* gy, void* gx, void* stream) {
  const int64_t bytes = p.n * p.c * p.spatial * size_of(p.dtype);
  run(backend, p, stream, {input("x", x, bytes), input("gy", gy, bytes), output("gx", gx, bytes)},
      [&](const cuda::Kernels& k) { k.lrn.backward(p, x, gy, gx, stream); });
}

}  // namespace fastconv::device
