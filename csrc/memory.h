// Huge pages behind large results.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace fastconv {

// Asks the system to back the memory with huge pages where it is not backed yet. An allocator takes a large tensor fresh from
// the system, and touching it for the first time, 4 KiB by 4 KiB, costs more than most pooling kernels. Only whole huge pages
// inside the tensor are asked for, so it takes no more memory than before.
inline void prefer_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t huge_page = uintptr_t{2} << 20;
  if (bytes < int64_t{2 * huge_page}) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(address) + huge_page - 1) / huge_page * huge_page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(address) + uintptr_t(bytes)) / huge_page * huge_page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: where the system has none, nothing changes
#endif
}

}  // namespace fastconv
