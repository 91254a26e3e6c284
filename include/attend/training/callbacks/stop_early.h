// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/decisive_losses.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A callback that ends the fit when the validation loss has not fallen for `patience` epochs.
///
/// - A loss counts as fallen if it is smaller than the smallest one before. NaN never counts.
/// - Without a validation set, the training loss decides.
/// - All epochs of the trainer count, those of earlier fits and those before Trainer::resume() too. So the callback has
///   no state that a checkpoint needs.
///
/// The model keeps the weights of the last epoch. The callback Checkpoint writes those of the best epoch to a file.
///
/// @code
/// trainer.fit(train_set, validation_set, attend::StopEarly(/*patience=*/10));
/// @endcode
class StopEarly {
 public:
  /// The callback.
  ///
  /// @param patience The number of epochs without a smaller loss after which the fit ends, at least 1.
  /// @throws c10::ValueError if patience is smaller than 1.
  explicit StopEarly(std::int64_t patience) : patience_(patience) {
    TORCH_CHECK_VALUE(patience >= 1, "attend::StopEarly: patience (", patience, ") must be at least 1");
  }

  /// Returns true, which ends the fit, if the smallest loss is `patience` epochs old.
  bool on_epoch_end(TrainingState& state) const {
    double smallest = std::numeric_limits<double>::infinity();
    std::int64_t age = 0;
    for (const double loss : detail::decisive_losses(state.history)) {
      ++age;
      if (loss < smallest) {
        smallest = loss;
        age = 0;
      }
    }
    return age >= patience_;
  }

 private:
  std::int64_t patience_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
