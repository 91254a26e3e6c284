// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/core/InferenceMode.h>
#include <torch/types.h>

#include <bit>
#include <cstdint>
#include <mutex>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tables that a layer has computed, one set for each dtype and device.
///
/// - The columns of a table do not depend on its length, so one table serves all shorter signals. Lengths are powers of
///   two. Together the tables of one dtype and device are at most four times as large as the longest signal needs.
/// - A table is never changed or freed, so several threads may use it, and so may a CUDA graph that reads it.
/// - A table that is made under InferenceMode is an ordinary tensor, because later calls may record gradients.
/// - A copy of the layer starts with an empty cache.
class TableCache {
 public:
  TableCache() = default;
  TableCache(const TableCache&) {}
  TableCache& operator=(const TableCache&) { return *this; }

  /// The first `length` columns of a table with the dtype and device of `options`. make(size) computes a table
  /// (channels, size).
  template <class Make>
  torch::Tensor get(std::int64_t length, const torch::TensorOptions& options, const Make& make) {
    const auto size = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(length)));
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const torch::Tensor& table : tables_)
      if (table.size(1) == size && table.dtype() == options.dtype() && table.device() == options.device())
        return table.narrow(1, 0, length);
    const c10::InferenceMode no_inference_mode(/*enabled=*/false);
    return tables_.emplace_back(make(size).to(options)).narrow(1, 0, length);
  }

 private:
  std::mutex mutex_;
  std::vector<torch::Tensor> tables_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
