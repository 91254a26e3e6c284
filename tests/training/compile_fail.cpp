// SPDX-License-Identifier: MIT

// None of these must compile. compile_fail_test.py looks for the error above each namespace.

#include <attend/data/shape_dataset.h>
#include <attend/training/trainer.h>

#include <torch/data/datasets/mnist.h>
#include <torch/nn/modules/linear.h>

#include <vector>

// clang-format off

// attend::Trainer: a callback needs at least one of on_fit_begin, on_epoch_begin, on_before_step
namespace callback_without_hooks {
struct Misspelled {
  void on_epoch_ends(attend::TrainingState&) {}
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, Misspelled()); }
}  // namespace callback_without_hooks

// a torch::data dataset of Example<> with size() and get_batch(indices) that is not const
namespace const_dataset {
void fit(const torch::data::datasets::MNIST& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
}  // namespace const_dataset

// attend::Trainer: the data set needs inputs() and targets(), or must be a torch::data dataset of Example<>
namespace evaluation_set_without_data {
double evaluate(torch::Tensor data) { return attend::Trainer(torch::nn::Linear(1, 1)).evaluate(data); }
}  // namespace evaluation_set_without_data

// attend::Trainer: each hook of a callback must take attend::TrainingState& and return void or bool
namespace hook_of_another_result {
struct OneHookIsRight {
  void on_batch_end(attend::TrainingState&) {}
  int on_epoch_end(attend::TrainingState&) { return 0; }
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, OneHookIsRight()); }
}  // namespace hook_of_another_result

// attend::Trainer: each hook of a callback must take attend::TrainingState& and return void or bool
namespace hook_of_another_signature {
struct OneHookIsRight {
  void on_batch_end(attend::TrainingState&) {}
  void on_epoch_end(int) {}
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, OneHookIsRight()); }
}  // namespace hook_of_another_signature

// attend::Trainer: MakeOptimizer must return a torch::optim::Optimizer
namespace make_optimizer_of_another_type {
struct MakesANumber {
  int operator()(const std::vector<torch::Tensor>&, double) const { return 0; }
};

attend::Trainer trainer(torch::nn::Linear(1, 1), {}, attend::MeanSquaredError(), MakesANumber());
}  // namespace make_optimizer_of_another_type

// attend::Trainer: the training set needs inputs() and targets(), or must be a torch::data dataset of Example<>
namespace training_set_without_data {
void fit(torch::Tensor data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
}  // namespace training_set_without_data
