// The state of the running launch, shared by the scheduler (runtime.cpp), the memory checks and the tensor-core operations.
#pragma once

#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "simt.h"

namespace fastconv::simt {

struct PendingCopy {
  char* destination;
  const char* source;
  int bytes, source_bytes;  // the rest is filled with zeros
};

enum class Wait { none, block_barrier, warp_operation, finished };

struct Thread {
  Context context;
  Dim3 coordinates;
  int index, warp, lane;  // index is linear in the block
  Wait wait;
  Site site;  // of the wait
  const Stack* stack;
  void* operand;  // of the warp operation waited for
  std::vector<std::vector<PendingCopy>> groups;
  std::vector<PendingCopy> open_group;
};

// Lanes that wait for others at a warp operation.
struct Meeting {
  unsigned mask, arrived;
  WarpOperation operation;
  Site site;
};

struct Warp {
  unsigned live;   // lanes that have not exited
  uint32_t epoch;  // counts warp barriers of all live lanes
  std::vector<Meeting> meetings;
};

struct Block {
  const char* kernel = "";
  Dim3 index, size, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::deque<int> ready;
  int live = 0, at_barrier = 0;
  Site barrier_site;
  uint32_t interval = 1;  // counts block barriers
  Body body{};
  Thread* current = nullptr;
  bool in_kernel = false;  // the running code is the kernel's, not the runtime's: accesses are checked
  DeviceMemory* memory = nullptr;
};
extern Block block;

// Stands in every function of the runtime that a kernel calls. The runtime's own use of templates of the standard library may
// end in copies that were instrumented with the kernels.
class InRuntime {
 public:
  InRuntime() : before_(block.in_kernel) { block.in_kernel = false; }
  ~InRuntime() { block.in_kernel = before_; }

 private:
  bool before_;
};

}  // namespace fastconv::simt
