// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/ops/mse_loss.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The mean of the squared differences: the default loss of Trainer.
struct MeanSquaredError {
  /// Computes the loss.
  ///
  /// @param outputs The outputs of the model, of any shape.
  /// @param targets The targets, of the same shape.
  /// @return The mean: a 0-d tensor.
  /// @throws c10::ValueError if the shapes differ.
  torch::Tensor operator()(const torch::Tensor& outputs, const torch::Tensor& targets) const {
    TORCH_CHECK_VALUE(outputs.sizes() == targets.sizes(), "attend::MeanSquaredError: outputs ", outputs.sizes(),
                      " must have the sizes of targets ", targets.sizes());
    return at::mse_loss(outputs, targets);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
