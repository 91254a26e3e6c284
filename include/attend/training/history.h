// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <limits>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The losses and the time of one epoch.
struct EpochRecord {
  double train_loss = kUnknown;       ///< mean over the samples of the epoch
  double last_batch_loss = kUnknown;  ///< of the last batch alone, which is what the notebook records
  double validation_loss = kUnknown;  ///< after the epoch; NaN without a validation set
  double seconds = kUnknown;          ///< that the epoch took, validation included

  /// NaN: not measured.
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
};

/// The record of a fit: one entry for each epoch.
///
/// @code
/// attend::History history = trainer.fit(train_set, validation_set);
/// double last = history.validation_loss().back();
/// @endcode
class History {
 public:
  /// Appends an epoch.
  void add(const EpochRecord& record) { epochs_.push_back(record); }

  /// The records themselves.
  const std::vector<EpochRecord>& epochs() const { return epochs_; }

  /// Mean loss over each epoch's samples, while the weights were changing.
  std::vector<double> train_loss() const { return column(&EpochRecord::train_loss); }

  /// Loss of each epoch's last batch.
  std::vector<double> last_batch_loss() const { return column(&EpochRecord::last_batch_loss); }

  /// Mean loss over the validation set after each epoch; NaN without one.
  std::vector<double> validation_loss() const { return column(&EpochRecord::validation_loss); }

  /// Seconds that each epoch took, validation included.
  std::vector<double> seconds() const { return column(&EpochRecord::seconds); }

 private:
  std::vector<double> column(double EpochRecord::*figure) const {
    std::vector<double> values;
    values.reserve(epochs_.size());
    for (const EpochRecord& record : epochs_) values.push_back(record.*figure);
    return values;
  }

  std::vector<EpochRecord> epochs_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
