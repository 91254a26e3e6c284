// SPDX-License-Identifier: MIT
// expect: attend::Trainer: MakeOptimizer must return a torch::optim::Optimizer
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

#include <vector>

struct MakesANumber {
  int operator()(const std::vector<torch::Tensor>&, double) const { return 0; }
};

attend::Trainer trainer(torch::nn::Linear(1, 1), {}, attend::MeanSquaredError(), MakesANumber());
