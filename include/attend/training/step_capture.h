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

/// The interface behind TrainerOptions::capture. It records the work of one training step on the device, and replays it
/// with one launch. attend::cuda_graphs() in `attend/training/cuda_graph.h` implements it with CUDA graphs.
///
/// A replay uses the tensors of the recording. The caller writes new inputs into the recorded input tensors, and reads
/// the results from the recorded result tensors.
class StepCapture {
 public:
  /// The result of capture().
  struct Recording {
    /// Replays the recorded work; empty if nothing could be recorded.
    std::function<void()> replay = {};
    /// The reason why nothing could be recorded; otherwise empty.
    std::string error = {};
  };

  virtual ~StepCapture() = default;

  /// The name in Trainer::explain(), for example "CUDA graph".
  virtual std::string name() const = 0;

  /// Says whether steps can be captured on a device, and if not, why.
  ///
  /// @param device The device to train on.
  /// @return The reason, or nothing if steps can be captured.
  virtual std::optional<std::string> why_not(c10::Device device) const = 0;

  /// Prepares this thread for captures until the returned object is destroyed, for example with a CUDA stream of its
  /// own. Work that is started until then runs after all earlier work of the thread and before all later work.
  ///
  /// @param device The device to train on.
  /// @return An object whose destructor ends this state.
  virtual std::shared_ptr<void> enter(c10::Device device) = 0;

  /// Records the work of `body` on the device without executing it.
  ///
  /// If `body` throws, the exception is not passed on. Its message becomes Recording::error, and no value on the device
  /// has changed. Tensors that `body` creates, gradients included, have no valid contents before the first replay.
  ///
  /// @param body The training step.
  /// @return The replay, or the error.
  virtual Recording capture(const std::function<void()>& body) = 0;
};

/// The interface of optimizers whose step() can be captured: all numbers that change from step to step are on the
/// device. Such an optimizer derives from this class and from torch::optim::Optimizer.
class CapturableOptimizer {
 public:
  virtual ~CapturableOptimizer() = default;

  /// Copies to the device the numbers that have changed on the host, such as the learning rate. Trainer calls it before
  /// each replay.
  virtual void before_replay() = 0;

  /// All tensors that step() reads or writes, except parameters and gradients. A recording is valid while these tensors
  /// are the same objects.
  virtual std::vector<torch::Tensor> state_tensors() const = 0;

  /// Begins or ends a capture. During a capture step() must throw if it would have to create a tensor of its state.
  ///
  /// @param is_capturing True begins a capture, false ends it.
  virtual void set_capturing(bool is_capturing) = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
