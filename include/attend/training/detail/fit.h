// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_state.h>
#include <attend/training/detail/batches.h>
#include <attend/training/detail/callback.h>
#include <attend/training/detail/fit_position.h>
#include <attend/training/detail/step_runner.h>
#include <attend/training/detail/trainable.h>
#include <attend/training/detail/trainer_parts.h>
#include <attend/training/history.h>
#include <attend/training/step.h>
#include <attend/training/training_state.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The validation set of a fit without one.
struct NoValidation {};

/// One call of Trainer::fit(): its epochs, batches and hooks. It changes the parts of the trainer.
template <class Model, class Loss, class Train, class Validation, class... Callbacks>
class Fit {
 public:
  Fit(TrainerParts<Model, Loss>& parts, Batches<Train>& train, Validation& validation, Callbacks&... callbacks)
      : parts_(parts),
        train_(train),
        validation_(validation),
        callbacks_(callbacks...),
        position_(position()),
        state_{*parts.model, *parts.optimizer, parts.history},
        plan_(plan()),
        stream_(plan_.capture ? plan_.capture->enter(parts.device) : nullptr),
        step_(parts.model, std::ref(parts.loss), *parts.optimizer, parts.options.autocast()),
        runner_(step_, *parts.model, *parts.optimizer, plan_, parts.how) {
    (check_callback<Callbacks>(), ...);
    state_.epoch = position_.epoch;
    state_.epochs = position_.first_epoch + parts_.options.epochs();
    state_.samples_per_epoch = train_.size();
    state_.batches = (train_.size() + batch_size() - 1) / batch_size();
    state_.batch = std::min(position_.batch, state_.batches);
    state_.samples = std::min(state_.batch * batch_size(), train_.size());
    state_.loss = position_.loss;
    state_.checkpoint = [this] { return checkpoint(); };
  }

  Fit(const Fit&) = delete;
  Fit& operator=(const Fit&) = delete;

  /// Trains, and returns the record of the epochs.
  History run() {
    parts_.model->train();
    call(on_fit_begin_hook());
    if (parts_.resumed && !stop_) {
      set_flags(*parts_.resumed, *parts_.model);
      load_generators(*parts_.resumed, kResume, *parts_.model);
      parts_.resumed.reset();
    }
    if (!stop_) check_trains_something("attend::Trainer", *parts_.optimizer);
    while (state_.epoch < state_.epochs && !stop_) {
      run_batches();
      if (state_.samples == 0) {  // stopped before the first batch, so there is nothing to record
        if (state_.epoch > position_.epoch) call_checkpoint(/*is_ending=*/true);
        break;
      }
      end_epoch();
    }
    call(on_fit_end_hook());

    History fitted;
    const std::vector<EpochRecord>& all = parts_.history.epochs();
    for (auto record = all.begin() + position_.first_epoch; record != all.end(); ++record) fitted.add(*record);
    return fitted;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  std::int64_t batch_size() const { return parts_.options.batch_size(); }

  /// Where this call begins.
  FitPosition position() {
    if (!parts_.resumed) {
      FitPosition position;
      position.first_epoch = position.epoch = static_cast<std::int64_t>(parts_.history.epochs().size());
      return position;
    }
    check_settings(*parts_.resumed, {{"trainer.samples", std::to_string(train_.size())}});
    const FitPosition position = position_of(*parts_.resumed, parts_.device);
    std::apply([this](auto&... callbacks) { load_callbacks(*parts_.resumed, callbacks...); }, callbacks_);
    return position;
  }

  StepPlan plan() {
    StepPlan plan;
    plan.device = parts_.device;
    plan.accumulates = parts_.options.accumulation_steps() > 1;
    plan.is_split = plan.accumulates || (HasHook<on_before_step_hook, Callbacks> || ...);
    plan.keeps_loss = sizeof...(Callbacks) > 0;
    std::optional<std::string> why_plain = parts_.why_plain_loop();
    if (!why_plain && !train_.reuses_memory()) why_plain = "the training set is not two dense tensors";
    if (!why_plain) plan.capture = parts_.options.capture().get();
    parts_.how = "plain loop: " + why_plain.value_or("the fit was over before a step could be captured");
    return plan;
  }

  /// Calls a hook of all callbacks.
  template <class Hook>
  void call(Hook) {
    state_.seconds = seconds_since(begin_);
    std::apply([this](auto&... callbacks) { ((stop_ |= call_hook<Hook>(callbacks, state_)), ...); }, callbacks_);
  }

  void call_checkpoint(bool is_ending) {
    is_at_checkpoint_ = true;
    state_.is_ending = is_ending;
    call(on_checkpoint_hook());
    if (stop_ && !is_ending) {
      state_.is_ending = true;  // a callback has just ended the fit
      call(on_checkpoint_hook());
    }
    is_at_checkpoint_ = false;
  }

  /// The state of the whole training, for TrainingState::checkpoint().
  CheckpointData checkpoint() const {
    TORCH_CHECK_VALUE(is_at_checkpoint_, "attend::TrainingState: only on_checkpoint may call checkpoint()");
    const double seconds = state_.batch > 0 ? position_.seconds + seconds_since(epoch_begin_) : 0.0;
    CheckpointData data;
    add_training_state(data, *parts_.model, *parts_.optimizer);
    add_fit(data, *parts_.model, parts_.options, parts_.history,
            {position_.first_epoch, state_.epoch, state_.batch, seconds, runner_.loss_sum(), state_.loss},
            train_.size());
    std::apply([&data](auto&... callbacks) { add_callbacks(data, callbacks...); }, callbacks_);
    return data;
  }

  /// Runs the batches of an epoch that are left. It ends earlier, after an update, if a callback ends the fit.
  void run_batches() {
    epoch_begin_ = Clock::now();
    const torch::Tensor order = train_.prepared(shuffled(train_.size(), parts_.options.seed(), state_.epoch));
    if (state_.batch == 0) call(on_epoch_begin_hook());
    runner_.begin_epoch();
    if (state_.batch > 0) runner_.set_loss_sum(position_.loss_sum);
    bool is_updated = true;
    while (state_.batch < state_.batches && !(stop_ && is_updated)) {
      is_updated = run_batch(order);
      call(on_batch_end_hook());
      ++state_.batch;
      if (is_updated) call_checkpoint(stop_);
    }
  }

  /// Returns whether an update followed the batch.
  bool run_batch(const torch::Tensor& order) {
    const std::int64_t first = state_.samples, samples_per_update = batch_size() * parts_.options.accumulation_steps(),
                       update_begin = first / samples_per_update * samples_per_update,
                       update_end = std::min(update_begin + samples_per_update, train_.size());
    state_.samples = std::min(first + batch_size(), train_.size());
    const auto [inputs, targets] = train_.gather(order.slice(0, first, state_.samples));
    const std::int64_t size = state_.samples - first;
    state_.loss = runner_.backward(inputs, targets, /*is_full=*/size == batch_size(), /*begins=*/first == update_begin,
                                   static_cast<double>(size) / static_cast<double>(update_end - update_begin));
    if (state_.samples < update_end) return false;
    call(on_before_step_hook());
    runner_.update();
    return true;
  }

  /// Records an epoch with at least one batch.
  void end_epoch() {
    EpochRecord record;
    record.train_loss = runner_.loss_sum() / static_cast<double>(state_.samples);
    record.last_batch_loss = state_.loss.template item<double>();
    record.validation_loss = validation_loss();
    record.seconds = position_.seconds + seconds_since(epoch_begin_);
    parts_.history.add(record);
    call(on_epoch_end_hook());
    const bool is_complete = state_.samples == train_.size();
    ++state_.epoch;
    const std::int64_t batch = std::exchange(state_.batch, 0), samples = std::exchange(state_.samples, 0);
    position_.seconds = 0.0;
    if (is_complete) call_checkpoint(stop_ || state_.epoch == state_.epochs);
    if (stop_ || state_.epoch == state_.epochs) {
      state_.batch = batch;
      state_.samples = samples;
    }
  }

  double validation_loss() {
    if constexpr (std::is_same_v<Validation, NoValidation>)
      return std::numeric_limits<double>::quiet_NaN();
    else
      return parts_.mean_loss(validation_);
  }

  const Clock::time_point begin_ = Clock::now();
  TrainerParts<Model, Loss>& parts_;
  Batches<Train>& train_;
  Validation& validation_;
  std::tuple<Callbacks&...> callbacks_;
  FitPosition position_;  // where this call begins
  TrainingState state_;
  StepPlan plan_;
  // Before all objects that use the stream, so that the stream is left after they are destroyed.
  std::shared_ptr<void> stream_;
  TrainingStep<Model, std::reference_wrapper<Loss>> step_;
  StepRunner<decltype(step_)> runner_;
  Clock::time_point epoch_begin_ = begin_;
  bool stop_ = false;
  bool is_at_checkpoint_ = false;  // whether on_checkpoint is being called
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
