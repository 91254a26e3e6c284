// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/relu.h>

#include <cstddef>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Convolutions of a 1-d signal one after the other, each padded with zeros to keep the length. If kernel_size is even,
/// there is one more zero on the right than on the left.
struct ConvolutionStack {
  std::vector<at::Tensor> weights;  // each (out channels, in channels, kernel_size)
  std::vector<at::Tensor> biases;   // each (out channels), or undefined
  bool has_relu = false;            // between the convolutions
  bool has_relu_after_last = false;

  bool has_relu_after(std::size_t i) const { return i + 1 < weights.size() ? has_relu : has_relu_after_last; }
};

/// The output of a stack, by torch's own operations: x (N, in channels, L) to (N, out channels, L).
inline at::Tensor convolve_by_torch(const ConvolutionStack& stack, const at::Tensor& x) {
  at::Tensor y = x;
  for (std::size_t i = 0; i < stack.weights.size(); ++i) {
    y = at::conv1d(y, stack.weights[i], stack.biases[i], /*stride=*/1, "same");
    if (stack.has_relu_after(i)) y = at::relu(y);
  }
  return y;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
