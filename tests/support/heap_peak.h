// SPDX-License-Identifier: MIT
#pragma once

// Replaces the global operator new and delete of the program, so only one source file may include it.

#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace attend::test {

/// Counts the memory of operator new and operator delete, on all threads, until the end of the scope. Kernels use it
/// for everything except tensors, which AllocatorPeak counts.
///
/// Example:
///   attend::test::HeapPeak memory;
///   work();
///   memory.peak();  // the largest number of bytes that were held at once, beyond what was held before
class HeapPeak {
 public:
  HeapPeak() : before_(now_) { peak_ = before_; }
  HeapPeak(const HeapPeak&) = delete;
  HeapPeak& operator=(const HeapPeak&) = delete;

  std::int64_t now() const { return now_ - before_; }
  std::int64_t peak() const { return peak_ - before_; }

  static void* allocate(std::size_t size) noexcept {
    void* memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) return nullptr;
    const auto bytes = static_cast<std::int64_t>(malloc_usable_size(memory));
    const std::int64_t sum = now_ += bytes;
    std::int64_t seen = peak_;
    while (seen < sum && !peak_.compare_exchange_weak(seen, sum)) continue;
    return memory;
  }

  static void* allocate_or_throw(std::size_t size) {
    void* memory = allocate(size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  static void free(void* memory) noexcept {
    if (memory != nullptr) now_ -= static_cast<std::int64_t>(malloc_usable_size(memory));
    std::free(memory);
  }

 private:
  static inline std::atomic<std::int64_t> now_ = 0, peak_ = 0;
  std::int64_t before_;
};

}  // namespace attend::test

// All forms are replaced, because under a sanitizer the missing ones would be the sanitizer's.
void* operator new(std::size_t size) { return attend::test::HeapPeak::allocate_or_throw(size); }
void* operator new[](std::size_t size) { return attend::test::HeapPeak::allocate_or_throw(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return attend::test::HeapPeak::allocate(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return attend::test::HeapPeak::allocate(size);
}
void operator delete(void* memory) noexcept { attend::test::HeapPeak::free(memory); }
void operator delete[](void* memory) noexcept { attend::test::HeapPeak::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { attend::test::HeapPeak::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { attend::test::HeapPeak::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { attend::test::HeapPeak::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { attend::test::HeapPeak::free(memory); }
