#include "memory.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "block.h"

namespace fastconv::simt {

// ---- shared memory ----

namespace shared {
namespace {

enum class Readers : uint8_t { none, one, warp, block };

struct Byte {
  uint32_t write_interval, write_epoch;
  uint32_t read_interval, read_epoch;
  uint16_t writer, reader;
  Readers readers;  // in read_interval
  bool initialised, pending;
};

alignas(1024) unsigned char memory[capacity];
Byte shadow[capacity];
size_t top = 0;

// Whether an access by `thread` in (interval, epoch) is ordered before whatever the running thread does now.
bool ordered(int thread, uint32_t interval, uint32_t epoch) {
  const Thread& me = *block.current;
  return thread == me.index || interval != block.interval ||
         (thread / 32 == me.warp && epoch < block.warps[size_t(me.warp)].epoch);
}

size_t offset_of(const void* address) { return size_t(static_cast<const unsigned char*>(address) - memory); }

void stamp_write(Byte& byte, bool pending) {
  const Thread& me = *block.current;
  byte = {block.interval, block.warps[size_t(me.warp)].epoch, 0, 0, uint16_t(me.index), 0, Readers::none, true, pending};
}

bool readers_ordered(const Byte& byte) {
  if (byte.read_interval != block.interval) return true;
  switch (byte.readers) {
    case Readers::none:
      return true;
    case Readers::one:
    case Readers::warp: {
      const bool mine = byte.readers == Readers::one && byte.reader == block.current->index;
      return mine ||
             (byte.reader / 32 == block.current->warp && byte.read_epoch < block.warps[size_t(block.current->warp)].epoch);
    }
    case Readers::block:
      return false;
  }
  return false;
}

}  // namespace

bool contains(const void* address) { return offset_of(address) < capacity; }
void* at(size_t offset) { return memory + offset; }
size_t used() { return top; }

void reset(size_t dynamic_bytes) {
  const size_t touched = std::max(top, dynamic_bytes);
  std::memset(memory, 0xff, touched);
  std::memset(shadow, 0, touched * sizeof(Byte));
  top = dynamic_bytes;
}

size_t allocate(size_t bytes, size_t alignment) {
  const size_t offset = (top + alignment - 1) / alignment * alignment;
  if (offset + bytes > architecture().dynamic_shared)
    fault("static shared memory: " + std::to_string(offset + bytes) + " bytes in all exceed " +
              std::to_string(architecture().dynamic_shared),
          Site{});
  top = offset + bytes;
  std::memset(memory + offset, 0xff, bytes);
  std::memset(static_cast<void*>(shadow + offset), 0, bytes * sizeof(Byte));
  return offset;
}

const char* read(const void* address, size_t bytes, int* other) {
  *other = -1;
  const Thread& me = *block.current;
  const uint32_t epoch = block.warps[size_t(me.warp)].epoch;
  const size_t begin = offset_of(address);
  if (begin + bytes > top) return "read outside the block's shared memory";
  for (size_t i = begin; i < begin + bytes; ++i) {
    Byte& byte = shadow[i];
    if (!byte.initialised) return "read of uninitialised shared memory";
    if (byte.pending) return *other = byte.writer, "read of cp.async data that was not waited for";
    if (!ordered(byte.writer, byte.write_interval, byte.write_epoch))
      return *other = byte.writer, "race, read after write without a barrier";
    if (byte.read_interval != block.interval || byte.readers == Readers::none) {
      byte.readers = Readers::one;
    } else if (byte.readers == Readers::one && byte.reader == me.index) {
    } else if (byte.readers != Readers::block && byte.reader / 32 == me.warp) {
      byte.readers = Readers::warp;
    } else {
      byte.readers = Readers::block;
    }
    byte.read_interval = block.interval;
    byte.read_epoch = epoch;
    byte.reader = uint16_t(me.index);
  }
  return nullptr;
}

const char* write(const void* address, size_t bytes, Arrival arrival, int* other) {
  *other = -1;
  const size_t begin = offset_of(address);
  if (begin + bytes > top) return "write outside the block's shared memory";
  for (size_t i = begin; i < begin + bytes; ++i) {
    Byte& byte = shadow[i];
    if (byte.initialised && byte.pending) return *other = byte.writer, "write over cp.async data in flight";
    if (byte.initialised && !ordered(byte.writer, byte.write_interval, byte.write_epoch))
      return *other = byte.writer, "race, write after write without a barrier";
    if (!readers_ordered(byte)) return *other = byte.reader, "race, write after read without a barrier";
    stamp_write(byte, arrival == Arrival::pending);
  }
  return nullptr;
}

void arrive(void* address, size_t bytes) {
  const size_t begin = offset_of(address);
  for (size_t i = begin; i < begin + bytes; ++i) stamp_write(shadow[i], false);
}

}  // namespace shared

// ---- global memory ----

DeviceMemory::DeviceMemory(std::vector<Buffer> buffers) {
  for (const Buffer& buffer : buffers) {
    const bool poison = buffer.access == Access::read_write;
    if (poison && buffer.bytes) std::memset(const_cast<void*>(buffer.begin), 0xff, buffer.bytes);
    regions_.push_back({buffer, std::vector<bool>(poison ? buffer.bytes : 0)});
  }
  block.memory = this;
}

DeviceMemory::~DeviceMemory() { block.memory = nullptr; }

void DeviceMemory::finish() const {
  for (const Region& region : regions_) {
    if (!region.buffer.must_be_filled) continue;
    const auto missing = std::find(region.written.begin(), region.written.end(), false);
    if (missing != region.written.end())
      throw KernelFault("kernel " + std::string(block.kernel) + ": byte " + std::to_string(missing - region.written.begin()) +
                        " of " + region.buffer.name + " was never written");
  }
}

const char* DeviceMemory::check(const void* address, size_t bytes, bool write) {
  const char* begin = static_cast<const char*>(address);
  const auto holds = [&](const Region& region) {
    const char* base = static_cast<const char*>(region.buffer.begin);
    return begin >= base && begin + bytes <= base + region.buffer.bytes;
  };
  if (last_ >= regions_.size() || !holds(regions_[last_])) {
    last_ = size_t(std::find_if(regions_.begin(), regions_.end(), holds) - regions_.begin());
    if (last_ == regions_.size()) return write ? "global write out of bounds" : "global read out of bounds";
  }
  Region& region = regions_[last_];
  if (region.buffer.access == Access::read_only) return write ? "write to a read-only buffer" : nullptr;
  const size_t offset = size_t(begin - static_cast<const char*>(region.buffer.begin));
  for (size_t i = offset; i < offset + bytes; ++i) {
    if (write)
      region.written[i] = true;
    else if (!region.written[i])
      return "read of global memory that was never written";
  }
  return nullptr;
}

std::string DeviceMemory::place(const void* address) const {
  const char* p = static_cast<const char*>(address);
  const Region* nearest = nullptr;
  uintptr_t distance = UINTPTR_MAX;
  for (const Region& region : regions_) {
    const char* base = static_cast<const char*>(region.buffer.begin);
    const char* end = base + region.buffer.bytes;
    const uintptr_t away = p < base ? uintptr_t(base - p) : p >= end ? uintptr_t(p - end) : 0;
    if (away < distance) distance = away, nearest = &region;
  }
  if (!nearest) return "no buffer is known";
  return "byte " + std::to_string(p - static_cast<const char*>(nearest->buffer.begin)) + " of " + nearest->buffer.name + " (" +
         std::to_string(nearest->buffer.bytes) + " bytes)";
}

// ---- every load and store ----

namespace {

// Exactly: tensors and other threads' stacks can lie right beside it.
bool on_own_stack(const void* address) { return block.current->stack->contains(address); }

// Constants of the loaded modules: their segments that are not writable.
bool is_constant(const void* address) {
  static const std::vector<std::pair<uintptr_t, size_t>> segments = [] {
    std::vector<std::pair<uintptr_t, size_t>> out;
    const auto visit = [](dl_phdr_info* info, size_t, void* data) -> int {
      for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD && !(header.p_flags & PF_W))
          static_cast<std::vector<std::pair<uintptr_t, size_t>>*>(data)->emplace_back(info->dlpi_addr + header.p_vaddr,
                                                                                      header.p_memsz);
      }
      return 0;
    };
    dl_iterate_phdr(visit, &out);
    return out;
  }();
  for (const auto& [begin, bytes] : segments)
    if (reinterpret_cast<uintptr_t>(address) - begin < bytes) return true;
  return false;
}

// Memory a kernel may touch that is neither shared nor global: its own stack, its arguments, and constants.
bool is_private(const void* address, bool write) {
  if (on_own_stack(address)) return true;
  if (write) return false;
  return size_t(static_cast<const char*>(address) - static_cast<const char*>(block.body.arguments)) < block.body.bytes ||
         is_constant(address);
}

// What is wrong with an access, or an empty string.
std::string problem_with(const void* address, size_t bytes, bool write) {
  if (shared::contains(address)) {
    int other;
    const char* what =
        write ? shared::write(address, bytes, shared::Arrival::now, &other) : shared::read(address, bytes, &other);
    if (!what) return "";
    std::string out = std::string(what) + ": byte " +
                      std::to_string(static_cast<const char*>(address) - static_cast<char*>(shared::at(0))) +
                      " of shared memory (" + std::to_string(shared::used()) + " bytes)";
    if (other >= 0) {
      const Dim3& thread = block.threads[size_t(other)].coordinates;
      out += ", with thread (" + std::to_string(thread.x) + ", " + std::to_string(thread.y) + ", " + std::to_string(thread.z) +
             ")";
    }
    return out;
  }
  if (!block.memory) return "";
  const char* what = block.memory->check(address, bytes, write);
  if (!what || is_private(address, write)) return "";
  return std::string(what) + ": " + std::to_string(bytes) + " bytes at " + block.memory->place(address);
}

void instrumented(const void* address, size_t bytes, bool write, bool aligned, const void* return_address) {
  if (!block.in_kernel || on_own_stack(address)) return;
  const InRuntime guard;
  if (aligned && reinterpret_cast<uintptr_t>(address) % bytes && !is_private(address, write))
    fault_at("misaligned access: " + std::to_string(bytes) + " bytes at an address that is no multiple of it", return_address);
  const std::string what = problem_with(address, bytes, write);
  if (!what.empty()) fault_at(what, return_address);
}

}  // namespace

void check_access(const void* address, size_t bytes, bool write, Site site) {
  const InRuntime guard;
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fault("misaligned access: " + std::to_string(bytes) + " bytes at an address that is no multiple of it", site);
  const std::string what = problem_with(address, bytes, write);
  if (!what.empty()) fault(what, site);
}

void fault_at(const std::string& what, const void* return_address) {
  // The debug section knows the source line; addr2line, where installed, reads it.
  std::string place;
  Dl_info info;
  if (dladdr(return_address, &info)) {
    char command[4096];
    std::snprintf(
        command, sizeof command, "addr2line -e '%s' %#lx 2>/dev/null", info.dli_fname,
        static_cast<unsigned long>(static_cast<const char*>(return_address) - static_cast<const char*>(info.dli_fbase) - 1));
    if (const std::unique_ptr<FILE, int (*)(FILE*)> pipe{popen(command, "r"), pclose}) {
      char line[2048];
      if (std::fgets(line, sizeof line, pipe.get()) && line[0] != '?') place = std::string(line, std::strcspn(line, " \n"));
    }
  }
  fault((place.empty() ? "" : place + ": ") + what, Site{});
}

// ---- cp.async ----

void copy_async(void* destination, const void* source, int bytes, int source_bytes, Site site) {
  const InRuntime guard;
  if (bytes != 4 && bytes != 8 && bytes != 16) fault("cp.async: copies 4, 8 or 16 bytes, not " + std::to_string(bytes), site);
  if (source_bytes < 0 || source_bytes > bytes)
    fault("cp.async: source size " + std::to_string(source_bytes) + " is not in 0.." + std::to_string(bytes), site);
  if (!shared::contains(destination)) fault("cp.async: the destination is not shared memory", site);
  if (reinterpret_cast<uintptr_t>(destination) % size_t(bytes) || reinterpret_cast<uintptr_t>(source) % size_t(bytes))
    fault("cp.async: misaligned, both addresses must be multiples of " + std::to_string(bytes), site);
  if (source_bytes) {
    const std::string what = problem_with(source, size_t(source_bytes), false);
    if (!what.empty()) fault("cp.async: " + what, site);
  }
  int other;
  if (const char* what = shared::write(destination, size_t(bytes), shared::Arrival::pending, &other))
    fault(std::string("cp.async: ") + what, site);
  block.current->open_group.push_back({static_cast<char*>(destination), static_cast<const char*>(source), bytes, source_bytes});
}

void copy_async_commit() {
  const InRuntime guard;
  Thread& me = *block.current;
  me.groups.push_back(std::move(me.open_group));
  me.open_group.clear();
}

void copy_async_wait(int groups_left) {
  const InRuntime guard;
  auto& groups = block.current->groups;
  while (int(groups.size()) > groups_left) {
    for (const PendingCopy& copy : groups.front()) {
      std::memcpy(copy.destination, copy.source, size_t(copy.source_bytes));
      std::memset(copy.destination + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
      shared::arrive(copy.destination, size_t(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

}  // namespace fastconv::simt

// ---- the functions -fsanitize=thread calls; the thread sanitizer's own runtime is not linked ----

using fastconv::simt::instrumented;
#define FASTCONV_HOOK extern "C" __attribute__((visibility("hidden"), used)) void
#define FASTCONV_HOOKS(n)                                                                                            \
  FASTCONV_HOOK __tsan_read##n(void* p) { instrumented(p, n, false, true, __builtin_return_address(0)); }            \
  FASTCONV_HOOK __tsan_write##n(void* p) { instrumented(p, n, true, true, __builtin_return_address(0)); }            \
  FASTCONV_HOOK __tsan_unaligned_read##n(void* p) { instrumented(p, n, false, false, __builtin_return_address(0)); } \
  FASTCONV_HOOK __tsan_unaligned_write##n(void* p) { instrumented(p, n, true, false, __builtin_return_address(0)); }
FASTCONV_HOOKS(1)
FASTCONV_HOOKS(2)
FASTCONV_HOOKS(4)
FASTCONV_HOOKS(8)
FASTCONV_HOOKS(16)
FASTCONV_HOOK __tsan_read_range(void* p, unsigned long n) { instrumented(p, n, false, false, __builtin_return_address(0)); }
FASTCONV_HOOK __tsan_write_range(void* p, unsigned long n) { instrumented(p, n, true, false, __builtin_return_address(0)); }
FASTCONV_HOOK __tsan_init() {}
FASTCONV_HOOK __tsan_func_entry(void*) {}
FASTCONV_HOOK __tsan_func_exit() {}
FASTCONV_HOOK __tsan_vptr_update(void**, void*) {}
FASTCONV_HOOK __tsan_vptr_read(void**) {}
