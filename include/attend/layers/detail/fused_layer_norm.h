// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/layer_norm.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A layer normalisation: its weight and its bias may be undefined.
struct Norm {
  at::IntArrayRef shape;
  at::Tensor weight, bias;
  double eps;
};

/// A sum, and the norm of it.
struct AddedNorm {
  at::Tensor sum, normed;
};

struct FusedLayerNorm {
  static at::Tensor run(const at::Tensor& x, const Norm& norm) {
    return at::layer_norm(x, norm.shape, norm.weight, norm.bias, norm.eps);
  }

  /// residual + dropout(branch), and its norm.
  static AddedNorm add(const at::Tensor& residual, const at::Tensor& branch, double dropout, const Norm& norm) {
    const at::Tensor sum = residual + at::dropout(branch, dropout, /*train=*/true);
    return {sum, run(sum, norm)};
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
