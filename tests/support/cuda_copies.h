// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/host_block.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::test {

/// The asynchronous copies of one thread.
class CudaCopies {
 public:
  /// A copy of 16 bytes.
  struct Copy {
    std::int64_t offset;  ///< in shared memory
    const void* from;     ///< null: zeros
    cuda::Place place;
  };

  void clear() {
    copies_.clear();
    groups_.clear();
  }
  void start(const Copy& copy) { copies_.push_back(copy); }
  void commit() { groups_.push_back(copies_.size()); }

  /// Calls `arrive` with each copy of all groups but the last `pending`.
  template <class Function>
  void wait(int pending, const Function& arrive) {
    if (groups_.size() <= static_cast<std::size_t>(pending)) return;
    const auto last = groups_.end() - pending;
    const std::size_t arrived = *(last - 1);
    for (std::size_t i = 0; i < arrived; ++i) arrive(copies_[i]);
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(arrived));
    groups_.erase(groups_.begin(), last);
    for (std::size_t& end : groups_) end -= arrived;
  }

  /// Those that nobody has waited for.
  const std::vector<Copy>& under_way() const { return copies_; }

 private:
  std::vector<Copy> copies_;
  std::vector<std::size_t> groups_;  // where each ends
};

}  // namespace attend::test
