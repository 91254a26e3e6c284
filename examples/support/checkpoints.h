// SPDX-License-Identifier: MIT

// The options --checkpoint-dir and --resume of the example programs.
#pragma once

#include <attend/io.h>
#include <attend/training.h>

#include <CLI/CLI.hpp>

#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace support {

/// The values of the options.
struct Checkpoints {
  std::string folder = {};  // empty: no checkpoints
  bool resume = false;

  /// Adds the options to a program.
  void add_options(CLI::App& app) {
    CLI::Option* const checkpoint_dir =
        app.add_option("--checkpoint-dir", folder, "folder to save the training in after each epoch, and after Ctrl-C")
            ->type_name("")
            ->always_capture_default(false);
    app.add_flag("--resume", resume, "continue the training in --checkpoint-dir, if there is one")
        ->needs(checkpoint_dir);
  }

  /// Trains a net, with checkpoints in a folder of its name if they are wanted. With --resume it continues the training
  /// of an earlier run, which must have the same settings.
  ///
  /// fit: fit(callback...) trains with these callbacks in addition to its own.
  template <class Trainer, class Fit>
  auto train(Trainer& trainer, const std::string& net, const std::string& settings, const Fit& fit) const {
    if (folder.empty()) return fit();
    std::filesystem::create_directories(folder);
    const std::string path = (std::filesystem::path(folder) / net).string();
    if (std::optional<attend::CheckpointData> newest = attend::CheckpointFolder(path).newest()) {
      if (!resume)
        throw std::runtime_error(path +
                                 " has a training; continue it with --resume, or choose another --checkpoint-dir");
      const std::string saved = newest->metadata["user.settings"];
      if (saved != settings)
        throw std::runtime_error(path + " has a run with other settings. That run: " + saved +
                                 ". This run: " + settings + ". Choose another --checkpoint-dir, or delete the folder");
      trainer.resume(std::move(*newest));
    }
    return fit(attend::Checkpoint(path, attend::CheckpointOptions().metadata({{"settings", settings}})));
  }
};

}  // namespace support
