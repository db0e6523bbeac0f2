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

std::vector<const cpu::ConvAlgorithm*> applicable(const ConvProblem& problem, Primitive primitive) {
  const cpu::Kernels& table = cpu::kernels();
  std::vector<const cpu::ConvAlgorithm*> preferred, others;
  for (int i = 0; i < table.conv_count; ++i) {
    const cpu::ConvAlgorithm& algorithm = table.conv[i];
    if (algorithm.primitive != primitive || !algorithm.applies(problem)) continue;
    (algorithm.preferred(problem) ? preferred : others).push_back(&algorithm);
  }
  preferred.insert(preferred.end(), others.rbegin(), others.rend());
  return preferred;
}

int64_t operations(const ConvProblem& q) {
  const double macs = double(q.n) * q.k * q.p * q.q * (q.c / q.groups) * q.r * q.s;
  return int64_t(std::min(macs, 1e18));
}

}  // namespace

bool threads_usable() { return !forked; }

int useful_threads(int64_t operations, int threads) {
  constexpr int64_t operations_a_thread = 32768;
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, operations / operations_a_thread)));
}

std::vector<std::string> conv_algorithms(const ConvProblem& problem, Primitive primitive) {
  checks::validate(problem);
  std::vector<std::string> names;
  for (const cpu::ConvAlgorithm* algorithm : applicable(problem, primitive)) names.push_back(algorithm->name);
  return names;
}

ConvPlan plan_conv(const ConvProblem& problem, Primitive primitive, int threads, const std::string& algorithm) {
  checks::validate(problem);
  checks::at_least("threads", threads, 1);
  const std::vector<const cpu::ConvAlgorithm*> choices = applicable(problem, primitive);
  const cpu::ConvAlgorithm* chosen = algorithm.empty() ? choices.front() : nullptr;
  std::string names;
  for (const cpu::ConvAlgorithm* choice : choices) {
    if (choice->name == algorithm) chosen = choice;
    names += (names.empty() ? "" : ", ") + std::string(choice->name);
  }
  if (!chosen) checks::fail("algorithm: expected one that applies to this problem (" + names + "), got " + algorithm);
  const int useful = useful_threads(operations(problem), threads);
  return {problem, primitive, chosen, useful, chosen->workspace_bytes(problem, useful)};
}

}  // namespace fastconv
