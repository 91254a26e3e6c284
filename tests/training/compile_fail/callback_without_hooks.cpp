// SPDX-License-Identifier: MIT
// expect: attend::Trainer: a callback needs at least one of on_fit_begin, on_epoch_begin, on_before_step
#include <attend/data/shape_dataset.h>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

struct Misspelled {
  void on_epoch_ends(attend::TrainingState&) {}
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, Misspelled()); }
