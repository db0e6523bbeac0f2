// Huge pages, and whether pages are there already: what the system says about a result's memory.
#include "memory.h"

#include <sys/mman.h>

namespace fastconv {
namespace {

constexpr int64_t large = int64_t{8} << 20;  // more than a core's share of most last-level caches

uintptr_t round_down(uintptr_t address, uintptr_t page) { return address / page * page; }

}  // namespace

void prefer_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t huge_page = uintptr_t{2} << 20;
  if (bytes < int64_t{2 * huge_page}) return;
  const uintptr_t begin = round_down(reinterpret_cast<uintptr_t>(address) + huge_page - 1, huge_page);
  const uintptr_t end = round_down(reinterpret_cast<uintptr_t>(address) + uintptr_t(bytes), huge_page);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: where the system has none, nothing changes
#endif
}

bool outgrows_caches(int64_t bytes) { return bytes >= large; }

bool past_caches(void* address, int64_t bytes, bool even_fresh) {
  if (!outgrows_caches(bytes)) return false;
  if (even_fresh) return true;
  // The middle stands for all: an allocator gives memory back, and takes it, in long pieces.
  constexpr uintptr_t page = 4096;
  const uintptr_t middle = round_down(reinterpret_cast<uintptr_t>(address) + uintptr_t(bytes) / 2, page);
  unsigned char resident = 0;
  return mincore(reinterpret_cast<void*>(middle), 1, &resident) == 0 && (resident & 1);
}

}  // namespace fastconv
