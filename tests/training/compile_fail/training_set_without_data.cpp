// SPDX-License-Identifier: MIT
// expect: attend::Trainer: the training set needs inputs() and targets(), or size() and get_batch(indices)
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

void fit(torch::Tensor data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
