// SPDX-License-Identifier: MIT

// Tests that need a GPU: the same results as on the CPU, and promises that depend on ATen's CUDA kernels. Without a GPU
// every test says so, and ctest counts the file as skipped.

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/nn/modules/container/sequential.h>

#include <iostream>
#include <string>
#include <tuple>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::max_difference;
using attend::test::size_of;

namespace {

bool has_gpu() {
  const bool has = torch::cuda::is_available();
  if (!has) std::cout << "this machine has no GPU" << std::endl;
  return has;
}

}  // namespace

TEST_CASE("attention on the GPU: results equal kReference in float64 on the CPU, also rows without allowed keys") {
  if (!has_gpu()) return;
  torch::Tensor mask = torch::rand({33, 33}) < 0.7;
  mask[5] = false;
  for (const auto dtype : {torch::kFloat, torch::kHalf, torch::kBFloat16}) {
    for (const bool is_masked : {false, true}) {
      CAPTURE(dtype);
      CAPTURE(is_masked);
      torch::Tensor exact = torch::randn({2, 4, 33, 64}, torch::kDouble).to(dtype).to(torch::kDouble).requires_grad_();
      const auto options = [&](torch::Device device) {
        return AttentionOptions().attn_mask(is_masked ? mask.to(device) : torch::Tensor());
      };
      const torch::Tensor expected =
          attend::attention(exact, exact, exact, options(torch::kCPU).backend(Backend::kReference));
      torch::Tensor x = exact.detach().to(torch::kCUDA, dtype).requires_grad_();
      const torch::Tensor y = attend::attention(x, x, x, options(torch::kCUDA));
      const double tolerance = dtype == torch::kFloat ? 1e-3 : 0.05;
      CHECK(max_difference(y, expected) < tolerance);
      if (is_masked) CHECK(y.select(2, 5).eq(0).all().item<bool>());
      expected.square().sum().backward();
      y.square().sum().backward();
      CHECK(max_difference(x.grad(), exact.grad()) < tolerance * size_of(exact.grad()));
    }
  }
}

TEST_CASE("attention on the GPU: every option equals kReference on the CPU, with gradients and log-sum-exp") {
  if (!has_gpu()) return;
  const torch::Tensor mask = torch::rand({2, 1, 20, 24}) < 0.7, bias = torch::randn({4, 20, 24}, torch::kDouble);
  struct Case {
    std::string name;
    AttentionOptions options;
    std::int64_t batch = 2;
  };
  const torch::Tensor offsets = torch::tensor({0, 7, 7, 20}, torch::kInt),
                      key_offsets = torch::tensor({0, 9, 11, 24}, torch::kInt);
  const Case cases[] = {
      {"plain", {}},
      {"causal", AttentionOptions().is_causal(true)},
      {"window", AttentionOptions().window({5, 2})},
      {"mask and causal", AttentionOptions().is_causal(true).attn_mask(mask)},
      {"bias", AttentionOptions().attn_mask(bias)},
      {"softcap", AttentionOptions().softcap(2.0)},
      {"ALiBi", AttentionOptions().alibi_slopes(torch::tensor({0.5, 0.25, 0.125, 0.0625}, torch::kDouble))},
      {"packed", AttentionOptions().query_offsets(offsets).key_offsets(key_offsets).is_causal(true), 1},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    std::vector<torch::Tensor> results[2];
    const torch::Tensor query = torch::randn({c.batch, 4, 20, 16}, torch::kDouble);
    const torch::Tensor key = torch::randn({c.batch, 2, 24, 16}, torch::kDouble), value = torch::randn_like(key);
    for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kCUDA)}) {
      const auto moved = [&](const torch::Tensor& tensor) { return tensor.defined() ? tensor.to(device) : tensor; };
      AttentionOptions options = c.options;
      options.attn_mask(moved(options.attn_mask())).alibi_slopes(moved(options.alibi_slopes()));
      options.query_offsets(moved(options.query_offsets())).key_offsets(moved(options.key_offsets()));
      std::vector<torch::Tensor> leaves;
      for (const torch::Tensor& leaf : {query, key, value}) leaves.push_back(leaf.to(device).requires_grad_());
      const auto [output, log_sum_exp] = attend::attention_with_lse(leaves[0], leaves[1], leaves[2], options);
      std::vector<torch::Tensor>& here = results[device.is_cuda()];
      here =
          torch::autograd::grad({output.pow(2).sum() + log_sum_exp.masked_fill(log_sum_exp.isinf(), 0).sum()}, leaves);
      here.push_back(output);
      here.push_back(log_sum_exp);
      here.push_back(attend::attention(leaves[0], leaves[1], leaves[2], options));
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(max_difference(results[0][i], results[1][i]) < 1e-11);
  }
}

TEST_CASE("dropout on the GPU: the seed stays there, the rate is right, the same seed drops the same weights") {
  if (!has_gpu()) return;
  const torch::Tensor value = torch::eye(64, torch::kCUDA).view({1, 1, 64, 64}), zeros = torch::zeros_like(value);
  std::vector<torch::Tensor> outputs;
  for (int i = 0; i < 2; ++i) {
    torch::manual_seed(3);
    outputs.push_back(attend::attention(zeros, zeros, value, AttentionOptions().dropout(0.25)));  // the weights
  }
  CHECK(outputs[0].equal(outputs[1]));
  CHECK(outputs[0].eq(0).to(torch::kDouble).mean().item<double>() == doctest::Approx(0.25).epsilon(0.15).scale(0));
}

TEST_CASE("MultiheadAttention on the GPU: results equal the CPU's, also in half precision with key_padding_mask") {
  if (!has_gpu()) return;
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(32, 4).num_kv_heads(2).is_causal(true));
  const torch::Tensor x = torch::randn({9, 3, 32}), padding = torch::rand({3, 9}) < 0.4;
  const torch::Tensor expected = std::get<0>(layer(x, x, x, padding));
  layer->to(torch::kCUDA);
  const torch::Tensor y = x.to(torch::kCUDA), ignored = padding.to(torch::kCUDA);
  CHECK(max_difference(std::get<0>(layer(y, y, y, ignored)), expected) < 1e-3);
  layer->to(torch::kHalf);
  const torch::Tensor half = y.to(torch::kHalf);
  CHECK(max_difference(std::get<0>(layer(half, half, half, ignored)), expected) < 0.05);
}

TEST_CASE("Trainer on the GPU: a model trains as on the CPU") {
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
    CHECK(losses[1][epoch] == doctest::Approx(losses[0][epoch]).epsilon(0.005).scale(0));
}
