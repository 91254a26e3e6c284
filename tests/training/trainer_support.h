// SPDX-License-Identifier: MIT
#pragma once

// What the tests of Trainer share.

#include <attend/training/trainer.h>

#include "support.h"

#include <torch/data/datasets/base.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace attend::test {

using Indices = std::vector<std::size_t>;

/// Samples one by one. Records the order of the requests.
struct OneByOne : torch::data::datasets::Dataset<OneByOne> {
  explicit OneByOne(Samples samples) : samples(std::move(samples)) {}
  torch::data::Example<> get(std::size_t index) override {
    asked->push_back(index);
    const auto i = static_cast<std::int64_t>(index);
    return {samples.x[i], samples.y[i]};
  }
  std::optional<std::size_t> size() const override { return samples.x.size(0); }

  Samples samples;
  std::shared_ptr<Indices> asked = std::make_shared<Indices>();
};

/// Samples in batches of tensors.
struct InBatches : torch::data::datasets::BatchDataset<InBatches, torch::data::Example<>> {
  explicit InBatches(Samples samples) : samples(std::move(samples)) {}
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    const std::vector<std::int64_t> rows(indices.begin(), indices.end());
    return {samples.x.index_select(0, torch::tensor(rows)), samples.y.index_select(0, torch::tensor(rows))};
  }
  std::optional<std::size_t> size() const override { return samples.x.size(0); }

  Samples samples;
};

/// Samples as two tensors that are made on request.
struct MadeOnDemand {
  torch::Tensor inputs() { return samples.x; }
  torch::Tensor targets() { return samples.y; }

  Samples samples;
};

struct OfUnknownSize : InBatches {
  OfUnknownSize() : InBatches(linear_samples(4)) {}
  std::optional<std::size_t> size() const override { return std::nullopt; }
};

using Hook = std::function<void(TrainingState&)>;

/// A callback whose hooks a test sets.
struct Hooks {
  Hook fit_begin = {}, epoch_begin = {}, before_step = {}, batch_end = {}, epoch_end = {}, fit_end = {};

  void on_fit_begin(TrainingState& state) { call(fit_begin, state); }
  void on_epoch_begin(TrainingState& state) { call(epoch_begin, state); }
  void on_before_step(TrainingState& state) { call(before_step, state); }
  void on_batch_end(TrainingState& state) { call(batch_end, state); }
  void on_epoch_end(TrainingState& state) { call(epoch_end, state); }
  void on_fit_end(TrainingState& state) { call(fit_end, state); }

  static void call(const Hook& hook, TrainingState& state) {
    if (hook) hook(state);
  }
};

/// Records the calls of the hooks. Returns true from one of them at its n-th call.
struct Recorder {
  std::vector<std::string> calls = {};
  std::string stop_in = {};
  int stop_at = 1;

  bool on_fit_begin(TrainingState&) { return record("fit_begin"); }
  bool on_epoch_begin(TrainingState&) { return record("epoch_begin"); }
  bool on_before_step(TrainingState&) { return record("before_step"); }
  bool on_batch_end(TrainingState&) { return record("batch_end"); }
  bool on_epoch_end(TrainingState&) { return record("epoch_end"); }
  bool on_fit_end(TrainingState&) { return record("fit_end"); }

  bool record(const std::string& hook) {
    calls.push_back(hook);
    return hook == stop_in && count(hook) == stop_at;
  }
  std::ptrdiff_t count(const std::string& hook) const { return std::count(calls.begin(), calls.end(), hook); }
};

inline const auto kPlainSgd = [](std::vector<torch::Tensor> parameters, double rate) {
  return torch::optim::SGD(std::move(parameters), torch::optim::SGDOptions(rate));
};

/// A trainer whose steps are too small to change a weight, so that every loss can be computed in advance.
inline auto trainer_that_stands_still(torch::nn::Linear model, std::int64_t batch_size, std::int64_t epochs = 1) {
  return Trainer(model, TrainerOptions().epochs(epochs).batch_size(batch_size).learning_rate(1e-300),
                 MeanSquaredError(), kPlainSgd);
}

inline double mean_squared_error(torch::nn::Linear model, const torch::Tensor& x, const torch::Tensor& y) {
  const torch::NoGradGuard no_grad;
  return torch::nn::functional::mse_loss(model->forward(x), y).item<double>();
}

inline bool same(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const torch::Tensor& x, const torch::Tensor& y) { return torch::equal(x, y); });
}

}  // namespace attend::test
