// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/rms_norm.h>

#include <optional>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The function of RMSNorm, after its checks.
struct FusedRmsNorm {
  /// x (…, shape) to the same sizes; the weight may be undefined.
  static at::Tensor run(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef shape,
                        std::optional<double> eps) {
    return at::rms_norm(x, shape, weight, eps);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
