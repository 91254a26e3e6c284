// SPDX-License-Identifier: MIT
// expect: attend::Trainer: the data need inputs() and targets(), or size() and get_batch(indices)
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

double evaluate(torch::Tensor data) { return attend::Trainer(torch::nn::Linear(1, 1)).evaluate(data); }
