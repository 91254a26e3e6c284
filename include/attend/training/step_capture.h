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

/// What TrainerOptions::capture takes: a way to record what a training step does to the device once, and to do it again
/// at the cost of one launch. attend::cuda_graphs() of <attend/training/cuda_graph.h> makes one of CUDA graphs.
///
/// A replay works on the tensors of the recording: the step's inputs are written where they were, and its results
/// appear where they were.
class StepCapture {
 public:
  /// `replay` does what was recorded, on the current stream; it is empty if nothing could be, and `error` says why.
  struct Recording {
    /// Does what was recorded; empty if nothing could be recorded.
    std::function<void()> replay = {};
    /// Why nothing could be recorded; otherwise empty.
    std::string error = {};
  };

  virtual ~StepCapture() = default;

  /// As explain() names it, for example "CUDA graph".
  virtual std::string name() const = 0;

  /// Why nothing can be captured on this device; nothing if something can.
  virtual std::optional<std::string> why_not(c10::Device device) const = 0;

  /// All work from now on, until the returned object is gone, runs where it can be captured: after all that came
  /// before, and before all that comes then.
  virtual std::shared_ptr<void> enter(c10::Device device) = 0;

  /// Records what `body` does, without doing it. Does not throw for what `body` throws: that is an error in the result,
  /// and the device's numbers are as they were before. Tensors that `body` has made, gradients among them, hold nothing
  /// before the first replay.
  virtual Recording capture(const std::function<void()>& body) = 0;
};

/// An optimizer whose step() may be captured: all numbers that change from step to step are on the device. Derive from
/// it beside torch::optim::Optimizer to say so.
class CapturableOptimizer {
 public:
  virtual ~CapturableOptimizer() = default;

  /// Brings to the device what was changed on the host, such as the learning rate. Called before each replay of a step.
  virtual void before_replay() = 0;

  /// All tensors beside parameters and gradients that step() reads or writes. A recording is good for as long as they
  /// are the same.
  virtual std::vector<torch::Tensor> state_tensors() const = 0;

  /// While true, step() throws instead of making such a tensor.
  virtual void set_capturing(bool is_capturing) = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
