// SPDX-License-Identifier: MIT
#pragma once

#include "support/accuracy.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace attend::test {

/// A function from float64 tensors to float64 tensors. −∞ in a result counts as a constant.
using TensorFunction = std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>;

/// Sets one thread for ATen until the end of the scope. In thousands of calls on a few numbers, two threads would
/// mostly wait for each other.
struct OneThread {
  OneThread() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// Checks the gradients of a random weighted sum of all results against central differences, element by element.
///
/// The step is 1e-5. The error of a difference is then about 1e-10 for values and derivatives near 1, so a tolerance of
/// 1e-7 is far above it and far below a wrong gradient. A function that draws random numbers must seed the generator.
inline void gradcheck(const TensorFunction& function, const std::vector<torch::Tensor>& inputs) {
  const OneThread one_thread;
  const auto leaves = [&] {
    std::vector<torch::Tensor> copies;
    for (const torch::Tensor& input : inputs)
      copies.push_back(input.detach().clone(at::MemoryFormat::Contiguous).requires_grad_());
    return copies;
  };
  std::vector<torch::Tensor> weights;
  for (const torch::Tensor& result : function(leaves()))
    weights.push_back(torch::randn(result.sizes(), torch::kDouble));
  const auto loss = [&](const std::vector<torch::Tensor>& at) {
    const std::vector<torch::Tensor> results = function(at);
    torch::Tensor sum = torch::zeros({}, torch::kDouble);
    for (std::size_t i = 0; i < results.size(); ++i)
      sum = sum + (weights[i] * results[i].masked_fill(results[i].isneginf(), 0.0)).sum();
    return sum;
  };

  const std::vector<torch::Tensor> at = leaves();
  const auto gradients = torch::autograd::grad({loss(at)}, at, {}, /*retain_graph=*/std::nullopt,
                                               /*create_graph=*/false, /*allow_unused=*/true);
  constexpr double kStep = 1e-5;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(i);
    torch::Tensor differences = torch::empty({inputs[i].numel()}, torch::kDouble);
    for (std::int64_t element = 0; element < inputs[i].numel(); ++element) {
      const auto loss_at = [&](double step) {
        std::vector<torch::Tensor> moved = leaves();
        moved[i].mutable_data_ptr<double>()[element] += step;
        return loss(moved).item<double>();
      };
      differences[element] = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    }
    const torch::Tensor gradient = gradients[i].defined() ? gradients[i] : torch::zeros_like(inputs[i]);
    const double largest = differences.numel() == 0 ? 0.0 : differences.abs().max().item<double>();
    CHECK(max_difference(gradient.reshape(-1), differences) < 1e-7 * std::max(1.0, largest));
  }
}

/// Checks the second derivatives: gradcheck() of the gradients as a function of the inputs and the output gradients.
inline void gradgradcheck(const TensorFunction& function, const std::vector<torch::Tensor>& inputs) {
  std::vector<torch::Tensor> inputs_and_given = inputs;
  for (const torch::Tensor& result : function(inputs))
    inputs_and_given.push_back(torch::randn(result.sizes(), torch::kDouble));
  const auto gradients = [&](const std::vector<torch::Tensor>& at) {
    const auto middle = at.begin() + static_cast<std::ptrdiff_t>(inputs.size());
    const std::vector<torch::Tensor> point(at.begin(), middle), given(middle, at.end());
    return torch::autograd::grad(function(point), point, given, /*retain_graph=*/true, /*create_graph=*/true);
  };
  gradcheck(gradients, inputs_and_given);
}

}  // namespace attend::test
