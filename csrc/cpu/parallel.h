// One parallel region per kernel call, and a fixed way of sharing work.
#pragma once

#include <omp.h>

#include <cstdint>

namespace fastconv::cpu::FASTCONV_ISA {

// Calls body(id, parts) once on each thread of a team of at most `threads`. The team may be smaller than asked for: share work
// by `parts`. One thread means no OpenMP at all: libgomp cannot start a team in a forked child.
template <class Body>
inline void parallel(int threads, const Body& body) {
  if (threads <= 1) {
    body(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

// Waits for the whole team. Every thread of a region must reach it. A no-op for one thread.
inline void barrier() {
#pragma omp barrier
}

struct Range {
  int64_t begin, end;
};

// The part of 0..count that belongs to thread `id` of `parts`: contiguous, as even as can be.
inline Range share(int64_t count, int id, int parts) {
  return {count / parts * id + count % parts * id / parts, count / parts * (id + 1) + count % parts * (id + 1) / parts};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
