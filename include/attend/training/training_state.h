// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/training/detail/distinct.h>
#include <attend/training/history.h>
#include <attend/version.h>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The state of a fit: the argument of every hook of a callback.
///
/// Example: a callback that halves the learning rate every ten epochs.
/// @code
/// struct HalveRate {
///   void on_epoch_end(attend::TrainingState& state) {
///     if (state.epoch % 10 == 9) state.set_learning_rate(state.learning_rate() / 2);
///   }
/// };
/// @endcode
struct TrainingState {
  /// The model in training.
  torch::nn::Module& model;
  /// The optimizer. A callback may change its learning rate.
  torch::optim::Optimizer& optimizer;
  /// The record of the finished epochs, those of earlier fits included. In on_epoch_end it includes the current epoch.
  const History& history;

  /// Index of the current epoch, from 0. In on_checkpoint and on_fit_end: the number of finished epochs.
  std::int64_t epoch = 0;
  std::int64_t epochs = 0;  ///< number of epochs after which this fit ends, those of earlier fits included
  /// Index of the current batch, from 0. In on_checkpoint, on_epoch_end and on_fit_end: the number of finished batches.
  std::int64_t batch = 0;
  std::int64_t batches = 0;            ///< number of batches in an epoch
  std::int64_t samples = 0;            ///< number of samples used in this epoch, the current batch included
  std::int64_t samples_per_epoch = 0;  ///< number of samples in an epoch
  double seconds = 0.0;                ///< time since the fit began or was resumed, in seconds

  /// Whether the fit ends here, because a hook has returned true or because the last epoch is complete. Only
  /// on_checkpoint may read it. If on_checkpoint itself returns true, all hooks on_checkpoint are called once more,
  /// with is_ending = true.
  bool is_ending = false;

  /// Copies everything that Trainer::resume() needs. It waits for the device. Only on_checkpoint may call it; for other
  /// hooks it throws c10::ValueError.
  std::function<CheckpointData()> checkpoint = {};

  /// The loss of the current batch: a 0-d tensor on the training device. It is undefined before the first batch.
  ///
  /// `loss.item()` waits for the device. Do not call it after every batch on a GPU.
  torch::Tensor loss = {};

  /// The learning rate of the first parameter group. Reading it does not wait for the device.
  double learning_rate() const { return optimizer.param_groups().at(0).options().get_lr(); }

  /// Sets the learning rate of every parameter group, from the next update on.
  ///
  /// @param learning_rate The new rate.
  void set_learning_rate(double learning_rate) {
    for (auto& group : optimizer.param_groups()) group.options().set_lr(learning_rate);
  }

  /// The gradients of all parameters that have one, each of them once. on_before_step may read them and change them in
  /// place.
  std::vector<torch::Tensor> gradients() const {
    std::vector<torch::Tensor> gradients;
    for (const auto& group : optimizer.param_groups()) {
      for (const torch::Tensor& parameter : group.params()) {
        if (parameter.grad().defined()) gradients.push_back(parameter.grad());
      }
    }
    return detail::distinct(gradients);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
