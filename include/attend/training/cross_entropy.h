// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/class_targets.h>
#include <attend/version.h>

#include <ATen/core/Reduction.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/types.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The cross entropy of scores and classes: the loss for classification.
///
/// loss = −log softmax(outputs)[target], the mean over all targets. With label smoothing ε, the wanted probability of
/// the target is 1 − ε + ε / classes, and that of each other class is ε / classes.
///
/// The numbers are those of torch.nn.CrossEntropyLoss. As there, the mean leaves out targets of −100. Accuracy counts
/// such targets as wrong. A mean over several batches weights each batch by its number of samples, those with the
/// target −100 included.
///
/// @code
/// attend::Trainer trainer(model, attend::TrainerOptions().epochs(20), attend::CrossEntropy().label_smoothing(0.1));
/// @endcode
struct CrossEntropy {
  /// The part ε of the wanted probabilities that is spread over all classes, from 0 to 1. Default: 0.
  TORCH_ARG(double, label_smoothing) = 0.0;

 public:
  /// Computes the loss.
  ///
  /// @param outputs The scores (N, classes) or (N, classes, …), not yet normalized.
  /// @param targets The index of the right class, from 0: int64 (N) or (N, …).
  /// @return The mean: a 0-d tensor.
  /// @throws c10::ValueError for sizes that do not fit, and if label_smoothing is out of range.
  /// @throws c10::TypeError if targets is not int64.
  torch::Tensor operator()(const torch::Tensor& outputs, const torch::Tensor& targets) const {
    TORCH_CHECK_VALUE(label_smoothing_ >= 0.0 && label_smoothing_ <= 1.0, "attend::CrossEntropy: label_smoothing (",
                      label_smoothing_, ") must be from 0 to 1");
    TORCH_CHECK_TYPE(targets.scalar_type() == at::kLong, "attend::CrossEntropy: targets (", targets.scalar_type(),
                     ") must be Long, the index of the right class");
    detail::check_class_targets("attend::CrossEntropy", outputs, targets);
    return at::cross_entropy_loss(outputs, targets, {}, at::Reduction::Mean, /*ignore_index=*/-100, label_smoothing_);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
