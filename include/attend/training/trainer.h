// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_folder.h>
#include <attend/io/checkpoint_state.h>
#include <attend/training/adam.h>
#include <attend/training/detail/autocast_scope.h>
#include <attend/training/detail/batches.h>
#include <attend/training/detail/callback.h>
#include <attend/training/detail/distinct.h>
#include <attend/training/detail/evaluation_mode.h>
#include <attend/training/detail/fit_position.h>
#include <attend/training/detail/step_runner.h>
#include <attend/training/detail/trainable.h>
#include <attend/training/history.h>
#include <attend/training/mean_squared_error.h>
#include <attend/training/step.h>
#include <attend/training/step_capture.h>
#include <attend/training/trainer_options.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Trains a model.
///
/// In every epoch fit() goes through the training set in batches, in a new order. After the epoch it computes the loss
/// on the validation set, if there is one. fit() returns the record of its epochs. A second call continues the
/// training: the optimizer keeps its state, and the epoch numbers continue. The trainer prints nothing: progress, logs
/// and early stopping are callbacks.
///
/// @tparam Model A module holder, a torch::nn::Sequential or a shared_ptr of a module, with `forward(inputs)`. It is
/// shared, not copied.
/// @tparam Loss `loss(outputs, targets)` returns a 0-d tensor, the mean over the batch. Default: MeanSquaredError.
/// @tparam MakeOptimizer `make(parameters, learning_rate)` returns a torch::optim::Optimizer. Default: MakeAdam. It
/// cannot be LBFGS, whose step needs a closure.
///
/// Data is one of these:
/// - An object with inputs() and targets(), two tensors with the samples as the first dimension. Both are moved to the
///   device as a whole. All batches use the same memory, so code that keeps a batch must copy it.
/// - A torch::data dataset that knows its size() and is not const. Its batches are fetched one by one.
///
/// Callbacks are objects with at least one of these hooks. A hook takes TrainingState& and returns nothing or a bool.
///
/// | Hook | When |
/// | --- | --- |
/// | on_fit_begin | before the first epoch |
/// | on_epoch_begin | before the first batch of an epoch |
/// | on_before_step | after the gradients and before the update; with accumulation_steps, once for each update |
/// | on_batch_end | after each batch |
/// | on_epoch_end | after each epoch in which at least one batch was used |
/// | on_checkpoint | after each update and each complete epoch, after the other hooks: here a checkpoint can be saved |
/// | on_fit_end | at the end, also after an early end, but not after an exception |
///
/// A hook that returns true ends the fit. Before the fit ends, the current batch and its update are finished, the epoch
/// is recorded with the batches so far, and on_epoch_end and on_fit_end are called. An epoch without a batch is not
/// recorded.
///
/// A callback that is passed as an lvalue is not copied, so its members can be read after the fit.
///
/// A callback with a state that resume() must restore has two functions: `std::string save_state()` returns the state
/// as arbitrary bytes, and `load_state(std::string)` sets it.
///
/// Modes: fit() sets the model to training mode once, before on_fit_begin. In on_fit_begin a callback may set other
/// modes or freeze parts of the model. Validation and evaluate() restore the mode of each submodule. So the model is
/// still in training mode after fit(), unless a callback has changed it.
///
/// @throws c10::ValueError in these cases:
/// - options out of range, or a device that does not exist
/// - data without samples, or with different numbers of inputs and targets
/// - a loss that is not 0-d or has no gradient
/// - a fit under NoGradGuard or InferenceMode
/// - all parameters are frozen after on_fit_begin
///
/// Exceptions of a model, a loss or a callback pass through fit(). The model then keeps its current weights, and
/// history() keeps the epochs that were recorded before.
///
/// @code
/// attend::Trainer trainer(model, attend::TrainerOptions().epochs(50));
/// attend::History history = trainer.fit(train_set, validation_set, attend::ProgressBar());
/// @endcode
template <class Model, class Loss = MeanSquaredError, class MakeOptimizer = MakeAdam>
class Trainer {
 public:
  /// Moves the model to `options.device()` and creates the optimizer.
  ///
  /// @param model A module holder or shared_ptr of a module.
  /// @param options Epochs, batch size, device and so on. Default: as TrainerOptions.
  /// @param loss `loss(outputs, targets)` returns a 0-d tensor. Default: Loss{}.
  /// @param make_optimizer `make_optimizer(parameters, learning_rate)` returns a torch::optim::Optimizer. Default:
  /// MakeOptimizer{}.
  /// @throws c10::ValueError for options out of range, a device that does not exist, and a model without parameters.
  explicit Trainer(Model model, const TrainerOptions& options = {}, Loss loss = {}, MakeOptimizer make_optimizer = {})
      : options_(detail::checked(options)),
        model_(std::move(model)),
        loss_(std::move(loss)),
        device_(move_to_device()),
        optimizer_(made(make_optimizer(detail::distinct(model_->parameters()), options.learning_rate()))) {
    const std::optional<std::string> reason = why_plain_loop();
    how_ = reason ? "plain loop: " + *reason : options_.capture()->name() + " if the step can be captured";
  }

  /// Trains for options().epochs() epochs. A callback may end the fit earlier.
  ///
  /// @param train_set The training data; the class says which types are possible.
  /// @param validation_set_and_callbacks The validation data, if any, then any number of callbacks.
  /// @return The record of the epochs of this fit.
  /// @throws c10::ValueError in the cases that the class lists.
  ///
  /// @code
  /// trainer.fit(train_set, validation_set, attend::ProgressBar());
  /// @endcode
  template <class TrainSet, class... More>
  History fit(TrainSet&& train_set, More&&... validation_set_and_callbacks) {
    static_assert(
        detail::TrainingData<TrainSet>,
        "attend::Trainer: the training set needs inputs() and targets(), or must be a torch::data dataset of Example<> "
        "with size() and get_batch(indices) that is not const");
    detail::check_records_gradients("attend::Trainer");
    detail::Batches<std::remove_reference_t<TrainSet>> train("the training set", train_set, device_,
                                                             options_.batch_size());
    return split_validation_set(train, validation_set_and_callbacks...);
  }

  /// Continues the training of an earlier process, from the newest checkpoint in a folder.
  ///
  /// resume() sets model, optimizer and history to their saved state. The next fit() continues the interrupted fit at
  /// the batch where it stopped. It ends after options().epochs() epochs in total, those before the interruption
  /// included, and returns the record of all of them.
  ///
  /// On the CPU, the numbers are bit by bit those of a training without interruption, if:
  /// - the program makes the same model, trainer, data and callbacks again
  /// - the state of the callbacks depends on TrainingState alone, or they have save_state() and load_state()
  /// - the data set, if it is a torch::data dataset, returns the same samples again
  /// - the number of threads is the same
  /// - on_fit_begin changes no weights, no learning rates and no states of callbacks
  ///
  /// A fit that a callback ended early is continued like one that was interrupted.
  ///
  /// The learning rates are those of the checkpoint. To change them, call TrainingState::set_learning_rate().
  ///
  /// If the newest checkpoint is damaged, TORCH_WARN reports that, and the one before it is used.
  ///
  /// @param folder The folder of attend::Checkpoint.
  /// @return The path of the checkpoint, or nothing if the folder has none. Without a checkpoint, the next fit() starts
  /// a new training.
  /// @throws FileError if all checkpoints are damaged, or if the checkpoint belongs to another training. The message
  /// lists the differences in these settings: seed, batch_size, accumulation_steps, learning_rate, autocast, the class
  /// of the optimizer, and the names, shapes and dtypes of the model. The next fit() throws FileError if the number of
  /// samples or the callbacks with a state differ.
  /// @throws c10::ValueError if this trainer has recorded epochs of its own.
  ///
  /// @code
  /// attend::Trainer trainer(model, attend::TrainerOptions().epochs(50));
  /// trainer.resume("run");
  /// trainer.fit(train_set, validation_set, attend::Checkpoint("run"));
  /// @endcode
  std::optional<std::string> resume(const std::string& folder) {
    std::optional<CheckpointData> newest = CheckpointFolder(folder).newest();
    if (!newest) return std::nullopt;
    std::string path = newest->path;
    resume(std::move(*newest));
    return path;
  }

  /// Continues from a checkpoint that is already loaded.
  ///
  /// @param data The result of load_checkpoint(), CheckpointFolder::newest() or TrainingState::checkpoint().
  /// @throws FileError if the checkpoint belongs to another training.
  /// @throws c10::ValueError if this trainer has recorded epochs of its own.
  void resume(CheckpointData data) {
    TORCH_CHECK_VALUE(history_.epochs().empty(),
                      "attend::Trainer: resume() needs a trainer without recorded epochs; this "
                      "one has ",
                      history_.epochs().size());
    detail::check_settings(data, detail::settings_of(options_));
    History history = detail::history_of(data);
    detail::position_of(data, device_);  // throws unless the checkpoint is complete
    load_training_state(data, *model_, *optimizer_);
    history_ = std::move(history);
    resumed_ = std::move(data);
  }

  /// Computes the mean loss over a data set, in evaluation mode, without gradients.
  ///
  /// @param data The data; the class says which types are possible.
  /// @return The mean of the loss over the samples.
  /// @throws c10::ValueError if the data has no samples, or different numbers of inputs and targets, and if the loss is
  /// not 0-d.
  template <class Data>
  double evaluate(Data&& data) {
    return evaluated(data, loss_, "attend::TrainingStep: the loss");
  }

  /// Computes the mean of a metric over a data set, in evaluation mode, without gradients.
  ///
  /// @param data The data; the class says which types are possible.
  /// @param metric `metric(outputs, targets)` returns the mean over a batch, a 0-d tensor, as Accuracy does.
  /// @return The mean of the metric over the samples.
  /// @throws c10::ValueError if the data has no samples, or different numbers of inputs and targets, and if the metric
  /// is not 0-d.
  ///
  /// @code
  /// double share = trainer.evaluate(validation_set, attend::Accuracy());
  /// @endcode
  template <class Data, class Metric>
  double evaluate(Data&& data, Metric&& metric) {
    return evaluated(data, metric, "attend::Trainer: the metric");
  }

  /// The record of all epochs of this trainer, those before resume() included.
  const History& history() const { return history_; }

  /// The options that the trainer was made with.
  const TrainerOptions& options() const { return options_; }

  /// Says how the steps of the last fit ran. Before the first fit it says how they will run, if that is known.
  ///
  /// @return One line for people: the dtypes, and whether the steps are a plain loop or replays of a captured step. For
  /// a plain loop the line has the reason. The wording may change in any version.
  std::string explain() const {
    std::string text = std::string(c10::toString(model_->parameters().front().scalar_type())) + " parameters";
    if (options_.autocast()) {
      const bool is_cast = model_->parameters().front().scalar_type() != torch::kDouble;
      text += std::string(is_cast ? ", autocast to " : ", which are not autocast to ") +
              c10::toString(*options_.autocast());
    }
    if (options_.accumulation_steps() > 1)
      text += ", an update every " + std::to_string(options_.accumulation_steps()) + " batches";
    return text + "; " + how_;
  }

  /// The model, which is shared and not copied.
  Model& model() { return model_; }

  /// The optimizer.
  torch::optim::Optimizer& optimizer() { return *optimizer_; }

 private:
  struct NoValidation {};

  template <class Train>
  History split_validation_set(Train& train) {
    NoValidation none;
    return run(train, none);
  }

  template <class Train, class First, class... Callbacks>
  History split_validation_set(Train& train, First& first, Callbacks&... callbacks) {
    if constexpr (detail::TrainingData<First>) {
      detail::Batches<First> validation("the validation set", first, device_, options_.batch_size());
      return run(train, validation, callbacks...);
    } else {
      NoValidation none;
      return run(train, none, first, callbacks...);
    }
  }

  template <class Data, class Validation, class... Callbacks>
  History run(detail::Batches<Data>& train, Validation& validation, Callbacks&... callbacks) {
    (detail::check_callback<Callbacks>(), ...);
    const auto begin = Clock::now();
    detail::FitPosition position;  // where this call begins
    position.first_epoch = position.epoch = static_cast<std::int64_t>(history_.epochs().size());
    if (resumed_) {
      detail::check_settings(*resumed_, {{"trainer.samples", std::to_string(train.size())}});
      position = detail::position_of(*resumed_, device_);
      detail::load_callbacks(*resumed_, callbacks...);
    }
    TrainingState state{*model_, *optimizer_, history_};
    state.epoch = position.epoch;
    state.epochs = position.first_epoch + options_.epochs();
    state.samples_per_epoch = train.size();
    state.batches = (train.size() + options_.batch_size() - 1) / options_.batch_size();
    state.batch = std::min(position.batch, state.batches);
    state.samples = std::min(state.batch * options_.batch_size(), train.size());
    state.loss = position.loss;

    bool stop = false;
    const auto call = [&]<class Hook>(Hook) {
      state.seconds = seconds_since(begin);
      ((stop |= detail::call_hook<Hook>(callbacks, state)), ...);
    };

    detail::StepPlan plan;
    plan.device = device_;
    plan.accumulates = options_.accumulation_steps() > 1;
    plan.is_split = plan.accumulates || (detail::HasHook<detail::on_before_step_hook, Callbacks> || ...);
    plan.keeps_loss = sizeof...(Callbacks) > 0;
    std::optional<std::string> why_plain = why_plain_loop();
    if (!why_plain && !train.reuses_memory()) why_plain = "the training set is not two dense tensors";
    if (!why_plain) plan.capture = options_.capture().get();
    how_ = "plain loop: " + why_plain.value_or("the fit was over before a step could be captured");
    // Declared before all objects that use the stream, so that the stream is left after they are destroyed.
    const std::shared_ptr<void> stream = plan.capture ? plan.capture->enter(device_) : nullptr;

    TrainingStep step(model_, std::ref(loss_), *optimizer_, options_.autocast());
    detail::StepRunner runner(step, *model_, *optimizer_, plan, how_);
    const std::int64_t samples_per_update = options_.batch_size() * options_.accumulation_steps();
    auto epoch_begin = Clock::now();
    bool is_at_checkpoint = false;  // whether on_checkpoint is being called
    state.checkpoint = [&] {
      TORCH_CHECK_VALUE(is_at_checkpoint, "attend::TrainingState: only on_checkpoint may call checkpoint()");
      const double seconds = state.batch > 0 ? position.seconds + seconds_since(epoch_begin) : 0.0;
      CheckpointData data;
      add_training_state(data, *model_, *optimizer_);
      detail::add_fit(data, *model_, options_, history_,
                      {position.first_epoch, state.epoch, state.batch, seconds, runner.loss_sum(), state.loss},
                      train.size());
      detail::add_callbacks(data, callbacks...);
      return data;
    };
    const auto call_checkpoint = [&](bool is_ending) {
      is_at_checkpoint = true;
      state.is_ending = is_ending;
      call(detail::on_checkpoint_hook());
      if (stop && !is_ending) {
        state.is_ending = true;  // a callback has just ended the fit
        call(detail::on_checkpoint_hook());
      }
      is_at_checkpoint = false;
    };
    model_->train();
    call(detail::on_fit_begin_hook());
    if (resumed_ && !stop) {
      detail::set_flags(*resumed_, *model_);
      detail::load_generators(*resumed_, detail::kResume, *model_);
      resumed_.reset();
    }
    if (!stop) detail::check_trains_something("attend::Trainer", *optimizer_);
    while (state.epoch < state.epochs && !stop) {
      epoch_begin = Clock::now();
      const torch::Tensor order = train.prepared(detail::shuffled(train.size(), options_.seed(), state.epoch));
      if (state.batch == 0) call(detail::on_epoch_begin_hook());
      runner.begin_epoch();
      if (state.batch > 0) runner.set_loss_sum(position.loss_sum);
      bool is_updated = true;
      while (state.batch < state.batches && !(stop && is_updated)) {
        const std::int64_t first = state.samples;
        const std::int64_t update_begin = first / samples_per_update * samples_per_update;
        const std::int64_t update_end = std::min(update_begin + samples_per_update, train.size());
        state.samples = std::min(first + options_.batch_size(), train.size());
        const auto [inputs, targets] = train.gather(order.slice(0, first, state.samples));
        const std::int64_t size = state.samples - first;
        state.loss = runner.backward(inputs, targets, /*is_full=*/size == options_.batch_size(),
                                     /*begins=*/first == update_begin,
                                     static_cast<double>(size) / static_cast<double>(update_end - update_begin));
        is_updated = state.samples == update_end;
        if (is_updated) {
          call(detail::on_before_step_hook());
          runner.update();
        }
        call(detail::on_batch_end_hook());
        ++state.batch;
        if (is_updated) call_checkpoint(stop);
      }
      if (state.samples == 0) {  // stopped before the first batch, so there is nothing to record
        if (state.epoch > position.epoch) call_checkpoint(/*is_ending=*/true);
        break;
      }
      EpochRecord record;
      record.train_loss = runner.loss_sum() / static_cast<double>(state.samples);
      record.last_batch_loss = state.loss.item<double>();
      record.validation_loss = mean_loss(validation);
      record.seconds = position.seconds + seconds_since(epoch_begin);
      history_.add(record);
      call(detail::on_epoch_end_hook());
      const bool is_complete = state.samples == train.size();
      ++state.epoch;
      const std::int64_t batch = std::exchange(state.batch, 0), samples = std::exchange(state.samples, 0);
      position.seconds = 0.0;
      if (is_complete) call_checkpoint(stop || state.epoch == state.epochs);
      if (stop || state.epoch == state.epochs) {
        state.batch = batch;
        state.samples = samples;
      }
    }
    call(detail::on_fit_end_hook());

    History fitted;
    const std::vector<EpochRecord>& all = history_.epochs();
    for (auto record = all.begin() + position.first_epoch; record != all.end(); ++record) fitted.add(*record);
    return fitted;
  }

  /// Why no step can be captured, regardless of the data; nothing if steps can be captured.
  std::optional<std::string> why_plain_loop() const {
    if (!options_.capture()) {
      return device_.is_cpu() ? "the device is cpu" : "TrainerOptions::capture is not set";
    }
    if (std::optional<std::string> reason = options_.capture()->why_not(device_)) return reason;
    const torch::optim::Optimizer& optimizer = *optimizer_;
    if (dynamic_cast<const CapturableOptimizer*>(&optimizer) == nullptr)
      return c10::demangle(typeid(optimizer).name()) +
             " keeps numbers of its step on the host, unlike attend::Adam and AdamW";
    return std::nullopt;
  }

  double mean_loss(NoValidation&) { return std::numeric_limits<double>::quiet_NaN(); }

  template <class Data>
  double mean_loss(detail::Batches<Data>& data) {
    return mean_over(data, loss_, "attend::TrainingStep: the loss");
  }

  template <class Data, class Metric>
  double evaluated(Data& data, Metric& metric, const char* name) {
    static_assert(detail::TrainingData<Data>,
                  "attend::Trainer: the data set needs inputs() and targets(), or must be a torch::data dataset of "
                  "Example<> with size() and get_batch(indices) that is not const");
    detail::Batches<Data> batches("the data set", data, device_, options_.batch_size());
    return mean_over(batches, metric, name);
  }

  template <class Data, class Metric>
  double mean_over(detail::Batches<Data>& data, Metric& metric, const char* name) {
    const c10::NoGradGuard no_grad;
    const detail::EvaluationMode evaluation(*model_);
    torch::Tensor sum = at::zeros({}, at::device(device_).dtype(torch::kDouble));
    const torch::Tensor order = data.prepared(at::arange(data.size(), torch::kLong));
    for (std::int64_t begin = 0; begin < data.size(); begin += options_.batch_size()) {
      const std::int64_t end = std::min(begin + options_.batch_size(), data.size());
      const auto [inputs, targets] = data.gather(order.slice(0, begin, end));
      const detail::AutocastScope autocast(options_.autocast(), device_.type());
      sum.add_(detail::loss_of(model_, metric, inputs, targets, *optimizer_, name), end - begin);  // in float64
    }
    return sum.item<double>() / static_cast<double>(data.size());
  }

  torch::Device move_to_device() {
    const std::vector<torch::Tensor> parameters = model_->parameters();
    TORCH_CHECK_VALUE(!parameters.empty(), "attend::Trainer: the model has no parameters to train");
    for (const torch::Tensor& parameter : parameters)
      TORCH_CHECK_VALUE(!parameter.is_inference(),
                        "attend::Trainer: the model's parameters were made under InferenceMode and cannot be trained; "
                        "make the model outside of its scope");
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
  std::string how_;                        // for explain()
  std::optional<CheckpointData> resumed_;  // what the next fit continues
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
