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
#include <torch/serialize.h>
#include <torch/types.h>

#include <cmath>
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

  attend::StopOnInterrupt interrupt;  // Ctrl-C ends the fit after the current batch
  other.fit(train_set, validation_set, ClipGradients{}, StopAtLoss{0.01}, interrupt);

  CHECK(!interrupt.happened());

  attend::test::TemporaryFolder folder;
  const std::string model_path = folder.file("model.pt"), optimizer_path = folder.file("optimizer.pt");
  torch::save(model, model_path);
  torch::save(trainer.optimizer(), optimizer_path);

  torch::load(model, model_path);
  attend::Trainer continued(model, attend::TrainerOptions().epochs(1).seed(7));
  torch::load(continued.optimizer(), optimizer_path);
  continued.resume(history);  // the numbers of the epochs, and so the orders of the samples, continue
  continued.fit(train_set);

  CHECK(continued.history().epochs().size() == 3);
  attend::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
  attend::TrainingStep step(model, attend::MeanSquaredError(), optimizer);
  torch::Tensor before = step(train_set.inputs(), train_set.targets());  // the loss, a 0-d tensor

  CHECK(before.dim() == 0);
}

// clang-format on
