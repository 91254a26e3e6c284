// SPDX-License-Identifier: MIT
// expect: attend::Trainer: the data set needs inputs() and targets(), or must be a torch::data dataset of Example<>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

double evaluate(torch::Tensor data) { return attend::Trainer(torch::nn::Linear(1, 1)).evaluate(data); }
