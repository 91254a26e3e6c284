// SPDX-License-Identifier: MIT
// expect: attend::Trainer: a callback with a state needs std::string save_state() and load_state(std::string)
#include <attend/data/shape_dataset.h>
#include <attend/training/trainer.h>

#include <torch/nn/modules/linear.h>

#include <string>

struct OnlySaves {
  void on_batch_end(attend::TrainingState&) {}
  std::string save_state() { return ""; }
};

void fit(attend::ShapeDataset& data) { attend::Trainer(torch::nn::Linear(1, 1)).fit(data, OnlySaves()); }
