#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace fastconv::cpu {

namespace avx512 {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace baseline {
const Kernels& kernels();
}

namespace {

struct Candidate {
  const char* name;
  const Kernels& (*table)();
  bool available;
};

std::vector<Candidate> candidates() {
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#ifdef FASTCONV_EMULATE_AVX512
  const bool has_avx512 = has_avx2;  // 64-byte vectors out of AVX2 instructions, for tests
#else
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return {{"avx512", avx512::kernels, has_avx512}, {"avx2", avx2::kernels, has_avx2}, {"baseline", baseline::kernels, true}};
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

const Kernels& choose() {
  const char* wanted = std::getenv("FASTCONV_ISA");
  if (!wanted || !*wanted) {
    for (const Candidate& candidate : candidates())
      if (candidate.available) return candidate.table();
  }
  for (const Candidate& candidate : candidates())
    if (candidate.name == std::string(wanted)) {
      if (!candidate.available)
        throw std::runtime_error("FASTCONV_ISA=" + std::string(wanted) + ": this machine lacks it; it has " +
                                 joined(available_isas()));
      return candidate.table();
    }
  throw std::runtime_error("FASTCONV_ISA=" + std::string(wanted) + ": expected one of " + joined(compiled_isas()));
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> out;
  for (const Candidate& candidate : candidates()) out.push_back(candidate.name);
  return out;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> out;
  for (const Candidate& candidate : candidates())
    if (candidate.available) out.push_back(candidate.name);
  return out;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastconv::cpu
