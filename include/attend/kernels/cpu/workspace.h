// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Scratch memory of one thread, given out in pieces that begin at a cache line. It grows when it is used up, so its
/// size is not computed in advance.
template <class T>
class Workspace {
 public:
  /// A piece of at least `size` numbers, with any values. It is valid until begin_again().
  T* take(std::int64_t size) {
    const std::int64_t wanted = rounded(size);
    if (wanted > left_) grow(wanted);
    T* const taken = next_;
    next_ += wanted;
    left_ -= wanted;
    return taken;
  }

  /// Takes all pieces back. Afterwards the memory is one allocation, as large as all earlier ones together.
  void begin_again() {
    if (!outgrown_.empty()) {
      outgrown_.clear();
      allocate(total_);
    }
    if (memory_ != nullptr) enter();
  }

  /// Whole cache lines.
  static constexpr std::int64_t rounded(std::int64_t size) { return (size + kLine - 1) / kLine * kLine; }

 private:
  static constexpr std::int64_t kLine = 64 / sizeof(T);
  static constexpr std::int64_t kSmallest = 3 << 13;  // enough for a call of a few queries and keys

  void grow(std::int64_t wanted) {
    if (memory_ != nullptr) outgrown_.push_back(std::move(memory_));
    allocate(std::max({wanted, kSmallest, 2 * size_}));
    total_ += size_;
    enter();
  }
  void allocate(std::int64_t size) {
    memory_ = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(size + kLine));
    size_ = size;
  }
  void enter() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    next_ = memory_.get() + (64 - address % 64) % 64 / sizeof(T);
    left_ = size_;
  }

  std::unique_ptr<T[]> memory_;                   // the pieces are taken from it
  std::vector<std::unique_ptr<T[]>> outgrown_;    // pieces of it are still in use
  std::int64_t size_ = 0, total_ = 0, left_ = 0;  // without the numbers before the first cache line
  T* next_ = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
