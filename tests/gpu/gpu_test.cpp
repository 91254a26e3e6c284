// SPDX-License-Identifier: MIT

// What can only be tried on a GPU: the same results there as on the CPU, and the promises that rest on ATen's kernels
// for CUDA. Without a GPU every test says so, and ctest counts the file as skipped.

#include <attend/attend.h>
#include <attend/training.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/cuda.h>
#include <torch/nn/modules/container/sequential.h>

#include <iostream>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::max_difference;

namespace {

bool has_gpu() {
  const bool has = torch::cuda::is_available();
  if (!has) std::cout << "this machine has no GPU" << std::endl;
  return has;
}

}  // namespace

TEST_CASE("attention on the GPU equals the reference in float64 on the CPU, masked rows included") {
  if (!has_gpu()) return;
  torch::Tensor mask = torch::rand({33, 33}) < 0.7;
  mask[5] = false;
  for (const auto dtype : {torch::kFloat, torch::kHalf, torch::kBFloat16}) {
    for (const bool is_masked : {false, true}) {
      CAPTURE(dtype);
      CAPTURE(is_masked);
      const torch::Tensor exact = torch::randn({2, 4, 33, 64}, torch::kDouble).to(dtype).to(torch::kDouble);
      const auto options = [&](torch::Device device) {
        return AttentionOptions().attn_mask(is_masked ? mask.to(device) : torch::Tensor());
      };
      const torch::Tensor expected =
          attend::attention(exact, exact, exact, options(torch::kCPU).backend(Backend::kReference));
      torch::Tensor x = exact.to(torch::kCUDA, dtype).requires_grad_();
      const torch::Tensor y = attend::attention(x, x, x, options(torch::kCUDA));
      CHECK(max_difference(y, expected) < (dtype == torch::kFloat ? 1e-3 : 0.05));
      if (is_masked) CHECK(y.select(2, 5).eq(0).all().item<bool>());
      y.sum().backward();
      CHECK(x.grad().isfinite().all().item<bool>());
    }
  }
}

TEST_CASE("a model trains on the GPU as it does on the CPU") {
  if (!has_gpu()) return;
  attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(320));
  std::vector<std::vector<double>> losses;
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kCUDA)}) {
    torch::manual_seed(1);
    torch::nn::Sequential model(attend::ConvStack(attend::ConvStackOptions(1, 16, 16).depth(2)));
    model->push_back(attend::SelfAttention1d(16, 1, 16));
    attend::Trainer trainer(model, attend::TrainerOptions().epochs(3).device(device));
    losses.push_back(trainer.fit(data, data).validation_loss());
  }
  for (std::size_t epoch = 0; epoch < 3; ++epoch)
    CHECK(losses[1][epoch] == doctest::Approx(losses[0][epoch]).epsilon(0.02));
}
