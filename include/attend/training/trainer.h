// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_folder.h>
#include <attend/io/checkpoint_state.h>
#include <attend/training/adam.h>
#include <attend/training/detail/batches.h>
#include <attend/training/detail/fit.h>
#include <attend/training/detail/fit_position.h>
#include <attend/training/detail/trainable.h>
#include <attend/training/detail/trainer_parts.h>
#include <attend/training/history.h>
#include <attend/training/mean_squared_error.h>
#include <attend/training/trainer_options.h>
#include <attend/version.h>

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>

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
      : parts_(std::move(model), options, std::move(loss), make_optimizer) {}

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
    detail::Batches<std::remove_reference_t<TrainSet>> train("the training set", train_set, parts_.device,
                                                             parts_.options.batch_size());
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
    TORCH_CHECK_VALUE(history().epochs().empty(),
                      "attend::Trainer: resume() needs a trainer without recorded epochs; this "
                      "one has ",
                      history().epochs().size());
    detail::check_settings(data, detail::settings_of(options()));
    History history = detail::history_of(data);
    detail::position_of(data, parts_.device);  // throws unless the checkpoint is complete
    load_training_state(data, *parts_.model, *parts_.optimizer);
    parts_.history = std::move(history);
    parts_.resumed = std::move(data);
  }

  /// Computes the mean loss over a data set, in evaluation mode, without gradients.
  ///
  /// @param data The data; the class says which types are possible.
  /// @return The mean of the loss over the samples.
  /// @throws c10::ValueError if the data has no samples, or different numbers of inputs and targets, and if the loss is
  /// not 0-d.
  template <class Data>
  double evaluate(Data&& data) {
    detail::Batches<std::remove_reference_t<Data>> batches = evaluation_batches(data);
    return parts_.mean_loss(batches);
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
    detail::Batches<std::remove_reference_t<Data>> batches = evaluation_batches(data);
    return parts_.mean_over(batches, metric, "attend::Trainer: the metric");
  }

  /// The record of all epochs of this trainer, those before resume() included.
  const History& history() const { return parts_.history; }

  /// The options that the trainer was made with.
  const TrainerOptions& options() const { return parts_.options; }

  /// Says how the steps of the last fit ran. Before the first fit it says how they will run, if that is known.
  ///
  /// @return One line for people: the dtypes, and whether the steps are a plain loop or replays of a captured step. For
  /// a plain loop the line has the reason. The wording may change in any version.
  std::string explain() const {
    const at::ScalarType dtype = parts_.model->parameters().front().scalar_type();
    std::string text = std::string(c10::toString(dtype)) + " parameters";
    if (options().autocast()) {
      text += std::string(dtype == torch::kDouble ? ", which are not autocast to " : ", autocast to ") +
              c10::toString(*options().autocast());
    }
    if (options().accumulation_steps() > 1)
      text += ", an update every " + std::to_string(options().accumulation_steps()) + " batches";
    return text + "; " + parts_.how;
  }

  /// The model, which is shared and not copied.
  Model& model() { return parts_.model; }

  /// The optimizer.
  torch::optim::Optimizer& optimizer() { return *parts_.optimizer; }

 private:
  template <class Train>
  History split_validation_set(Train& train) {
    detail::NoValidation none;
    return run(train, none);
  }

  template <class Train, class First, class... Callbacks>
  History split_validation_set(Train& train, First& first, Callbacks&... callbacks) {
    if constexpr (detail::TrainingData<First>) {
      detail::Batches<First> validation("the validation set", first, parts_.device, parts_.options.batch_size());
      return run(train, validation, callbacks...);
    } else {
      detail::NoValidation none;
      return run(train, none, first, callbacks...);
    }
  }

  template <class Train, class Validation, class... Callbacks>
  History run(detail::Batches<Train>& train, Validation& validation, Callbacks&... callbacks) {
    return detail::Fit<Model, Loss, Train, Validation, Callbacks...>(parts_, train, validation, callbacks...).run();
  }

  template <class Data>
  detail::Batches<Data> evaluation_batches(Data& data) {
    static_assert(detail::TrainingData<Data>,
                  "attend::Trainer: the data set needs inputs() and targets(), or must be a torch::data dataset of "
                  "Example<> with size() and get_batch(indices) that is not const");
    return detail::Batches<Data>("the data set", data, parts_.device, parts_.options.batch_size());
  }

  detail::TrainerParts<Model, Loss> parts_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
