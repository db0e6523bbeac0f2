#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace fastconv::simt {

namespace {
size_t page() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}
}  // namespace

Stack::Stack() {
  void* p = mmap(nullptr, bytes + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, page(), PROT_NONE);
  base_ = static_cast<char*>(p) + page();
}

Stack::~Stack() {
  if (base_) munmap(base_ - page(), bytes + page());
}

#ifdef FASTCONV_UCONTEXT

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

void Stack::prepare(Context& context, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = base_;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

#else

// Saves the registers that the System V ABI lets a function keep, exchanges stacks, restores, returns on the new stack.
extern "C" __attribute__((visibility("hidden"))) void fastconv_simt_switch(void** save, void* to);
asm(R"(
  .text
  .globl fastconv_simt_switch
  .hidden fastconv_simt_switch
  .type fastconv_simt_switch, @function
fastconv_simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size fastconv_simt_switch, .-fastconv_simt_switch
)");

void switch_context(Context& from, Context& to) { fastconv_simt_switch(&from.stack_pointer, to.stack_pointer); }

void Stack::prepare(Context& context, void (*entry)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(base_ + bytes) & ~uintptr_t{15});
  *--top = nullptr;                              // the return address of `entry`, and the alignment the ABI wants at a call
  *--top = reinterpret_cast<void*>(entry);       // popped by `ret`
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // popped into the six saved registers
  context.stack_pointer = top;
}

#endif

}  // namespace fastconv::simt
