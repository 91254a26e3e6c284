// SPDX-License-Identifier: MIT
// expect: attend::Trainer: the training set needs inputs() and targets(), or must be a torch::data dataset of Example<>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

void fit(torch::Tensor data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
