// SPDX-License-Identifier: MIT

// The C++ of docs/training.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>

#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

// clang-format off: the lines are the page's

namespace {

struct Pairs {
  torch::Tensor x, y;  // samples first

  const torch::Tensor& inputs() const { return x; }
  const torch::Tensor& targets() const { return y; }
};

struct ClipGradients {
  void on_before_step(attend::TrainingState& state) {
    for (torch::Tensor& gradient : state.gradients()) gradient.clamp_(-1, 1);
  }
};

struct StopAtLoss {
  double wanted;

  bool on_epoch_end(attend::TrainingState& state) {
    return state.history.epochs().back().validation_loss < wanted;
  }
};

struct HalveWhenStuck {
  double best = std::numeric_limits<double>::infinity();

  void on_epoch_end(attend::TrainingState& state) {
    const double loss = state.history.epochs().back().train_loss;
    if (loss >= best) state.set_learning_rate(state.learning_rate() / 2);
    best = std::min(best, loss);
  }

  std::string save_state() { return std::string(reinterpret_cast<const char*>(&best), sizeof best); }
  void load_state(const std::string& bytes) {
    if (bytes.size() == sizeof best) std::memcpy(&best, bytes.data(), sizeof best);
  }
};

}  // namespace

TEST_CASE("docs/training.md: a fit, data, loss and optimizer, callbacks, saving and continuing, a single step") {
  attend::ShapeDataset train_set(attend::ShapeDatasetOptions().max_samples(64).seed(1));
  attend::ShapeDataset validation_set(attend::ShapeDatasetOptions().max_samples(32).seed(2));
  torch::nn::Sequential model(attend::ConvStack(1, 16, 16), attend::SelfAttention1d(16, 16, 16), attend::ConvStack(16, 16, 1));
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(2).batch_size(32).learning_rate(1e-3).seed(7));
  attend::History history = trainer.fit(train_set, validation_set, attend::ProgressBar());
  double loss = history.validation_loss().back();

  CHECK(std::isfinite(loss));
  CHECK(trainer.evaluate(Pairs{validation_set.inputs(), validation_set.targets()}) == doctest::Approx(loss));

  torch::nn::Sequential scaled(attend::Standardize(train_set.inputs()), attend::ConvStack(1, 16, 1));

  CHECK(scaled->forward(train_set.inputs()).sizes() == train_set.inputs().sizes());
  auto loss_function = [](const torch::Tensor& outputs, const torch::Tensor& targets) {
    return torch::l1_loss(outputs, targets);
  };
  auto make_optimizer = [](std::vector<torch::Tensor> parameters, double learning_rate) {
    return attend::AdamW(std::move(parameters), torch::optim::AdamWOptions(learning_rate).weight_decay(0.1));
  };
  attend::Trainer other(model, attend::TrainerOptions().epochs(1), loss_function, make_optimizer);

  torch::nn::Linear net(2, 3);
  const Pairs labelled{torch::randn({6, 2}), torch::arange(6) % 3}, held_out{torch::randn({3, 2}), torch::arange(3)};
  attend::Trainer classifier(net, attend::TrainerOptions().epochs(40), attend::CrossEntropy().label_smoothing(0.1));
  classifier.fit(labelled, held_out, attend::StopEarly(/*patience=*/10));
  double share = classifier.evaluate(held_out, attend::Accuracy());

  CHECK(share == classifier.evaluate(held_out, [](const torch::Tensor& scores, const torch::Tensor& targets) {
    return (scores.argmax(1) == targets).to(torch::kDouble).mean();
  }));

  attend::StopOnInterrupt interrupt;  // Ctrl-C ends the fit after the current batch
  other.fit(train_set, validation_set, ClipGradients{}, StopAtLoss{0.01}, interrupt);

  CHECK(!interrupt.happened());

  attend::test::TemporaryFolder folder;
  const std::string run_folder = folder.file("run");
  attend::Trainer saved(model, attend::TrainerOptions().epochs(3).seed(7));
  saved.resume(run_folder);
  saved.fit(train_set, attend::Checkpoint(run_folder, attend::CheckpointOptions().every_batches(100).keep_last(3)));

  attend::Trainer again(model, attend::TrainerOptions().epochs(3).seed(7));
  CHECK(again.resume(run_folder).value() == run_folder + "/checkpoint-000003-00000000.safetensors");
  CHECK(again.history().train_loss() == saved.history().train_loss());

  HalveWhenStuck halve, loaded;
  saved.fit(train_set, halve);
  CHECK(std::isfinite(halve.best));
  loaded.load_state(halve.save_state());
  CHECK(loaded.best == halve.best);

  attend::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
  attend::TrainingStep step(model, attend::MeanSquaredError(), optimizer);
  torch::Tensor before = step(train_set.inputs(), train_set.targets());  // the loss, a 0-d tensor

  CHECK(before.dim() == 0);
}

// clang-format on
