// What is done about large results: huge pages behind them, and whether they are written past the caches.
#pragma once

#include <cstdint>

namespace fastconv {

// Asks the system to back the memory with huge pages where it is not backed yet. An allocator takes a large tensor fresh from
// the system, and touching it for the first time, 4 KiB by 4 KiB, costs more than most pooling kernels. Only whole huge pages
// inside the tensor are asked for, so it takes no more memory than before.
void prefer_huge_pages(void* address, int64_t bytes);

// Whether a result of this size is gone from the caches before it is read again.
bool outgrows_caches(int64_t bytes);

// Whether a kernel should write this result past the caches: a large one, as an ordinary store would read each line from memory
// first. But fresh pages are in the cache: the system has just zeroed them; unless the kernel comes back to them much later,
// which it then says by `even_fresh`.
bool past_caches(void* address, int64_t bytes, bool even_fresh = false);

}  // namespace fastconv
