// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/const_data.h>
#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_state.h>
#include <attend/io/file_error.h>
#include <attend/training/detail/callback.h>
#include <attend/training/history.h>
#include <attend/training/trainer_options.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <string>
#include <system_error>
#include <typeinfo>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr char kResume[] = "attend::Trainer::resume";

/// The position of a fit between two updates.
struct FitPosition {
  std::int64_t first_epoch = 0;  ///< the epoch at which the fit began
  std::int64_t epoch = 0;        ///< number of finished epochs
  std::int64_t batch = 0;        ///< number of finished batches of the next epoch
  double seconds = 0.0;          ///< time of these batches
  double loss_sum = 0.0;         ///< sum of the losses of their samples
  torch::Tensor loss = {};       ///< loss of the last batch
};

/// The options that determine the numbers of a training. They must be the same when it is resumed.
inline std::map<std::string, std::string> settings_of(const TrainerOptions& options) {
  const auto text = [](const auto& value) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream.precision(std::numeric_limits<double>::max_digits10);
    stream << value;
    return stream.str();
  };
  return {{"trainer.seed", text(options.seed())},
          {"trainer.batch_size", text(options.batch_size())},
          {"trainer.accumulation_steps", text(options.accumulation_steps())},
          {"trainer.learning_rate", text(options.learning_rate())},
          {"trainer.autocast", options.autocast() ? c10::toString(*options.autocast()) : "none"}};
}

/// The flags of a model that callbacks may change: the mode of each module, then whether each parameter requires a
/// gradient.
inline torch::Tensor flags_of(const torch::nn::Module& model) {
  std::string flags;
  for (const auto& module : model.modules()) flags += static_cast<char>(module->is_training());
  for (const torch::Tensor& parameter : model.parameters()) flags += static_cast<char>(parameter.requires_grad());
  return tensor_of_bytes(flags);
}

/// Sets the flags to those of a checkpoint.
inline void set_flags(const CheckpointData& data, torch::nn::Module& model) {
  const std::string flags = bytes_of(tensor_of(data, kResume, "flags", torch::kByte, 1));
  const auto modules = model.modules();
  const std::vector<torch::Tensor> parameters = model.parameters();
  if (flags.size() != modules.size() + parameters.size())
    throw FileError(kResume, data.path,
                    "tensor \"flags\": expected a byte for each of " + std::to_string(modules.size()) +
                        " modules and " + std::to_string(parameters.size()) + " parameters, found " +
                        std::to_string(flags.size()));
  // train() also sets the mode of the children. They come after their parents, so their own mode is set last.
  std::size_t i = 0;
  for (const auto& module : modules) module->train(flags[i++] != 0);
  for (const torch::Tensor& parameter : parameters) parameter.set_requires_grad(flags[i++] != 0);
}

/// Adds the state of Trainer besides model and optimizer: settings, position, history and flags.
inline void add_fit(CheckpointData& data, const torch::nn::Module& model, const TrainerOptions& options,
                    const History& history, const FitPosition& position, std::int64_t samples) {
  data.metadata.merge(settings_of(options));
  data.metadata["trainer.samples"] = std::to_string(samples);
  data.metadata["trainer.first_epoch"] = std::to_string(position.first_epoch);
  data.metadata["trainer.epoch"] = std::to_string(position.epoch);
  data.metadata["trainer.batch"] = std::to_string(position.batch);
  const torch::Tensor table = at::empty({static_cast<std::int64_t>(history.epochs().size()), 4}, torch::kDouble);
  auto* cell = table.mutable_data_ptr<double>();
  for (const EpochRecord& record : history.epochs())
    for (const double figure : {record.train_loss, record.last_batch_loss, record.validation_loss, record.seconds})
      *cell++ = figure;
  data.tensors.insert("history", table);
  data.tensors.insert("flags", flags_of(model));
  data.tensors.insert("seconds", at::full({}, position.seconds, torch::kDouble));
  data.tensors.insert("loss_sum", at::full({}, position.loss_sum, torch::kDouble));
  if (position.batch > 0) data.tensors.insert("loss", position.loss.clone());
}

/// Throws a FileError with all settings that differ from those of the checkpoint, if there are any.
inline void check_settings(const CheckpointData& data, const std::map<std::string, std::string>& settings) {
  std::string problems;
  for (const auto& [name, expected] : settings) {
    const auto saved = data.metadata.find(name);
    const std::string found = saved == data.metadata.end() ? "none" : saved->second;
    if (found != expected)
      problems += "; " + name.substr(sizeof "trainer") + ": expected " + expected + ", found " + found;
  }
  if (!problems.empty()) throw FileError(kResume, data.path, problems.substr(2));
}

/// A number of at least 0 in the metadata.
inline std::int64_t number_of(const CheckpointData& data, const std::string& name) {
  const auto found = data.metadata.find(name);
  const std::string text = found == data.metadata.end() ? "none" : found->second;
  std::int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0)
    throw FileError(kResume, data.path, name + ": expected a number of at least 0, found " + detail::quoted(text));
  return number;
}

inline History history_of(const CheckpointData& data) {
  const torch::Tensor& table = tensor_of(data, kResume, "history", torch::kDouble, 2);
  if (table.size(1) != 4 || table.size(0) != number_of(data, "trainer.epoch"))
    throw FileError(kResume, data.path,
                    "tensor \"history\": expected four numbers for each epoch, found " + dtype_and_sizes(table));
  History history;
  const auto* cell = const_data<double>(table);
  for (std::int64_t epoch = 0; epoch < table.size(0); ++epoch, cell += 4)
    history.add({cell[0], cell[1], cell[2], cell[3]});
  return history;
}

/// The position of a checkpoint. `loss` is moved to the device.
inline FitPosition position_of(const CheckpointData& data, torch::Device device) {
  const auto number = [&](const char* name) {
    return *const_data<double>(tensor_of(data, kResume, name, torch::kDouble, 0));
  };
  FitPosition position{number_of(data, "trainer.first_epoch"), number_of(data, "trainer.epoch"),
                       number_of(data, "trainer.batch"), number("seconds"), number("loss_sum")};
  if (position.first_epoch > position.epoch)
    throw FileError(kResume, data.path,
                    "trainer.first_epoch: expected at most " + std::to_string(position.epoch) + ", found " +
                        std::to_string(position.first_epoch));
  if (position.batch > 0) {
    const torch::Tensor* const loss = data.tensors.find("loss");
    if (loss == nullptr || loss->dim() != 0)
      throw FileError(
          kResume, data.path,
          "tensor \"loss\": expected one number, found " + (loss == nullptr ? "none" : dtype_and_sizes(*loss)));
    position.loss = loss->to(device);
  }
  return position;
}

/// The states of all callbacks that have one, by name. The names are in the order of the callbacks.
template <class... Callbacks>
void add_callbacks(CheckpointData& data, Callbacks&... callbacks) {
  int i = 0;
  [[maybe_unused]] const auto add = [&]<class Callback>(Callback& callback) {
    if constexpr (HasState<Callback>) {
      const std::string number = std::to_string(i++);
      data.tensors.insert("callback." + number, tensor_of_bytes(callback.save_state()));
      data.metadata["trainer.callback." + number] = class_name(typeid(Callback));
    }
  };
  (add(callbacks), ...);
}

/// Gives the callbacks their states.
template <class... Callbacks>
void load_callbacks(const CheckpointData& data, Callbacks&... callbacks) {
  constexpr int kExpected = (0 + ... + int{HasState<Callbacks>});
  int found = 0;
  for (const auto& item : data.tensors) found += item.key().starts_with("callback.");
  if (found != kExpected)
    throw FileError(kResume, data.path,
                    "expected the states of " + std::to_string(kExpected) + " callbacks, found " +
                        std::to_string(found) + ": fit() must have the callbacks of the saved fit");
  std::map<std::string, std::string> classes;
  int i = 0;
  [[maybe_unused]] const auto add_class = [&]<class Callback>(Callback&) {
    if constexpr (HasState<Callback>) classes["trainer.callback." + std::to_string(i++)] = class_name(typeid(Callback));
  };
  (add_class(callbacks), ...);
  check_settings(data, classes);
  i = 0;
  [[maybe_unused]] const auto load = [&]<class Callback>(Callback& callback) {
    if constexpr (HasState<Callback>)
      callback.load_state(bytes_of(tensor_of(data, kResume, "callback." + std::to_string(i++), torch::kByte, 1)));
  };
  (load(callbacks), ...);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
