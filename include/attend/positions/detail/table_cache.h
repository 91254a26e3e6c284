// SPDX-License-Identifier: MIT
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <mutex>

namespace attend::detail {

/// The last table that a layer computed from a length, for the dtype and device that it was asked for with. A table is
/// never changed, so that it may be used by several threads; a copy of the layer begins with an empty cache.
class TableCache {
 public:
  TableCache() = default;
  TableCache(const TableCache&) {}
  TableCache& operator=(const TableCache&) { return *this; }

  /// `make(length)` in the dtype and on the device of `like`: (channels, length).
  template <class Make>
  torch::Tensor get(std::int64_t length, const torch::Tensor& like, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!table_.defined() || table_.size(1) != length || table_.scalar_type() != like.scalar_type() ||
        table_.device() != like.device()) {
      table_ = make(length).to(like.options());
    }
    return table_;
  }

 private:
  std::mutex mutex_;
  torch::Tensor table_;
};

}  // namespace attend::detail
