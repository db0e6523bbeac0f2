// Fibers: stacks that the scheduler switches between by hand. One CUDA thread of a simulated block runs on each.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(FASTCONV_PORTABLE_FIBERS)
#include <ucontext.h>
#define FASTCONV_UCONTEXT
#endif

namespace fastconv::simt {

// Where a suspended stack continues. 10 ns a switch with the hand-written one for x86-64, 250 ns with ucontext, whose
// swapcontext makes a system call to save the signal mask.
struct Context {
#ifdef FASTCONV_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
};

// Suspends the running stack into `from` and continues `to`.
void switch_context(Context& from, Context& to);

// A stack with a guard page below it: an overflow is a segmentation fault, not silent corruption.
class Stack {
 public:
  static constexpr size_t bytes = 128 << 10;

  Stack();
  ~Stack();
  Stack(Stack&& other) noexcept : base_(other.base_) { other.base_ = nullptr; }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  bool contains(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - base_) < bytes; }
  // Makes `context` start `entry` at the top of this stack. `entry` must not return.
  void prepare(Context& context, void (*entry)());

 private:
  char* base_;
};

}  // namespace fastconv::simt
