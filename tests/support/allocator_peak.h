// SPDX-License-Identifier: MIT
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Device.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace attend::test {

/// Counts the memory that CPU tensors allocate and free, on all threads, until the end of the scope. Memory allocated
/// before does not count, not even when it is freed.
///
/// Example:
///   attend::test::AllocatorPeak memory;
///   work();
///   memory.peak();  // the largest number of bytes that were held at once
class AllocatorPeak {
 public:
  AllocatorPeak() : allocator_(std::make_shared<CountingAllocator>(*c10::GetCPUAllocator())) {
    c10::SetCPUAllocator(allocator_.get());
  }
  ~AllocatorPeak() { c10::SetCPUAllocator(&allocator_->inner); }
  AllocatorPeak(const AllocatorPeak&) = delete;
  AllocatorPeak& operator=(const AllocatorPeak&) = delete;

  std::int64_t now() const { return allocator_->now; }
  std::int64_t peak() const { return allocator_->peak; }

 private:
  /// A tensor that outlives the scope still knows its allocator: each block keeps it alive.
  struct CountingAllocator : c10::Allocator, std::enable_shared_from_this<CountingAllocator> {
    explicit CountingAllocator(c10::Allocator& inner_) : inner(inner_) {}

    c10::DataPtr allocate(std::size_t size) override {
      c10::DataPtr memory = inner.allocate(size);
      void* data = memory.get();
      const std::int64_t sum = now += static_cast<std::int64_t>(size);
      std::int64_t seen = peak;
      while (seen < sum && !peak.compare_exchange_weak(seen, sum)) continue;
      return {data, new Block{std::move(memory), size, shared_from_this()}, &free, at::Device(at::kCPU)};
    }

    void copy_data(void* to, const void* from, std::size_t size) const override { default_copy_data(to, from, size); }

    c10::Allocator& inner;
    std::atomic<std::int64_t> now = 0, peak = 0;
  };

  struct Block {
    c10::DataPtr memory;
    std::size_t size;
    std::shared_ptr<CountingAllocator> allocator;
  };

  static void free(void* pointer) {
    const std::unique_ptr<Block> block(static_cast<Block*>(pointer));
    block->allocator->now -= static_cast<std::int64_t>(block->size);
  }

  std::shared_ptr<CountingAllocator> allocator_;
};

}  // namespace attend::test
