// Which algorithm computes a problem: a pure function of the problem, the instruction set and, for the work split, the threads.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fastconv {

struct ConvPlan {
  ConvProblem problem;  // float16 and bfloat16 are computed as float32
  Dtype dtype;          // of the tensors
  Primitive primitive;
  const cpu::ConvAlgorithm* algorithm;
  int threads;              // for kernels and workspace
  int64_t workspace_bytes;  // 64-byte aligned memory the caller provides to `run`
};

// Names of the algorithms that can compute the problem, in order of preference.
std::vector<std::string> conv_algorithms(const ConvProblem& problem, Primitive primitive);

// Validates the problem and chooses. `algorithm` forces one by name; throws std::invalid_argument if it does not apply.
ConvPlan plan_conv(const ConvProblem& problem, Primitive primitive, int threads, const std::string& algorithm);

// How many bytes the plan's algorithm makes of the weights before it computes, where that can be done once for many calls; or
// 0.
int64_t packed_bytes(const ConvPlan& plan);

// Does it, for calls of `run_conv` with the same `args.packed`. `args.workspace` as for those.
void pack_conv(const ConvPlan& plan, const cpu::ConvArgs& args);

// Computes. `args.workspace` is what the plan asked for, `args.threads` at most the plan's.
void run_conv(const ConvPlan& plan, const cpu::ConvArgs& args);

// The same for one of the tables of the CUDA kernels, which compute every dtype themselves and make use of all
// `multiprocessors`.
std::vector<std::string> conv_algorithms(const ConvProblem& problem, Primitive primitive, const cpu::ConvAlgorithm* table,
                                         int count);
ConvPlan plan_conv(const ConvProblem& problem, Primitive primitive, int multiprocessors, const std::string& algorithm,
                   const cpu::ConvAlgorithm* table, int count);

// How many threads are worth waking for so many operations: waking one costs a few microseconds.
int useful_threads(int64_t operations, int threads);

// False in a process forked from this one: the OpenMP threads did not come along, so calls there use one thread.
bool threads_usable();

}  // namespace fastconv
