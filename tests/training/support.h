// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/history.h>
#include <attend/training/training_state.h>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "support/temporary_folder.h"

namespace attend::test {

/// Normally distributed numbers that depend only on the seed and do not change the global generator.
inline torch::Tensor normal(std::vector<std::int64_t> sizes, std::uint64_t seed,
                            torch::ScalarType dtype = torch::kDouble) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), dtype);
}

/// A data set of two tensors.
struct Samples {
  torch::Tensor x, y;

  const torch::Tensor& inputs() const { return x; }
  const torch::Tensor& targets() const { return y; }
};

/// Float64 samples that a linear layer can partly fit: (count, 3) -> (count, 1).
inline Samples linear_samples(std::int64_t count, std::uint64_t seed = 1) {
  const torch::Tensor x = normal({count, 3}, seed);
  return {x, x.sum(1, /*keepdim=*/true) + normal({count, 1}, seed + 1)};
}

/// A linear layer for those samples, always with the same initial weights.
inline torch::nn::Linear linear_model() {
  torch::nn::Linear model(3, 1);
  const c10::NoGradGuard no_grad;
  model->to(torch::kDouble);
  model->weight.copy_(normal({1, 3}, 11));
  model->bias.copy_(normal({1}, 12));
  return model;
}

/// The state of a fit that does not run. Tests call hooks by hand and set the state that the hooks get.
struct StateByHand {
  torch::nn::Linear model = linear_model();
  torch::optim::SGD optimizer{model->parameters(), torch::optim::SGDOptions(0.1)};
  History history;
  TrainingState state{*model, optimizer, history};
};

/// The current lines of a file.
inline std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace attend::test
