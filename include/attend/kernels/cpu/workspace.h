// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Scratch memory of one thread, given out in pieces that begin at a cache line. It grows when it is used up, so nobody
/// counts its size in advance.
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

  /// All pieces are given back. From now on the memory is one piece, as large as all that was taken.
  void begin_again() {
    if (chunks_.size() > 1) {
      std::int64_t size = 0;
      for (const Chunk& chunk : chunks_) size += chunk.size;
      chunks_.clear();
      add_chunk(size);
    }
    if (!chunks_.empty()) enter(chunks_.back());
  }

  /// Whole cache lines.
  static constexpr std::int64_t rounded(std::int64_t size) { return (size + kLine - 1) / kLine * kLine; }

 private:
  static constexpr std::int64_t kLine = 64 / sizeof(T), kSmallest = 1 << 15;

  struct Chunk {
    std::unique_ptr<T[]> memory;
    std::int64_t size;  // without the numbers before the first cache line
  };

  void grow(std::int64_t wanted) {
    add_chunk(std::max({wanted, kSmallest, chunks_.empty() ? 0 : 2 * chunks_.back().size}));
    enter(chunks_.back());
  }
  void add_chunk(std::int64_t size) {
    chunks_.push_back({std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(size + kLine)), size});
  }
  void enter(const Chunk& chunk) {
    const auto address = reinterpret_cast<std::uintptr_t>(chunk.memory.get());
    next_ = chunk.memory.get() + (64 - address % 64) % 64 / sizeof(T);
    left_ = chunk.size;
  }

  std::vector<Chunk> chunks_;
  T* next_ = nullptr;
  std::int64_t left_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
