// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_folder.h>
#include <attend/io/file_error.h>
#include <attend/training/detail/decisive_losses.h>
#include <attend/training/history.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of Checkpoint.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::CheckpointOptions().every_batches(100).keep_last(5)
/// @endcode
struct CheckpointOptions {
  /// The number of epochs between two checkpoints, at least 1. Default: 1.
  TORCH_ARG(std::int64_t, every_epochs) = 1;
  /// The number of batches between two checkpoints, at least 0. Default: 0, none within an epoch.
  TORCH_ARG(std::int64_t, every_batches) = 0;
  /// The number of checkpoints to keep, at least 1. Older ones are removed. Default: 3.
  TORCH_ARG(std::int64_t, keep_last) = 3;
  /// Whether to keep the checkpoint after the best epoch as `best.safetensors`. The best epoch has the lowest
  /// validation loss, or the lowest training loss if there is no validation set. Default: true.
  TORCH_ARG(bool, keep_best) = true;

  /// Texts by name.
  using Metadata = std::map<std::string, std::string>;
  /// Texts to save in each checkpoint, for example the settings of the program. The text with the name NAME is
  /// CheckpointData::metadata["user.NAME"] in a checkpoint. Default: none.
  TORCH_ARG(Metadata, metadata) = {};
};

/// A callback that saves the training in a folder, so that Trainer::resume() can continue it after an interruption.
///
/// It saves after epochs and batches as the options say, and always when a fit ends. A checkpoint within an epoch is
/// saved after an update of the weights, so with accumulation_steps it may come a few batches later.
///
/// If the process is killed at any time, all checkpoints in the folder are complete, and the last one that was saved is
/// among them. CheckpointFolder describes the files.
///
/// Saving copies the model to the CPU and waits until the file is on the disk.
///
/// @throws c10::ValueError from the constructor for options out of range.
/// @throws FileError from fit() if a checkpoint cannot be saved, for example on a full disk. The earlier checkpoints
/// are intact then. fit() also throws it if the folder has checkpoints of later positions, because this fit would
/// remove them. In that case call Trainer::resume(), or use another folder.
///
/// @code
/// attend::Trainer trainer(model, attend::TrainerOptions().epochs(50));
/// trainer.resume("run");
/// trainer.fit(train_set, validation_set, attend::Checkpoint("run"));
/// @endcode
class Checkpoint {
 public:
  /// A callback that saves in this folder.
  ///
  /// @param folder The path of the folder. The first checkpoint creates the folder, but not its parent.
  /// @param options How often to save, and how many checkpoints to keep. Default: as CheckpointOptions.
  /// @throws c10::ValueError for options out of range.
  explicit Checkpoint(std::string folder, CheckpointOptions options = {})
      : folder_(std::move(folder)), options_(std::move(options)) {
    TORCH_CHECK_VALUE(options_.every_epochs() >= 1, "attend::Checkpoint: every_epochs (", options_.every_epochs(),
                      ") must be at least 1");
    TORCH_CHECK_VALUE(options_.every_batches() >= 0, "attend::Checkpoint: every_batches (", options_.every_batches(),
                      ") must be at least 0");
    TORCH_CHECK_VALUE(options_.keep_last() >= 1, "attend::Checkpoint: keep_last (", options_.keep_last(),
                      ") must be at least 1");
  }

  /// Throws FileError if the folder has undamaged checkpoints of later positions.
  void on_fit_begin(TrainingState& state) {
    last_saved_ = {state.epoch, state.batch};
    const auto files = folder_.files();
    for (auto file = files.upper_bound(last_saved_); file != files.end(); ++file) {
      try {
        load_checkpoint(file->second);
      } catch (const FileError& error) {
        if (!error.is_damaged()) throw;
        continue;  // the training was resumed from the one before it
      }
      throw FileError("attend::Checkpoint", file->second,
                      "expected no later checkpoint than epoch " + std::to_string(state.epoch) + ", batch " +
                          std::to_string(state.batch) +
                          ", at which this fit begins; call Trainer::resume(), or use another folder");
    }
  }

  /// Saves a checkpoint if the options ask for one at this position.
  void on_checkpoint(TrainingState& state) {
    const CheckpointFolder::Position position{state.epoch, state.batch};
    const bool is_epoch_end = state.batch == 0;
    const std::int64_t batches =
        (position.epoch - last_saved_.epoch) * state.batches + position.batch - last_saved_.batch;
    const bool is_due = is_epoch_end ? state.epoch % options_.every_epochs() == 0
                                     : options_.every_batches() > 0 && batches >= options_.every_batches();
    const bool is_best = options_.keep_best() && is_epoch_end && last_is_best(state.history);
    if (position == last_saved_ || (!is_due && !is_best && !state.is_ending)) return;
    CheckpointData data = state.checkpoint();
    for (const auto& [name, text] : options_.metadata()) data.metadata["user." + name] = text;
    if (is_best) folder_.save_best(data);
    if (!is_due && !state.is_ending) return;
    folder_.save(data, position, options_.keep_last());
    last_saved_ = position;
  }

 private:
  static bool last_is_best(const History& history) {
    const std::vector<double> losses = detail::decisive_losses(history);
    const double last = losses.back();
    return !std::isnan(last) &&
           std::none_of(losses.begin(), losses.end() - 1, [&](double loss) { return loss <= last; });
  }

  CheckpointFolder folder_;
  CheckpointOptions options_;
  CheckpointFolder::Position last_saved_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
