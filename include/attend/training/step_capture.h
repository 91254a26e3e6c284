// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/core/Device.h>
#include <torch/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The interface behind TrainerOptions::capture: records once what a training step does to the device, and does it
/// again at the cost of one launch. attend::cuda_graphs() of `attend/training/cuda_graph.h` makes one with CUDA graphs.
///
/// A replay works on the tensors of the recording. The inputs of the step are written where they were, and its results
/// appear where they were.
class StepCapture {
 public:
  /// The result of capture().
  struct Recording {
    /// Does what was recorded; empty if nothing could be recorded.
    std::function<void()> replay = {};
    /// Why nothing could be recorded; otherwise empty.
    std::string error = {};
  };

  virtual ~StepCapture() = default;

  /// The name in explain(), for example "CUDA graph".
  virtual std::string name() const = 0;

  /// Why nothing can be captured on a device.
  ///
  /// @param device The device to train on.
  /// @return The reason, or nothing if steps can be captured.
  virtual std::optional<std::string> why_not(c10::Device device) const = 0;

  /// Runs all work of this thread where it can be captured, until the returned object is destroyed. The work comes
  /// after all earlier work, and before all later work.
  ///
  /// @param device The device to train on.
  /// @return The object to keep.
  virtual std::shared_ptr<void> enter(c10::Device device) = 0;

  /// Records what `body` does, without doing it.
  ///
  /// An exception of `body` is not passed on: it becomes Recording::error, and the device's numbers are as they were
  /// before. Tensors that `body` makes, gradients among them, hold nothing before the first replay.
  ///
  /// @param body The step.
  /// @return What replays the step, or the error.
  virtual Recording capture(const std::function<void()>& body) = 0;
};

/// An optimizer whose step() may be captured: all numbers that change from step to step are on the device. Derive from
/// it and from torch::optim::Optimizer.
class CapturableOptimizer {
 public:
  virtual ~CapturableOptimizer() = default;

  /// Copies to the device what was changed on the host, such as the learning rate. Called before each replay of a step.
  virtual void before_replay() = 0;

  /// All tensors, other than parameters and gradients, that step() reads or writes. A recording is valid as long as
  /// they are the same.
  virtual std::vector<torch::Tensor> state_tensors() const = 0;

  /// @param is_capturing While true, step() throws instead of making a tensor of its state.
  virtual void set_capturing(bool is_capturing) = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
