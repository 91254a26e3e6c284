// SPDX-License-Identifier: MIT
#pragma once

#include "support/command_line.h"

#include <attend/training.h>

#include <c10/util/Exception.h>
#include <torch/serialize.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

/// A callback that saves a training in a folder after each complete epoch. A later run of the program continues from it
/// and gets the same numbers as a run without interruption.
///
/// `checkpoint.pt` has the weights, the optimizer, the losses and the settings. It is replaced as a whole, so a
/// complete one exists whenever the program is killed. `history.csv` has the losses for people and for plot.py.
class Checkpoint {
 public:
  /// Loads the checkpoint of an earlier run onto a device, if there is one. Throws if it has other settings or is
  /// damaged.
  Checkpoint(std::filesystem::path folder, std::string settings, torch::Device device)
      : folder_(std::move(folder)), settings_(std::move(settings)) {
    if (!std::filesystem::exists(path())) return;
    c10::IValue settings_of_saved;
    try {
      saved_.emplace().load_from(path().string(), device);
      saved_->read("settings", settings_of_saved);
    } catch (const c10::Error&) {
      throw std::runtime_error(path().string() + " is damaged; delete it to start again");
    }
    if (settings_of_saved.toStringRef() != settings_)
      throw std::runtime_error(folder_.string() +
                               " has a run with other settings. That run: " + settings_of_saved.toStringRef() +
                               ". This run: " + settings_ + ". Choose another --output, or delete the folder");
    torch::Tensor table;  // (epochs, 4)
    saved_->read("history", table, /*is_buffer=*/true);
    for (std::int64_t epoch = 0; epoch < table.size(0); ++epoch) {
      const auto column = [&](std::int64_t i) { return table[epoch][i].item<double>(); };
      history_.add({column(0), column(1), column(2), column(3)});
    }
  }

  /// The epochs of earlier runs.
  const attend::History& history() const { return history_; }

  /// Loads the weights of the last complete epoch.
  void load_weights(torch::nn::Module& model) {
    torch::serialize::InputArchive archive;
    saved_.value().read("model", archive);
    model.load(archive);
  }

  /// Puts a new trainer into the state at the end of the earlier run, if there was one.
  template <class Trainer>
  void restore(Trainer& trainer) {
    if (!saved_) return;
    load_weights(*trainer.model());
    torch::serialize::InputArchive archive;
    saved_->read("optimizer", archive);
    trainer.optimizer().load(archive);
    trainer.resume(history_);
  }

  void on_epoch_end(attend::TrainingState& state) {
    if (state.samples < state.samples_per_epoch) return;
    torch::serialize::OutputArchive archive, model, optimizer;
    state.model.save(model);
    state.optimizer.save(optimizer);
    torch::Tensor table = torch::empty({std::ssize(state.history.epochs()), 4}, torch::kDouble);
    std::ofstream csv = support::open(folder_ / "history.csv.new");
    csv << "epoch,train_loss,last_batch_loss,validation_loss,seconds\n";
    for (std::int64_t epoch = 0; epoch < table.size(0); ++epoch) {
      const attend::EpochRecord& record = state.history.epochs()[epoch];
      const double figures[] = {record.train_loss, record.last_batch_loss, record.validation_loss, record.seconds};
      csv << epoch;
      for (int i = 0; i < 4; ++i) {
        table[epoch][i] = figures[i];
        csv << ',' << figures[i];
      }
      csv << '\n';
    }
    support::close(csv, folder_ / "history.csv.new");
    archive.write("settings", c10::IValue(settings_));
    archive.write("model", model);
    archive.write("optimizer", optimizer);
    archive.write("history", table, /*is_buffer=*/true);
    archive.save_to(path().string() + ".new");
    std::filesystem::rename(folder_ / "history.csv.new", folder_ / "history.csv");
    std::filesystem::rename(path().string() + ".new", path());
  }

 private:
  std::filesystem::path path() const { return folder_ / "checkpoint.pt"; }

  std::filesystem::path folder_;
  std::string settings_;
  std::optional<torch::serialize::InputArchive> saved_;
  attend::History history_;
};
