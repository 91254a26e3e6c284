// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/host_block.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace attend::test {

/// The global memory that a kernel may access: ranges of the host's memory.
class GlobalMemory {
 public:
  /// Allows to read `bytes` bytes. To find each access outside of a tensor's rows, add its rows one by one.
  void add_input(const void* data, std::int64_t bytes, std::string name) {
    ranges_.push_back({begin_of(data), begin_of(data) + static_cast<std::uintptr_t>(bytes), false, std::move(name)});
  }
  /// Allows to read and write them.
  void add_output(void* data, std::int64_t bytes, std::string name) {
    ranges_.push_back({begin_of(data), begin_of(data) + static_cast<std::uintptr_t>(bytes), true, std::move(name)});
  }

  /// The last store to a granule of 2 bytes.
  struct Store {
    std::uint32_t block = 0;  ///< from 1; 0: there was none
    int thread = 0;
    std::uint32_t epoch = 0;       ///< barriers of that block so far
    std::uint32_t warp_epoch = 0;  ///< barriers of that warp so far

    /// Whether a barrier orders this store before an access, or both are of one thread.
    bool is_before(const Store& access) const {
      if (block != access.block) return false;
      const bool is_same_warp = thread / cuda::kWarpSize == access.thread / cuda::kWarpSize;
      return thread == access.thread || epoch < access.epoch || (is_same_warp && warp_epoch < access.warp_epoch);
    }
  };

  /// A run of addresses.
  struct Range {
    std::uintptr_t begin, end;
    bool can_write;
    std::string name;
    std::vector<Store> stores = {};  ///< of this launch
  };

  const std::vector<Range>& ranges() const { return ranges_; }

  /// Forgets the stores: a new launch begins.
  void reset() {
    sort();
    for (Range& range : ranges_) range.stores.assign(range.can_write ? (range.end - range.begin + 1) / 2 : 0, Store());
  }

  /// The range that holds all the bytes, or null.
  Range* find(const void* address, std::int64_t bytes) {
    const std::uintptr_t begin = begin_of(address), end = begin + static_cast<std::uintptr_t>(bytes);
    const auto holds = [&](std::size_t i) { return ranges_[i].begin <= begin && end <= ranges_[i].end; };
    if (last_ < ranges_.size() && holds(last_)) return &ranges_[last_];
    const std::size_t next = first_after(begin);
    if (next == 0 || !holds(next - 1)) return nullptr;
    last_ = next - 1;
    return &ranges_[last_];
  }

  /// The last store to one of the bytes that another thread made, with no barrier since then.
  static const Store* unordered_store(const Range& range, const void* address, std::int64_t bytes, const Store& now) {
    const std::size_t first = (begin_of(address) - range.begin) / 2;
    for (std::size_t i = first; i < first + static_cast<std::size_t>(bytes + 1) / 2; ++i) {
      const Store& last = range.stores[i];
      if (last.block != 0 && !last.is_before(now)) return &last;
    }
    return nullptr;
  }

  static void note_store(Range& range, const void* address, std::int64_t bytes, const Store& now) {
    const std::size_t first = (begin_of(address) - range.begin) / 2;
    for (std::size_t i = first; i < first + static_cast<std::size_t>(bytes + 1) / 2; ++i) range.stores[i] = now;
  }

  /// The place of an address in words, for a report: "key + 640 bytes".
  std::string text_of(const void* address) const {
    const std::uintptr_t begin = begin_of(address);
    const std::size_t next = first_after(begin);
    if (next == 0) return ranges_.empty() ? "no ranges" : "before " + ranges_.front().name;
    const Range& before = ranges_[next - 1];
    return before.name + " + " + std::to_string(begin - before.begin) + " bytes, which has " +
           std::to_string(before.end - before.begin);
  }

 private:
  static std::uintptr_t begin_of(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

  // Ranges that overlap become one.
  void sort() {
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    std::vector<Range> merged;
    for (Range& range : ranges_) {
      if (merged.empty() || range.begin >= merged.back().end) {
        merged.push_back(std::move(range));
      } else {
        merged.back().end = std::max(merged.back().end, range.end);
        merged.back().can_write = merged.back().can_write || range.can_write;
      }
    }
    ranges_ = std::move(merged);
    last_ = ranges_.size();
  }

  std::size_t first_after(std::uintptr_t begin) const {
    const auto after = [](std::uintptr_t place, const Range& range) { return place < range.begin; };
    return static_cast<std::size_t>(std::upper_bound(ranges_.begin(), ranges_.end(), begin, after) - ranges_.begin());
  }

  std::vector<Range> ranges_;
  std::size_t last_ = 0;
};

}  // namespace attend::test
