// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <torch/types.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tables that a layer computed, one for each length, dtype and device. A table is never changed nor dropped, so
/// that several threads may use it, and a CUDA graph that reads it; a copy of the layer begins with an empty cache.
class TableCache {
 public:
  TableCache() = default;
  TableCache(const TableCache&) {}
  TableCache& operator=(const TableCache&) { return *this; }

  /// `make(length)` in the dtype and on the device of `like`: (channels, length).
  template <class Make>
  torch::Tensor get(std::int64_t length, const torch::Tensor& like, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const torch::Tensor& table : tables_)
      if (table.size(1) == length && table.scalar_type() == like.scalar_type() && table.device() == like.device())
        return table;
    return tables_.emplace_back(make(length).to(like.options()));
  }

 private:
  std::mutex mutex_;
  std::vector<torch::Tensor> tables_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
