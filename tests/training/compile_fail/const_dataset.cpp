// SPDX-License-Identifier: MIT
// expect: as a torch::data dataset of Example<> has, which must not be const
#include <attend/training/trainer.h>

#include <torch/data/datasets/mnist.h>
#include <torch/nn/modules/linear.h>

void fit(const torch::data::datasets::MNIST& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
