// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/printable.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <c10/util/Exception.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <locale>
#include <sstream>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A callback that writes a line of comma-separated values after each epoch. Each line is flushed, so an interrupted
/// run loses no finished epoch.
///
/// The first line names the columns: epoch (from 0), train_loss, last_batch_loss, validation_loss (nan without a
/// validation set), learning_rate, seconds. EpochRecord explains them.
///
/// After Trainer::resume(), fit() first restores the lines of the epochs before the checkpoint and removes later ones.
///
/// @throws c10::ValueError from the constructor if the file cannot be opened.
/// @throws c10::Error if a line cannot be written.
///
/// @code
/// trainer.fit(train_set, validation_set, attend::CsvLog("history.csv"));
/// @endcode
class CsvLog {
 public:
  /// Opens the file, and replaces its contents by the line with the names of the columns.
  ///
  /// @param path The path of the file. Its folder must exist.
  /// @throws c10::ValueError if the file cannot be opened.
  explicit CsvLog(std::string path) : path_(std::move(path)), file_(path_) {
    TORCH_CHECK_VALUE(file_.is_open(), "attend::CsvLog: cannot write \"", path_, "\": ", std::strerror(errno));
    write("epoch,train_loss,last_batch_loss,validation_loss,learning_rate,seconds\n");
  }

  /// Writes the line of the finished epoch.
  void on_epoch_end(TrainingState& state) {
    const EpochRecord& record = state.history.epochs().back();
    std::ostringstream line;
    line.imbue(std::locale::classic());  // a decimal point in every locale
    line.precision(std::numeric_limits<double>::max_digits10);
    line << state.epoch;
    for (const double loss : {record.train_loss, record.last_batch_loss, record.validation_loss})
      line << ',' << detail::printable(loss);
    line << ',' << state.learning_rate() << ',' << record.seconds << '\n';
    write(line.str());
  }

  /// The contents of the file, for a checkpoint.
  std::string save_state() const { return lines_; }

  /// Replaces the contents of the file by those of a checkpoint.
  ///
  /// @param lines The result of save_state().
  /// @throws c10::Error if the file cannot be written.
  void load_state(const std::string& lines) {
    file_.close();
    file_.open(path_);
    lines_.clear();
    write(lines);
  }

 private:
  void write(const std::string& lines) {
    lines_ += lines;
    file_ << lines << std::flush;
    TORCH_CHECK(file_.good(), "attend::CsvLog: cannot write a line to \"", path_, "\": ", std::strerror(errno));
  }

  std::string path_;
  std::ofstream file_;
  std::string lines_;  // all that was written
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
