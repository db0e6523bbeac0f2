#include "plan.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "checks.h"
#include "cpu/dispatch.h"

namespace fastconv {
namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

bool is_half(Dtype dtype) { return dtype == Dtype::float16 || dtype == Dtype::bfloat16; }

ConvProblem computed(ConvProblem problem) {
  if (is_half(problem.dtype)) problem.dtype = Dtype::float32;
  return problem;
}

bool is_empty(const ConvProblem& p) { return !(p.n && p.c && p.h && p.w && p.k && p.p && p.q); }

// Whether one image needs no more memory than a few copies of it. Strides and padding near the size of the image make some
// algorithms want far more, whatever else speaks for them.
bool affordable(const cpu::ConvAlgorithm& algorithm, ConvProblem problem) {
  constexpr int64_t far = 1 << 16;  // beyond which an algorithm's own arithmetic might overflow
  for (int64_t distance : {problem.stride_h, problem.stride_w, problem.dilation_h, problem.dilation_w, problem.pad_top,
                           problem.pad_bottom, problem.pad_left, problem.pad_right})
    if (distance > far || distance < -far) return false;
  problem.n = 1;
  const double elements = double(problem.c) * problem.h * problem.w + double(problem.k) * problem.p * problem.q +
                          double(problem.k) * (problem.c / problem.groups) * problem.r * problem.s;
  const double bytes = double(algorithm.workspace_bytes(problem, 1));
  return bytes >= 0 && bytes <= 4 * elements * double(size_of(problem.dtype)) + (1 << 24);
}

using Choices = std::vector<const cpu::ConvAlgorithm*>;

Choices applicable(const ConvProblem& problem, Primitive primitive, const cpu::ConvAlgorithm* table, int count) {
  checks::validate(problem);
  if (is_empty(problem)) return {};
  Choices preferred, others;
  const cpu::ConvAlgorithm* last = nullptr;
  for (int i = 0; i < count; ++i) {
    const cpu::ConvAlgorithm& algorithm = table[i];
    if (algorithm.primitive != primitive || !algorithm.applies(problem)) continue;
    last = &algorithm;
    if (!affordable(algorithm, problem)) continue;
    (algorithm.preferred(problem) ? preferred : others).push_back(&algorithm);
  }
  preferred.insert(preferred.end(), others.rbegin(), others.rend());
  if (preferred.empty() && last) preferred.push_back(last);
  return preferred;
}

Choices applicable(const ConvProblem& problem, Primitive primitive) {
  checks::without_relu(problem);
  return applicable(computed(problem), primitive, cpu::kernels().conv, cpu::kernels().conv_count);
}

std::vector<std::string> names_of(const Choices& choices) {
  std::vector<std::string> names;
  for (const cpu::ConvAlgorithm* choice : choices) names.push_back(choice->name);
  return names;
}

// The one called `name`, or the first.
const cpu::ConvAlgorithm& choose(const ConvProblem& problem, const Choices& choices, const std::string& name) {
  if (is_empty(problem)) checks::fail("problem: expected sizes of at least 1, got an empty input, weight or output");
  if (choices.empty()) checks::fail("problem: no algorithm of this device applies to it");
  if (name.empty()) return *choices.front();
  std::string names;
  for (const cpu::ConvAlgorithm* choice : choices) {
    if (choice->name == name) return *choice;
    names += (names.empty() ? "" : ", ") + std::string(choice->name);
  }
  checks::fail("algorithm: expected one that applies to this problem (" + names + "), got " + name);
}

int64_t workspace_of(const cpu::ConvAlgorithm& algorithm, const ConvProblem& problem, int workers) {
  const int64_t bytes = algorithm.workspace_bytes(problem, workers);
  if (bytes < 0) checks::fail("workspace: exceeds 64 bits");
  return bytes;
}

// Where the float32 copies of 16-bit operands and results lie in the workspace.
class Copies {
 public:
  Copies(const ConvPlan& plan, char* workspace) : plan_(plan), base_(workspace) {}

  // A float32 copy of a tensor that the kernel reads.
  const void* widened(const void* tensor, int64_t count, int threads) {
    if (!tensor) return nullptr;
    float* copy = take(count);
    cpu::kernels().convert.widen(plan_.dtype, tensor, copy, count, useful_threads(count, threads));
    return copy;
  }
  float* take(int64_t count) {
    float* piece = reinterpret_cast<float*>(base_ + bytes_);
    bytes_ += (count * int64_t(sizeof(float)) + 63) & ~int64_t(63);
    return piece;
  }

 private:
  const ConvPlan& plan_;
  char* base_;
  int64_t bytes_ = 0;
};

struct Counts {
  int64_t x, w, y, k, c;
  explicit Counts(const ConvProblem& p)
      : x(p.n * p.c * p.h * p.w), w(p.k * (p.c / p.groups) * p.r * p.s), y(p.n * p.k * p.p * p.q), k(p.k), c(p.c) {}
};

// Bytes of all copies: for any primitive x, w, y and a bias.
int64_t copied_bytes(const ConvProblem& problem) {
  const Counts counts(problem);
  int64_t bytes = 0;
  for (int64_t count : {counts.x, counts.w, counts.y, std::max(counts.k, counts.c)})
    bytes = checks::add("workspace", bytes, checks::multiply("workspace", count, sizeof(float)) / 64 * 64 + 64);
  return bytes;
}

// Multiply-adds come many at a time: so many count as one operation of useful_threads.
int64_t operations(const ConvProblem& q) {
  constexpr double a_vector = 16;
  const double macs = double(q.n) * q.k * q.p * q.q * (q.c / q.groups) * q.r * q.s;
  return int64_t(std::min(macs / a_vector, 1e18));
}

}  // namespace

bool threads_usable() { return !forked; }

int useful_threads(int64_t operations, int threads) {
  constexpr int64_t operations_a_thread = 32768;
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, operations / operations_a_thread)));
}

std::vector<std::string> conv_algorithms(const ConvProblem& problem, Primitive primitive) {
  return names_of(applicable(problem, primitive));
}

std::vector<std::string> conv_algorithms(const ConvProblem& problem, Primitive primitive, const cpu::ConvAlgorithm* table,
                                         int count) {
  return names_of(applicable(problem, primitive, table, count));
}

ConvPlan plan_conv(const ConvProblem& problem, Primitive primitive, int threads, const std::string& algorithm) {
  checks::at_least("threads", threads, 1);
  const cpu::ConvAlgorithm& chosen = choose(problem, applicable(problem, primitive), algorithm);
  const int useful = useful_threads(operations(problem), threads);
  const ConvProblem float_problem = computed(problem);
  int64_t bytes = workspace_of(chosen, float_problem, useful);
  if (is_half(problem.dtype)) bytes = checks::add("workspace", bytes, copied_bytes(problem));
  return {float_problem, problem.dtype, primitive, &chosen, useful, bytes};
}

ConvPlan plan_conv(const ConvProblem& problem, Primitive primitive, int multiprocessors, const std::string& algorithm,
                   const cpu::ConvAlgorithm* table, int count) {
  checks::at_least("multiprocessors", multiprocessors, 1);
  const cpu::ConvAlgorithm& chosen = choose(problem, applicable(problem, primitive, table, count), algorithm);
  return {problem, problem.dtype, primitive, &chosen, multiprocessors, workspace_of(chosen, problem, multiprocessors)};
}

int64_t packed_bytes(const ConvPlan& plan) {
  if (is_half(plan.dtype) || !plan.algorithm->packed_bytes) return 0;
  return plan.algorithm->packed_bytes(plan.problem);
}

void pack_conv(const ConvPlan& plan, const cpu::ConvArgs& args) { plan.algorithm->pack(plan.problem, args); }

void run_conv(const ConvPlan& plan, const cpu::ConvArgs& args) {
  if (!is_half(plan.dtype)) return plan.algorithm->run(plan.problem, args);
  const Counts counts(plan.problem);
  const bool forward = plan.primitive == Primitive::forward;
  Copies copies(plan, static_cast<char*>(args.workspace));
  cpu::ConvArgs inner = args;
  inner.x = copies.widened(args.x, counts.x, args.threads);
  inner.w = copies.widened(args.w, counts.w, args.threads);
  inner.b = copies.widened(args.b, forward ? counts.k : counts.c, args.threads);
  inner.gy = copies.widened(args.gy, counts.y, args.threads);
  struct Result {
    void *narrow, **wide;
    int64_t count;
  };
  const Result results[] = {{args.y, &inner.y, counts.y},
                            {args.gx, &inner.gx, counts.x},
                            {args.gw, &inner.gw, counts.w},
                            {args.gb, &inner.gb, counts.k}};
  for (const Result& result : results)
    if (result.narrow) *result.wide = copies.take(result.count);
  inner.workspace = static_cast<char*>(args.workspace) + copied_bytes(plan.problem);
  plan.algorithm->run(plan.problem, inner);
  for (const Result& result : results)
    if (result.narrow)
      cpu::kernels().convert.narrow(plan.dtype, static_cast<float*>(*result.wide), result.narrow, result.count,
                                    useful_threads(result.count, args.threads));
}

}  // namespace fastconv
