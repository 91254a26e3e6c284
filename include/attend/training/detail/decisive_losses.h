// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/history.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The losses by which epochs are compared: those on the validation set if any epoch has one, otherwise those on the
/// training set. So a validation loss that has become NaN is not replaced by a training loss.
inline std::vector<double> decisive_losses(const History& history) {
  const std::vector<double> losses = history.validation_loss();
  const bool is_validated = std::any_of(losses.begin(), losses.end(), [](double loss) { return !std::isnan(loss); });
  return is_validated ? losses : history.train_loss();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
