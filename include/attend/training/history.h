// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <limits>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The losses and the time of one epoch.
struct EpochRecord {
  double train_loss = kUnknown;       ///< mean loss over the samples of the epoch, while the weights changed
  double last_batch_loss = kUnknown;  ///< loss of the last batch
  double validation_loss = kUnknown;  ///< mean loss over the validation set after the epoch; NaN if there is no set
  double seconds = kUnknown;          ///< time of the epoch in seconds, validation included

  /// The value of a loss or time that was not measured: NaN.
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
};

/// The record of a fit: the losses and the time of each epoch.
///
/// @code
/// attend::History history = trainer.fit(train_set, validation_set);
/// double last = history.validation_loss().back();
/// @endcode
class History {
 public:
  /// Appends an epoch.
  ///
  /// @param record Its losses and time.
  void add(const EpochRecord& record) { epochs_.push_back(record); }

  /// The records themselves.
  const std::vector<EpochRecord>& epochs() const { return epochs_; }

  /// For each epoch: the mean loss over its samples, while the weights changed.
  std::vector<double> train_loss() const { return column(&EpochRecord::train_loss); }

  /// For each epoch: the loss of its last batch.
  std::vector<double> last_batch_loss() const { return column(&EpochRecord::last_batch_loss); }

  /// For each epoch: the mean loss over the validation set after it; NaN without a validation set.
  std::vector<double> validation_loss() const { return column(&EpochRecord::validation_loss); }

  /// For each epoch: its time in seconds, validation included.
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
