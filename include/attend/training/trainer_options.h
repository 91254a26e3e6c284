// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/step_capture.h>
#include <attend/version.h>

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of Trainer.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TrainerOptions().epochs(50).batch_size(32).learning_rate(1e-3).device(torch::kCPU).seed(7)
/// @endcode
struct TrainerOptions {
  /// The number of epochs of one fit(), at least 1. Default: 10.
  TORCH_ARG(std::int64_t, epochs) = 10;
  /// The number of samples in a batch, at least 1. The last batch of an epoch may be smaller. Default: 32.
  TORCH_ARG(std::int64_t, batch_size) = 32;
  /// The learning rate that is passed to the optimizer, positive and finite. Default: 1e-3.
  TORCH_ARG(double, learning_rate) = 1e-3;
  /// The device to train on; the model is moved there. Default: the device of the model.
  TORCH_ARG(std::optional<torch::Device>, device) = std::nullopt;
  /// The seed of the order of the samples. The order in epoch e depends on seed and e alone. Initial weights and
  /// dropout do not depend on this seed, but on torch::manual_seed. Default: 0.
  TORCH_ARG(std::uint64_t, seed) = 0;
  /// The dtype of autocast for forward pass and loss, in training and validation. The weights keep their dtype. The
  /// only possible dtype is torch::kBFloat16, because float16 needs scaled gradients. Default: no autocast.
  TORCH_ARG(std::optional<at::ScalarType>, autocast) = std::nullopt;
  /// The number of batches that share one update, at least 1. The update uses the mean gradient over their samples, as
  /// if they were one batch. Default: 1.
  TORCH_ARG(std::int64_t, accumulation_steps) = 1;
  /// Captures training steps: set it to attend::cuda_graphs(). Default: none; the steps run as a plain loop.
  ///
  /// The trainer records one step and replays it for the batches that follow, if:
  /// - the batch is full and its tensors are dense
  /// - the optimizer is a CapturableOptimizer, as attend::Adam and attend::AdamW are
  /// - the capture succeeds
  ///
  /// Otherwise the plain loop runs, and Trainer::explain() says why.
  ///
  /// In a replay the C++ code of model and loss does not run. Changes by callbacks take effect as follows:
  ///
  /// | Change | Takes effect |
  /// | --- | --- |
  /// | values of tensors, the learning rate | at once |
  /// | training modes, frozen parameters, replaced tensors | from the next epoch |
  /// | other numbers on the host, such as weight_decay or a dropout rate | from the next fit |
  TORCH_ARG(std::shared_ptr<StepCapture>, capture) = nullptr;
};

namespace detail {

inline const TrainerOptions& checked(const TrainerOptions& options) {
  TORCH_CHECK_VALUE(options.epochs() >= 1, "attend::Trainer: epochs (", options.epochs(), ") must be at least 1");
  TORCH_CHECK_VALUE(options.batch_size() >= 1, "attend::Trainer: batch_size (", options.batch_size(),
                    ") must be at least 1");
  TORCH_CHECK_VALUE(std::isfinite(options.learning_rate()) && options.learning_rate() > 0.0,
                    "attend::Trainer: learning_rate (", options.learning_rate(), ") must be positive and finite");
  TORCH_CHECK_VALUE(options.accumulation_steps() >= 1, "attend::Trainer: accumulation_steps (",
                    options.accumulation_steps(), ") must be at least 1");
  TORCH_CHECK_VALUE(!options.autocast() || *options.autocast() == torch::kBFloat16, "attend::Trainer: autocast (",
                    c10::toString(options.autocast().value_or(torch::kBFloat16)),
                    ") must be BFloat16; float16 would need gradient scaling");
  if (options.device() && options.device()->is_cuda()) {
    const auto devices = static_cast<std::int64_t>(torch::cuda::device_count());
    TORCH_CHECK_VALUE(std::max<std::int64_t>(options.device()->index(), 0) < devices, "attend::Trainer: device (",
                      *options.device(), ") does not exist: this machine has ", devices, " CUDA devices");
  }
  return options;
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
