// SPDX-License-Identifier: MIT
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ATTEND_TEST_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ATTEND_TEST_HAS_ASAN 1
#endif
#endif
#if defined(ATTEND_TEST_HAS_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace attend::test {

/// A function that can stop in the middle, and continue later. All fibers run on one thread of the host.
struct Fiber {
  void* stack = nullptr;  // its lowest byte; null for the fiber that is no fiber: the thread of the host itself
  std::size_t stack_bytes = 0;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#if defined(ATTEND_TEST_HAS_ASAN)
  void* fake_stack = nullptr;
#endif
};

namespace detail {

#if defined(__x86_64__)
// Saves the registers that a call preserves on the stack, and takes those of the other stack.
__attribute__((naked, noinline)) inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}
#endif

}  // namespace detail

/// Makes `fiber` call `entry` when it is first switched to. `entry` must not return.
inline void prepare_fiber(Fiber& fiber, void (*entry)()) {
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + fiber.stack_bytes);
  *--top = nullptr;  // the return address of entry, which keeps its stack aligned
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

/// To be called first in `entry`. `main` is the thread of the host.
inline void enter_fiber([[maybe_unused]] Fiber& main) {
#if defined(ATTEND_TEST_HAS_ASAN)
  const void* stack = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (main.stack == nullptr) {  // the first fiber comes from there
    main.stack = const_cast<void*>(stack);
    main.stack_bytes = bytes;
  }
#endif
}

/// Stops `from`, which runs, and continues `to`.
inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool ends = false) {
#if defined(ATTEND_TEST_HAS_ASAN)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__x86_64__)
  detail::switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(ATTEND_TEST_HAS_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// Stacks for fibers. Each ends in a page that cannot be touched, so that a stack that is too small is a crash at once.
class FiberStacks {
 public:
  static constexpr std::size_t kBytes = 256 * 1024;  // of addresses; memory only where it is used

  FiberStacks() = default;
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;
  ~FiberStacks() {
    if (memory_ != nullptr) munmap(memory_, count_ * kBytes);
  }

  /// Stack number `index` of `count`.
  void give(Fiber& fiber, std::size_t index, std::size_t count) {
    if (count_ < count) {
      if (memory_ != nullptr) munmap(memory_, count_ * kBytes);
      memory_ = static_cast<char*>(
          mmap(nullptr, count * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (memory_ == MAP_FAILED) throw std::bad_alloc();
      count_ = count;
      for (std::size_t i = 0; i < count; ++i) mprotect(memory_ + i * kBytes, kGuardBytes, PROT_NONE);
    }
    fiber.stack = memory_ + index * kBytes + kGuardBytes;
    fiber.stack_bytes = kBytes - kGuardBytes;
  }

 private:
  static constexpr std::size_t kGuardBytes = 64 * 1024;  // a multiple of the size of a page

  char* memory_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace attend::test
