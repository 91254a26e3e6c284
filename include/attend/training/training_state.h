// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/distinct.h>
#include <attend/training/history.h>
#include <attend/version.h>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The state of a fit, which every hook of a callback gets.
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
  /// The model that is trained.
  torch::nn::Module& model;
  /// The optimizer, whose learning rate may be changed.
  torch::optim::Optimizer& optimizer;
  const History& history;  ///< the epochs that are over, this one included in on_epoch_end

  std::int64_t epoch = 0;              ///< the current one, from 0; in on_fit_end the number of epochs done
  std::int64_t epochs = 0;             ///< the number of epochs at which this fit ends
  std::int64_t batch = 0;              ///< the current one, from 0; in on_epoch_end the number of batches done
  std::int64_t batches = 0;            ///< batches in an epoch
  std::int64_t samples = 0;            ///< samples seen in this epoch, the current batch included
  std::int64_t samples_per_epoch = 0;  ///< samples in an epoch
  double seconds = 0.0;                ///< since the fit began

  /// The loss of the current batch: a 0-d tensor on the training device, undefined before the first batch. Reading its
  /// number waits for the device, so do not read it after every batch.
  torch::Tensor loss = {};

  /// The learning rate of the first parameter group; read from the host, so it waits for nothing.
  double learning_rate() const { return optimizer.param_groups().at(0).options().get_lr(); }

  /// Sets the learning rate of every parameter group, from the next step on.
  void set_learning_rate(double learning_rate) {
    for (auto& group : optimizer.param_groups()) group.options().set_lr(learning_rate);
  }

  /// The gradients of all parameters that have one, each once, to look at or to change in on_before_step.
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
