// Cuts a kernel's workspace into pieces.
#pragma once

#include <cstdint>

namespace fastconv::cpu::FASTCONV_ISA {

// Hands out 64-byte aligned pieces one after the other, at least a cache line apart. With a null base it only counts, so that
// one function says both how much a kernel needs and where everything lies. A size beyond 63 bits sticks at the maximum: no
// allocation will succeed.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = base_ ? base_ + bytes_ : nullptr;
    int64_t size;
    if (__builtin_mul_overflow(count, int64_t(sizeof(T)), &size) || __builtin_add_overflow(size, 127, &size) ||
        __builtin_add_overflow(bytes_, size & ~int64_t(63), &bytes_))
      bytes_ = INT64_MAX & ~int64_t(63);
    return reinterpret_cast<T*>(piece);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace fastconv::cpu::FASTCONV_ISA
