// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/version.h>

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Checks a signal (N, C, L), or (N, L, C) with batch_first, of a floating dtype. Returns its length L.
inline std::int64_t length_of_signal(const char* layer, const torch::Tensor& x, bool batch_first) {
  check_signal(layer, x, batch_first);
  TORCH_CHECK_TYPE(x.is_floating_point(), layer, ": x (", x.scalar_type(), ") must have a floating dtype");
  return x.size(batch_first ? 1 : 2);
}

/// Combines a signal (N, C, L), or (N, L, C) with batch_first, with positions (P, L) of the same dtype and device.
inline torch::Tensor joined(const char* layer, const torch::Tensor& x, const torch::Tensor& positions, Combine combine,
                            bool batch_first) {
  const torch::Tensor fitting = batch_first ? positions.t() : positions;
  const int channel = batch_first ? 2 : 1;
  if (combine == Combine::kConcatenate) return at::cat({x, fitting.unsqueeze(0).expand({x.size(0), -1, -1})}, channel);
  TORCH_CHECK_VALUE(positions.size(0) == x.size(channel) || positions.size(0) == 1, layer, ": x (", x.size(channel),
                    " channels) must have as many channels as the positions (", positions.size(0), ") for kAdd");
  return x + fitting;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
