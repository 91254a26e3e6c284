// SPDX-License-Identifier: MIT
// expect: attend::Trainer: each hook of a callback must take attend::TrainingState& and return void or bool
#include <attend/data/shape_dataset.h>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

struct OneHookIsRight {
  void on_batch_end(attend::TrainingState&) {}
  void on_epoch_end(int) {}
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, OneHookIsRight()); }
