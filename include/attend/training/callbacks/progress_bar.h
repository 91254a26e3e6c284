// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/printable.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A callback that shows the progress: one line for each finished epoch, and in a terminal a moving bar below them:
///
///     epoch  3/50  [======>       ]  loss 0.00612  2060 samples/s  3:51 left
///
/// The line fits a terminal of 80 columns. At most five times a second the bar is drawn, and the loss is read from the
/// device. The bar shows the loss of the current batch. The line of an epoch shows the mean loss over its samples. The
/// time left is that of the whole fit, as minutes:seconds or hours:minutes:seconds.
///
/// @code
/// trainer.fit(train_set, validation_set, attend::ProgressBar());
/// @endcode
class ProgressBar {
 public:
  /// Writes to std::cerr, with the bar if that is a terminal.
  ProgressBar() : ProgressBar(std::cerr, error_stream_is_a_terminal()) {}

  /// Writes to any stream.
  ///
  /// @param stream The stream. It must outlive the callback.
  /// @param with_bar Whether to show the moving bar. It needs a terminal.
  ProgressBar(std::ostream& stream, bool with_bar) : stream_(&stream), with_bar_(with_bar) {}

  /// Stores the position at which the fit begins or was resumed.
  void on_fit_begin(TrainingState& state) {
    first_position_ = position_of(state);
    last_drawn_ = 0.0;
  }

  /// Draws the bar, at most five times a second.
  void on_batch_end(TrainingState& state) {
    if (!with_bar_ || state.seconds - last_drawn_ < kSecondsBetweenDraws) return;
    last_drawn_ = state.seconds;
    constexpr std::int64_t kWidth = 14;
    const std::int64_t filled = kWidth * state.samples / state.samples_per_epoch;
    std::string bar(static_cast<std::size_t>(filled), '=');
    bar += '>';
    bar.resize(kWidth, ' ');
    const double epochs_done = position_of(state) - first_position_;
    const double samples_done = epochs_done * static_cast<double>(state.samples_per_epoch);
    const double epochs_left = static_cast<double>(state.epochs) - position_of(state);
    rewrite(title(state) + "  [" + bar + "]  loss " + number(state.loss.item<double>()) + "  " +
            std::to_string(std::llround(samples_done / state.seconds)) + " samples/s  " +
            clock(state.seconds / epochs_done * epochs_left) + " left");
  }

  /// Writes the line of the finished epoch.
  void on_epoch_end(TrainingState& state) {
    const EpochRecord& record = state.history.epochs().back();
    std::string line = title(state) + "  loss " + number(record.train_loss);
    if (!std::isnan(record.validation_loss)) line += "  validation " + number(record.validation_loss);
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "  %.1f s", record.seconds);
    line += seconds;
    if (state.samples < state.samples_per_epoch)
      line += "  stopped after " + std::to_string(state.batch) + " of " + std::to_string(state.batches) + " batches";
    rewrite(line);
    *stream_ << std::endl;
    shown_ = 0;
  }

 private:
  static constexpr double kSecondsBetweenDraws = 0.2;

  static bool error_stream_is_a_terminal() {
#if defined(__unix__) || defined(__APPLE__)
    return ::isatty(STDERR_FILENO) == 1;
#else
    return false;
#endif
  }

  /// The number of epochs so far, plus the finished fraction of the current epoch.
  static double position_of(const TrainingState& state) {
    return static_cast<double>(state.epoch) +
           static_cast<double>(state.samples) / static_cast<double>(state.samples_per_epoch);
  }

  static std::string title(const TrainingState& state) {
    const std::string epochs = std::to_string(state.epochs);
    std::string epoch = std::to_string(state.epoch + 1);
    epoch.insert(0, epochs.size() - std::min(epochs.size(), epoch.size()), ' ');
    return "epoch " + epoch + '/' + epochs;
  }

  static std::string number(double loss) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", detail::printable(loss));
    return text;
  }

  /// Minutes and seconds, preceded by hours if it is an hour or more.
  static std::string clock(double seconds) {
    const long long s = std::llround(seconds);
    char text[48];
    if (s < 3600)
      std::snprintf(text, sizeof text, "%lld:%02lld", s / 60, s % 60);
    else
      std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    return text;
  }

  /// Overwrites the current line. If the old line is longer, spaces cover the rest of it.
  void rewrite(const std::string& line) {
    if (shown_ > 0) *stream_ << '\r';
    *stream_ << line << std::string(shown_ > line.size() ? shown_ - line.size() : 0, ' ') << std::flush;
    shown_ = line.size();
  }

  std::ostream* stream_;
  bool with_bar_;
  double first_position_ = 0.0;
  double last_drawn_ = 0.0;
  std::size_t shown_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
