// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/training/detail/autocast_scope.h>
#include <attend/training/detail/batches.h>
#include <attend/training/detail/distinct.h>
#include <attend/training/detail/evaluation_mode.h>
#include <attend/training/detail/trainable.h>
#include <attend/training/history.h>
#include <attend/training/step.h>
#include <attend/training/step_capture.h>
#include <attend/training/trainer_options.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Moves a model to the device of its training: `asked_for`, or the device of its first parameter.
template <class Model>
torch::Device moved_to_device(Model& model, const std::optional<torch::Device>& asked_for) {
  const std::vector<torch::Tensor> parameters = model->parameters();
  TORCH_CHECK_VALUE(!parameters.empty(), "attend::Trainer: the model has no parameters to train");
  for (const torch::Tensor& parameter : parameters)
    TORCH_CHECK_VALUE(!parameter.is_inference(),
                      "attend::Trainer: the model's parameters were made under InferenceMode and cannot be trained; "
                      "make the model outside of its scope");
  const torch::Device device = asked_for.value_or(parameters.front().device());
  model->to(device);
  return device;
}

template <class Optimizer>
std::unique_ptr<torch::optim::Optimizer> owned(Optimizer optimizer) {
  static_assert(std::derived_from<Optimizer, torch::optim::Optimizer>,
                "attend::Trainer: MakeOptimizer must return a torch::optim::Optimizer");
  return std::make_unique<Optimizer>(std::move(optimizer));
}

/// What a Trainer keeps between its fits.
template <class Model, class Loss>
struct TrainerParts {
  template <class MakeOptimizer>
  TrainerParts(Model given_model, const TrainerOptions& given_options, Loss given_loss, MakeOptimizer& make_optimizer)
      : options(checked(given_options)),
        model(std::move(given_model)),
        loss(std::move(given_loss)),
        device(moved_to_device(model, options.device())),
        optimizer(owned(make_optimizer(distinct(model->parameters()), options.learning_rate()))) {
    const std::optional<std::string> reason = why_plain_loop();
    how = reason ? "plain loop: " + *reason : options.capture()->name() + " if the step can be captured";
  }

  /// Why no step can be captured, regardless of the data; nothing if steps can be captured.
  std::optional<std::string> why_plain_loop() const {
    if (!options.capture()) return device.is_cpu() ? "the device is cpu" : "TrainerOptions::capture is not set";
    if (std::optional<std::string> reason = options.capture()->why_not(device)) return reason;
    const torch::optim::Optimizer& used = *optimizer;
    if (dynamic_cast<const CapturableOptimizer*>(&used) == nullptr)
      return c10::demangle(typeid(used).name()) +
             " keeps numbers of its step on the host, unlike attend::Adam and AdamW";
    return std::nullopt;
  }

  /// The mean of `metric(outputs, targets)` over the samples, in evaluation mode, without gradients. `name` begins the
  /// message if the metric is not 0-d.
  template <class Data, class Metric>
  double mean_over(Batches<Data>& data, Metric& metric, const char* name) {
    const c10::NoGradGuard no_grad;
    const EvaluationMode evaluation(*model);
    torch::Tensor sum = at::zeros({}, at::device(device).dtype(torch::kDouble));
    const torch::Tensor order = data.prepared(at::arange(data.size(), torch::kLong));
    for (std::int64_t begin = 0; begin < data.size(); begin += options.batch_size()) {
      const std::int64_t end = std::min(begin + options.batch_size(), data.size());
      const auto [inputs, targets] = data.gather(order.slice(0, begin, end));
      const AutocastScope autocast(options.autocast(), device.type());
      sum.add_(loss_of(model, metric, inputs, targets, *optimizer, name), end - begin);  // in float64
    }
    return sum.item<double>() / static_cast<double>(data.size());
  }

  /// The mean loss over the samples.
  template <class Data>
  double mean_loss(Batches<Data>& data) {
    return mean_over(data, loss, "attend::TrainingStep: the loss");
  }

  TrainerOptions options;
  Model model;
  Loss loss;
  torch::Device device;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  History history;
  std::string how;                        ///< for Trainer::explain()
  std::optional<CheckpointData> resumed;  ///< what the next fit continues
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
