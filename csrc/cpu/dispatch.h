// Chooses the instruction set, once, at import.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastconv::cpu {

// Names of the instruction sets that were compiled in, best first.
std::vector<std::string> compiled_isas();
// Those of them that this machine has.
std::vector<std::string> available_isas();
// The table in use: the best available, or the one FASTCONV_ISA names. Throws std::runtime_error if that one is unknown or the
// machine lacks it.
const Kernels& kernels();

}  // namespace fastconv::cpu
