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
class Checkpoints {
 public:
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

  /// The newest checkpoint of a net, if there is one. It is an error unless --resume is given and the settings are the
  /// same. Call this before results of an earlier run are overwritten.
  std::optional<attend::CheckpointData> newest(const std::string& net, const std::string& settings) const {
    if (folder.empty()) return std::nullopt;
    std::filesystem::create_directories(folder);
    std::optional<attend::CheckpointData> newest = attend::CheckpointFolder(path_of(net)).newest();
    if (!newest) return std::nullopt;
    if (!resume)
      throw std::runtime_error(path_of(net) +
                               " has a training; continue it with --resume, or choose another --checkpoint-dir");
    const std::string saved = newest->metadata["user.settings"];
    if (saved != settings)
      throw std::runtime_error(path_of(net) + " has a run with other settings. That run: " + saved +
                               ". This run: " + settings + ". Choose another --checkpoint-dir, or delete the folder");
    return newest;
  }

  /// Trains a net, with checkpoints in a folder of its name if they are wanted. It continues from a checkpoint that
  /// newest() has returned.
  ///
  /// fit: fit(callback...) trains with these callbacks in addition to its own.
  template <class Trainer, class Fit>
  auto train(Trainer& trainer, const std::string& net, const std::string& settings,
             std::optional<attend::CheckpointData> checkpoint, const Fit& fit) const {
    if (folder.empty()) return fit();
    if (checkpoint) trainer.resume(std::move(*checkpoint));
    return fit(attend::Checkpoint(path_of(net), attend::CheckpointOptions().metadata({{"settings", settings}})));
  }

 private:
  std::string path_of(const std::string& net) const { return (std::filesystem::path(folder) / net).string(); }
};

}  // namespace support
