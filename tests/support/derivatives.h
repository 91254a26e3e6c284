// SPDX-License-Identifier: MIT
#pragma once

#include "support/accuracy.h"
#include "support/gradcheck.h"

#include <ATen/CPUGeneratorImpl.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace attend::test {

/// The results of a function of float64 tensors, its first and second derivatives. They are derivatives of random
/// weighted sums, with the same weights for every function whose inputs and results have these shapes.
struct Derivatives {
  std::vector<torch::Tensor> results, first, second;
  /// The first derivatives without create_graph, for which a kernel has its own backward pass.
  std::vector<torch::Tensor> last;

  Derivatives(const TensorFunction& function, const std::vector<torch::Tensor>& inputs) {
    at::Generator generator = at::detail::createCPUGenerator(/*seed=*/7);
    const auto leaf = [](const torch::Tensor& tensor) { return tensor.detach().clone().requires_grad_(); };
    const auto random_like = [&](const torch::Tensor& tensor) {
      return at::randn(tensor.sizes(), generator, torch::TensorOptions(torch::kDouble));
    };
    std::vector<torch::Tensor> leaves, finite, given;
    for (const torch::Tensor& input : inputs) leaves.push_back(leaf(input));
    results = function(leaves);
    for (const torch::Tensor& result : results) {
      finite.push_back(result.masked_fill(result.isneginf(), 0.0));  // −∞, of an empty row, counts as a constant
      given.push_back(random_like(result).requires_grad_());
    }
    last = gradients(finite, leaves, given, /*create_graph=*/false);
    first = gradients(finite, leaves, given, /*create_graph=*/true);
    leaves.insert(leaves.end(), given.begin(), given.end());
    std::vector<torch::Tensor> differentiable, weights;
    for (const torch::Tensor& gradient : first) {
      const torch::Tensor weight = random_like(gradient);
      if (!gradient.requires_grad()) continue;  // a constant
      differentiable.push_back(gradient);
      weights.push_back(weight);
    }
    second = gradients(differentiable, leaves, weights, /*create_graph=*/false);
  }

 private:
  static std::vector<torch::Tensor> gradients(const std::vector<torch::Tensor>& of,
                                              const std::vector<torch::Tensor>& by,
                                              const std::vector<torch::Tensor>& given, bool create_graph) {
    std::vector<torch::Tensor> gradients(by.size());
    if (!of.empty())
      gradients = torch::autograd::grad(of, by, given, /*retain_graph=*/true, create_graph, /*allow_unused=*/true);
    for (std::size_t i = 0; i < by.size(); ++i)
      if (!gradients[i].defined()) gradients[i] = torch::zeros_like(by[i]);
    return gradients;
  }
};

/// Checks that two functions of float64 tensors agree to 1e-12, in their results and in their first and second
/// derivatives.
inline void check_same_derivatives(const TensorFunction& function, const TensorFunction& expected,
                                   const std::vector<torch::Tensor>& inputs) {
  const Derivatives ours(function, inputs), theirs(expected, inputs);
  const auto check = [](const std::string& order, const std::vector<torch::Tensor>& some,
                        const std::vector<torch::Tensor>& others) {
    CAPTURE(order);
    REQUIRE(some.size() == others.size());
    for (std::size_t i = 0; i < some.size(); ++i) {
      CAPTURE(i);
      const torch::Tensor finite = others[i].masked_fill(others[i].isinf(), 0.0);
      const double largest = finite.numel() == 0 ? 0.0 : finite.abs().max().item<double>();
      CHECK(some[i].isinf().equal(others[i].isinf()));
      CHECK(max_difference(some[i].masked_fill(some[i].isinf(), 0.0), finite) <= 1e-12 * std::max(1.0, largest));
    }
  };
  check("results", ours.results, theirs.results);
  check("first derivatives alone", ours.last, theirs.last);
  check("first derivatives", ours.first, theirs.first);
  check("second derivatives", ours.second, theirs.second);
}

}  // namespace attend::test
