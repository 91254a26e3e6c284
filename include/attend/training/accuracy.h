// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/class_targets.h>
#include <attend/version.h>

#include <ATen/ops/argmax.h>
#include <torch/types.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The share of right answers: a metric for Trainer::evaluate().
///
/// An answer is right if the largest of the scores is that of the target. Of equal scores the first one counts.
///
/// @code
/// double share = trainer.evaluate(validation_set, attend::Accuracy());  // 0.98: two of 100 are wrong
/// @endcode
struct Accuracy {
  /// Computes the share.
  ///
  /// @param outputs The scores (N, classes) or (N, classes, …).
  /// @param targets The index of the right class, from 0: (N) or (N, …).
  /// @return From 0 to 1, in float64: a 0-d tensor.
  /// @throws c10::ValueError for sizes that do not fit.
  torch::Tensor operator()(const torch::Tensor& outputs, const torch::Tensor& targets) const {
    detail::check_class_targets("attend::Accuracy", outputs, targets);
    return (outputs.argmax(1) == targets).to(torch::kDouble).mean();
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
