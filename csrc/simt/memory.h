// Checked memory: a shadow of shared memory that knows the last writer and readers of each byte, and the exact bounds of every
// global buffer. Kernels are compiled with -fsanitize=thread and linked without its runtime: memory.cpp supplies the functions
// the compiler calls at each load and store, so kernel sources need no change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fault.h"

namespace fastconv::simt {

enum class Access { read_only, read_write };

// A tensor in global memory as the launch describes it. Bytes of a read_write buffer count as unwritten until a kernel writes
// them: reading one is a fault, and `finish` reports one that was never written.
struct Buffer {
  const char* name;
  const void* begin;
  size_t bytes;
  Access access;
  bool must_be_filled;  // every byte is to be written: an output, unlike a workspace
};

// The global memory of one operator call, which may be several launches. read_write buffers are poisoned (0xff) when it begins.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::vector<Buffer> buffers);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Throws KernelFault if a byte of an output was never written.
  void finish() const;

  struct Region {
    Buffer buffer;
    std::vector<bool> written;
  };
  // Checks an access by the running thread. Null if it is allowed, else what is wrong with it.
  const char* check(const void* address, size_t bytes, bool write);
  // Text that places an address relative to the nearest buffer.
  std::string place(const void* address) const;

 private:
  std::vector<Region> regions_;
  size_t last_ = 0;
};

// The shared memory of the running block.
namespace shared {

constexpr size_t capacity = 232448;  // of sm_90, the largest

bool contains(const void* address);
void* at(size_t offset);
size_t used();
// Begins a block: `dynamic_bytes` from offset 0, everything uninitialised.
void reset(size_t dynamic_bytes);
// Appends `bytes`; returns the offset.
size_t allocate(size_t bytes, size_t alignment);

// Null if allowed, else what is wrong; `other` receives the other thread of a race, or -1.
const char* read(const void* address, size_t bytes, int* other);
enum class Arrival { now, pending };  // pending: by cp.async, until its wait
const char* write(const void* address, size_t bytes, Arrival arrival, int* other);
// The waited-for cp.async of the running thread becomes visible to it.
void arrive(void* address, size_t bytes);

}  // namespace shared

// ---- cp.async of the running thread ----

void copy_async(void* destination, const void* source, int bytes, int source_bytes, Site site);
void copy_async_commit();
void copy_async_wait(int groups_left);

// Checks an access that the compiler's instrumentation does not see (ldmatrix, vector loads by wrapper).
void check_access(const void* address, size_t bytes, bool write, Site site);

}  // namespace fastconv::simt
