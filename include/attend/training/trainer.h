// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/adam.h>
#include <attend/training/detail/batches.h>
#include <attend/training/detail/callback.h>
#include <attend/training/history.h>
#include <attend/training/step.h>
#include <attend/training/training_state.h>

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/cuda.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend {

/// Options of Trainer.
///
/// Example:
///   attend::TrainerOptions().epochs(50).batch_size(32).learning_rate(1e-3).device(torch::kCPU).seed(7)
struct TrainerOptions {
  /// How many epochs one fit() trains. Default: 10.
  TORCH_ARG(std::int64_t, epochs) = 10;
  /// Samples in a batch; the last batch of an epoch may be smaller. Default: 32.
  TORCH_ARG(std::int64_t, batch_size) = 32;
  /// Handed to the optimizer. Default: 1e-3.
  TORCH_ARG(double, learning_rate) = 1e-3;
  /// Where to train; the model is moved there. Default: where the model is.
  TORCH_ARG(std::optional<torch::Device>, device) = std::nullopt;
  /// Orders the batches and nothing else: the order of epoch e is a function of (seed, e). Weights and dropout follow
  /// torch::manual_seed. Default: 0.
  TORCH_ARG(std::uint64_t, seed) = 0;
};

/// The mean of the squared differences, Trainer's default loss.
struct MeanSquaredError {
  torch::Tensor operator()(const torch::Tensor& outputs, const torch::Tensor& targets) const {
    TORCH_CHECK_VALUE(outputs.sizes() == targets.sizes(), "attend::MeanSquaredError: outputs ", outputs.sizes(),
                      " must have the sizes of targets ", targets.sizes());
    return at::mse_loss(outputs, targets);
  }
};

/// Makes attend::Adam, Trainer's default optimizer.
struct MakeAdam {
  Adam operator()(std::vector<torch::Tensor> parameters, double learning_rate) const {
    return Adam(std::move(parameters), torch::optim::AdamOptions(learning_rate));
  }
};

/// Trains a model.
///
/// fit() goes through the training set in a new order every epoch, in batches; after each epoch it measures the loss on
/// the validation set, if there is one, and it returns what it recorded. Calling it again goes on where it ended: the
/// optimizer keeps its state, epochs count on. Progress, logs and early ends are callbacks' business: the trainer
/// prints nothing.
///
/// Model: a module holder, a torch::nn::Sequential or a shared_ptr of a module, with `forward(inputs)`. It is shared,
/// not copied.
/// Loss: `loss(outputs, targets)` gives a 0-d tensor, the mean over the batch. Default: MeanSquaredError.
/// MakeOptimizer: `make(parameters, learning_rate)` gives a torch::optim::Optimizer. Default: MakeAdam. It cannot be
/// LBFGS, whose step needs a closure.
/// Data: anything with inputs() and targets(), samples first, which then live on the device as a whole; or a
/// torch::data dataset of known size, not const, whose batches are fetched one by one.
/// Callbacks: objects with some of the hooks on_fit_begin, on_epoch_begin, on_before_step (between gradients and
/// update), on_batch_end, on_epoch_end, on_fit_end, each taking TrainingState& and returning nothing or a bool. True
/// ends the fit: a batch that has begun is finished, and so is the epoch, with its figures so far and on_epoch_end; an
/// epoch without a batch (after on_fit_begin or on_epoch_begin) is not recorded and has no on_epoch_end; on_fit_end
/// always runs. A callback that is passed as an lvalue keeps its state.
/// Modes: fit() puts the model in training mode once, before on_fit_begin, where a callback may freeze parts, and
/// leaves it so. Validation and evaluate() give each submodule the mode back that it had.
/// Throws c10::ValueError for options, data or a loss out of range and for a device that is not there. What a model, a
/// loss or a callback throws passes through; the model keeps what it has learnt, and history() what was recorded.
///
/// Example:
///   attend::Trainer trainer(model, attend::TrainerOptions().epochs(50));
///   attend::History history = trainer.fit(train_set, validation_set, attend::ProgressBar());
template <class Model, class Loss = MeanSquaredError, class MakeOptimizer = MakeAdam>
class Trainer {
 public:
  explicit Trainer(Model model, const TrainerOptions& options = {}, Loss loss = {}, MakeOptimizer make_optimizer = {})
      : options_(checked(options)),
        model_(std::move(model)),
        loss_(std::move(loss)),
        device_(move_to_device()),
        optimizer_(made(make_optimizer(model_->parameters(), options.learning_rate()))) {}

  /// Trains for options().epochs() epochs; see the class.
  template <class TrainSet, class... More>
  History fit(TrainSet&& train_set, More&&... validation_set_and_callbacks) {
    static_assert(
        detail::TrainingData<TrainSet>,
        "attend::Trainer: the training set needs inputs() and targets(), or size() and get_batch(indices) as a "
        "torch::data dataset of Example<> has, which must not be const");
    const detail::Batches<std::remove_reference_t<TrainSet>> train("the training set", train_set, device_);
    return split_validation_set(train, validation_set_and_callbacks...);
  }

  /// Mean loss over a data set, in evaluation mode, without gradients.
  template <class Data>
  double evaluate(Data&& data) {
    static_assert(detail::TrainingData<Data>,
                  "attend::Trainer: the data need inputs() and targets(), or size() and get_batch(indices) as a "
                  "torch::data dataset of Example<> has, which must not be const");
    return mean_loss(detail::Batches<std::remove_reference_t<Data>>("the data set", data, device_));
  }

  /// What all fits of this trainer recorded so far.
  const History& history() const { return history_; }

  const TrainerOptions& options() const { return options_; }

  Model& model() { return model_; }

  torch::optim::Optimizer& optimizer() { return *optimizer_; }

 private:
  struct NoValidation {};

  template <class Train>
  History split_validation_set(const Train& train) {
    return run(train, NoValidation());
  }

  template <class Train, class First, class... Callbacks>
  History split_validation_set(const Train& train, First& first, Callbacks&... callbacks) {
    if constexpr (detail::TrainingData<First>) {
      return run(train, detail::Batches<First>("the validation set", first, device_), callbacks...);
    } else {
      return run(train, NoValidation(), first, callbacks...);
    }
  }

  template <class Train, class Validation, class... Callbacks>
  History run(const Train& train, const Validation& validation, Callbacks&... callbacks) {
    (detail::check_callback<Callbacks>(), ...);
    const auto begin = Clock::now();
    const auto first_epoch = static_cast<std::int64_t>(history_.epochs().size());
    TrainingState state{*model_, *optimizer_, history_};
    state.epochs = first_epoch + options_.epochs();
    state.samples_per_epoch = train.size();
    state.batches = (train.size() + options_.batch_size() - 1) / options_.batch_size();

    bool stop = false;
    const auto call = [&]<class Hook>(Hook) {
      state.seconds = seconds_since(begin);
      ((stop |= detail::call_hook<Hook>(callbacks, state)), ...);
    };

    TrainingStep step(model_, std::ref(loss_), *optimizer_);
    model_->train();
    state.epoch = first_epoch;
    call(detail::on_fit_begin_hook());
    for (; state.epoch < state.epochs && !stop; ++state.epoch) {
      const auto epoch_begin = Clock::now();
      const torch::Tensor order = train.prepared(detail::shuffled(train.size(), options_.seed(), state.epoch));
      torch::Tensor loss_sum = at::zeros({}, at::device(device_).dtype(torch::kDouble));
      state.samples = 0;
      state.batch = 0;
      call(detail::on_epoch_begin_hook());
      for (; state.batch < state.batches && !stop; ++state.batch) {
        const std::int64_t end = std::min(state.samples + options_.batch_size(), train.size());
        const auto [inputs, targets] = train.gather(order.slice(0, state.samples, end));
        state.loss = step.backward(inputs, targets);
        loss_sum += state.loss * (end - state.samples);
        state.samples = end;
        call(detail::on_before_step_hook());
        step.update();
        call(detail::on_batch_end_hook());
      }
      if (state.samples == 0) break;  // stopped before the first batch: there is nothing to record
      EpochRecord record;
      record.train_loss = loss_sum.item<double>() / static_cast<double>(state.samples);
      record.last_batch_loss = state.loss.item<double>();
      record.validation_loss = mean_loss(validation);
      record.seconds = seconds_since(epoch_begin);
      history_.add(record);
      call(detail::on_epoch_end_hook());
    }
    call(detail::on_fit_end_hook());

    History fitted;
    for (std::size_t i = first_epoch; i < history_.epochs().size(); ++i) fitted.add(history_.epochs()[i]);
    return fitted;
  }

  static double mean_loss(NoValidation) { return std::numeric_limits<double>::quiet_NaN(); }

  template <class Data>
  double mean_loss(const detail::Batches<Data>& data) {
    const c10::NoGradGuard no_grad;
    const EvaluationMode evaluation(*model_);
    torch::Tensor loss_sum = at::zeros({}, at::device(device_).dtype(torch::kDouble));
    const torch::Tensor order = data.prepared(at::arange(data.size(), torch::kLong));
    for (std::int64_t begin = 0; begin < data.size(); begin += options_.batch_size()) {
      const std::int64_t end = std::min(begin + options_.batch_size(), data.size());
      const auto [inputs, targets] = data.gather(order.slice(0, begin, end));
      loss_sum += detail::loss_of(model_, loss_, inputs, targets) * (end - begin);
    }
    return loss_sum.item<double>() / static_cast<double>(data.size());
  }

  static const TrainerOptions& checked(const TrainerOptions& options) {
    TORCH_CHECK_VALUE(options.epochs() >= 1, "attend::Trainer: epochs (", options.epochs(), ") must be at least 1");
    TORCH_CHECK_VALUE(options.batch_size() >= 1, "attend::Trainer: batch_size (", options.batch_size(),
                      ") must be at least 1");
    TORCH_CHECK_VALUE(std::isfinite(options.learning_rate()) && options.learning_rate() > 0.0,
                      "attend::Trainer: learning_rate (", options.learning_rate(), ") must be positive and finite");
    if (options.device() && options.device()->is_cuda()) {
      const auto devices = static_cast<std::int64_t>(torch::cuda::device_count());
      TORCH_CHECK_VALUE(std::max<std::int64_t>(options.device()->index(), 0) < devices, "attend::Trainer: device (",
                        *options.device(), ") is not there: this machine has ", devices, " CUDA devices");
    }
    return options;
  }

  torch::Device move_to_device() {
    const std::vector<torch::Tensor> parameters = model_->parameters();
    TORCH_CHECK_VALUE(!parameters.empty(), "attend::Trainer: the model has no parameters to train");
    const torch::Device device = options_.device().value_or(parameters.front().device());
    model_->to(device);
    return device;
  }

  template <class Optimizer>
  static std::unique_ptr<torch::optim::Optimizer> made(Optimizer optimizer) {
    static_assert(std::derived_from<Optimizer, torch::optim::Optimizer>,
                  "attend::Trainer: MakeOptimizer must return a torch::optim::Optimizer");
    return std::make_unique<Optimizer>(std::move(optimizer));
  }

  /// Evaluation mode until the end of the scope; then each submodule's own mode again.
  struct EvaluationMode {
    explicit EvaluationMode(torch::nn::Module& module) : modules(module.modules()) {
      for (const auto& each : modules) was_training.push_back(each->is_training());
      module.eval();
    }
    ~EvaluationMode() {
      // train() reaches down to the children, which come after their parents here and so have the last word.
      for (std::size_t i = 0; i < modules.size(); ++i) modules[i]->train(was_training[i]);
    }
    EvaluationMode(const EvaluationMode&) = delete;
    EvaluationMode& operator=(const EvaluationMode&) = delete;

    std::vector<std::shared_ptr<torch::nn::Module>> modules;
    std::vector<bool> was_training;
  };

  using Clock = std::chrono::steady_clock;

  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  TrainerOptions options_;
  Model model_;
  Loss loss_;
  torch::Device device_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  History history_;
};

}  // namespace attend
