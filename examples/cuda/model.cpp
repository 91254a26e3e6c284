// SPDX-License-Identifier: MIT

// Attention on a GPU by attend's own kernels. This file is compiled by g++ or clang++, kernels.cu by nvcc.

#include "scores.h"

#include <attend/attend.h>

#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <iostream>

namespace {

/// The largest difference between the kernels and the dense formula, relative to the largest value.
double error(const torch::Tensor& result, const torch::Tensor& expected) {
  return ((result - expected).abs().max() / expected.abs().max()).item<double>();
}

/// Whether the errors of calls and of a model are small.
bool compare_on_gpu() {
  const auto leaf = [] {
    return torch::randn({2, 8, 1000, 64}, torch::TensorOptions(torch::kCUDA).requires_grad(true));
  };
  const torch::Tensor q = leaf(), k = leaf(), v = leaf();

  // One call: the option `backend`.
  const auto options = attend::AttentionOptions().backend(tilted_on_cuda());
  const torch::Tensor y = attend::flex_attention(q, k, v, Tilted{}, attend::Causal{}, options);
  y.square().sum().backward();

  const auto dense = attend::AttentionOptions().backend(attend::Backend::kReference);
  const torch::Tensor gradient = q.grad().clone();
  q.mutable_grad().reset();
  const torch::Tensor expected = attend::flex_attention(q, k, v, Tilted{}, attend::Causal{}, dense);
  expected.square().sum().backward();
  const double of_output = error(y, expected), of_gradient = error(gradient, q.grad());
  std::cout << "flex_attention: error " << of_output << ", of the query's gradient " << of_gradient << "\n";

  // Another object computes float32 in tf32: faster, and less exact.
  const auto in_tf32 = attend::AttentionOptions().backend(tf32_on_cuda());
  const double of_tf32 = error(attend::attention(q, k, v, in_tf32), attend::attention(q, k, v, dense));
  std::cout << "attention in tf32: error " << of_tf32 << "\n";

  // All layers of a model: a guard. These layers pass no structs, so the object for attention() computes them.
  attend::TransformerEncoder model(
      attend::TransformerEncoderOptions(attend::TransformerEncoderLayerOptions(256, 4).dropout(0.0), 2));
  model->to(torch::kCUDA);
  const torch::Tensor x = torch::randn({128, 2, 256}, torch::kCUDA);
  torch::Tensor fused;
  {
    const attend::BackendGuard guard(plain_on_cuda());
    fused = model(x);
  }
  const attend::BackendGuard guard(attend::Backend::kReference);
  const double of_model = error(fused, model(x));
  std::cout << "TransformerEncoder: error " << of_model << "\n";
  return std::max({of_output, of_gradient, of_model}) < 1e-3 && of_tf32 < 4e-3;
}

}  // namespace

int main() {
  if (torch::cuda::is_available()) return compare_on_gpu() ? 0 : 1;
  // The object exists on every machine. It refuses tensors that are not on a GPU.
  const torch::Tensor x = torch::randn({1, 2, 16, 8});
  try {
    attend::attention(x, x, x, attend::AttentionOptions().backend(plain_on_cuda()));
  } catch (const c10::NotImplementedError& error) {
    std::cout << "This machine has no GPU. " << error.what_without_backtrace() << "\n";
    return 0;
  }
  return 1;
}
