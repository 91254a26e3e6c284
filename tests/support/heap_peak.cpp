// SPDX-License-Identifier: MIT
#include "support/heap_peak.h"

#include <cstddef>
#include <new>

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
