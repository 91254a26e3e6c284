// SPDX-License-Identifier: MIT
#pragma once

// The program must contain support/heap_peak.cpp, which replaces the global operator new and delete.

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
