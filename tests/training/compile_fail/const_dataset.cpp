// SPDX-License-Identifier: MIT
// expect: a torch::data dataset of Example<> with size() and get_batch(indices) that is not const
#include <attend/training/trainer.h>

#include <torch/data/datasets/mnist.h>
#include <torch/nn/modules/linear.h>

void fit(const torch::data::datasets::MNIST& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data); }
