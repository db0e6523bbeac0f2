// What the simulation reports: a kernel that would misbehave on a GPU, and where.
#pragma once

#include <stdexcept>
#include <string>

namespace fastconv::simt {

// Raised by a launch as fastconv.KernelFault in Python. The message names the kernel, block, thread and source line.
struct KernelFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in a kernel's source, taken where an operation is called.
struct Site {
  const char* file = "";
  int line = 0;

  // The arguments' defaults are evaluated at the caller.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return line == other.line && std::string(file) == other.file; }
  std::string text() const;
};

// Ends the running launch with a fault of the current thread. From outside a launch it throws at once.
[[noreturn]] void fault(const std::string& what, const Site& site);
// The same for a memory access known only by the instruction after it; line information comes from the debug section.
[[noreturn]] void fault_at(const std::string& what, const void* return_address);

}  // namespace fastconv::simt
