// SPDX-License-Identifier: MIT
// expect: attend::Trainer: a hook of this callback has another signature than void or bool of (attend::TrainingState&)
#include <attend/data/shape_dataset.h>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

struct OneHookIsRight {
  void on_batch_end(attend::TrainingState&) {}
  int on_epoch_end(attend::TrainingState&) { return 0; }
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, OneHookIsRight()); }
