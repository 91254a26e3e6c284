// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/version.h>

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A signal must be (N, C, L) of a floating dtype.
inline void check_signal_for_positions(const char* layer, const torch::Tensor& x) {
  check_signal(layer, x);
  TORCH_CHECK_TYPE(x.is_floating_point(), layer, ": x (", x.scalar_type(), ") must have a floating dtype");
}

/// Combines a signal (N, C, L) with positions (P, L) of the same dtype and device.
inline torch::Tensor joined(const char* layer, const torch::Tensor& x, const torch::Tensor& positions,
                            Combine combine) {
  if (combine == Combine::kConcatenate)
    return at::cat({x, positions.unsqueeze(0).expand({x.size(0), -1, -1})}, 1);  // (N, C + P, L)
  TORCH_CHECK_VALUE(positions.size(0) == x.size(1) || positions.size(0) == 1, layer, ": x (", x.size(1),
                    " channels) must have as many channels as the positions (", positions.size(0), ") for kAdd");
  return x + positions;  // (N, C, L)
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
