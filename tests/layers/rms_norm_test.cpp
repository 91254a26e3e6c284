// SPDX-License-Identifier: MIT
#include <attend/layers/rms_norm.h>

#include "support/accuracy.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/gradcheck.h"

#include <ATen/ops/rms_norm.h>
#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

using attend::RMSNorm;
using attend::RMSNormOptions;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::check_same_derivatives;
using attend::test::Refused;

namespace rms_norm_test {
namespace {

using Tensors = std::vector<torch::Tensor>;

/// y, then the gradients of x and, if there is one, of the weight.
template <class Function>
Tensors results_of(const Function& function, const torch::Tensor& x, const torch::Tensor& weight,
                   const torch::Tensor& given, at::ScalarType dtype) {
  Tensors leaves{x.to(dtype).detach().requires_grad_()};
  if (weight.defined()) leaves.push_back(weight.to(dtype).detach().requires_grad_());
  const torch::Tensor y = function(leaves[0], weight.defined() ? leaves[1] : torch::Tensor());
  Tensors results{y};
  for (const torch::Tensor& gradient : torch::autograd::grad({y}, leaves, {given.to(dtype)}))
    results.push_back(gradient);
  return results;
}

}  // namespace

TEST_CASE("RMSNorm: outputs and gradients are those of torch.nn.RMSNorm, for every shape, eps and dtype") {
  struct Case {
    std::vector<std::int64_t> shape, outer;
    std::optional<double> eps;
    bool has_weight = true;
  };
  const Case cases[] = {{{64}, {3, 5}, {}},       {{64}, {3, 5}, 1e-6},  {{512}, {130}, 1e-5}, {{7}, {2, 3, 4}, {}},
                        {{1}, {5}, 1e-3},         {{33}, {65}, {}},      {{3, 5}, {4, 2}, {}}, {{2, 3, 4}, {5}, 1e-5},
                        {{64}, {3, 5}, {}, false}, {{3, 5}, {}, {}},     {{64}, {}, {}},       {{64}, {0, 5}, {}},
                        {{100}, {700}, 1e-5},     {{1000}, {3}, 0.0}};
  for (const Case& c : cases) {
    CAPTURE(torch::IntArrayRef(c.shape));
    CAPTURE(torch::IntArrayRef(c.outer));
    torch::manual_seed(1);
    std::vector<std::int64_t> sizes = c.outer;
    sizes.insert(sizes.end(), c.shape.begin(), c.shape.end());
    const torch::Tensor x = torch::randn(sizes), given = torch::randn(sizes);
    const torch::Tensor weight = c.has_weight ? torch::randn(c.shape) : torch::Tensor();
    const auto by_torch = [&](const torch::Tensor& of, const torch::Tensor& with) {
      return at::rms_norm(of, c.shape, with, c.eps);
    };
    const auto ours = [&](const torch::Tensor& of, const torch::Tensor& with) {
      RMSNormOptions options = RMSNormOptions(c.shape).elementwise_affine(c.has_weight);
      if (c.eps) options.eps(*c.eps);
      RMSNorm norm(options);
      norm->weight = with;
      return norm(of);
    };
    const Tensors exact = results_of(by_torch, x, weight, given, torch::kDouble);
    const Tensors in_float64 = results_of(ours, x, weight, given, torch::kDouble);
    for (std::size_t i = 0; i < exact.size(); ++i) check_equal_in_float64(in_float64[i], exact[i]);
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      CAPTURE(dtype);
      // The exact results for the rounded inputs, and with the epsilon of float32.
      const auto with_epsilon = [&](const torch::Tensor& of, const torch::Tensor& with) {
        return at::rms_norm(of, c.shape, with, c.eps.value_or(std::numeric_limits<float>::epsilon()));
      };
      const auto rounded = [&](const torch::Tensor& tensor) {
        return tensor.defined() ? tensor.to(dtype).to(torch::kDouble) : tensor;
      };
      const Tensors rounded_exact =
          results_of(with_epsilon, rounded(x), rounded(weight), rounded(given), torch::kDouble);
      const Tensors dense = results_of(by_torch, x, weight, given, dtype);
      const Tensors results = results_of(ours, x, weight, given, dtype);
      for (std::size_t i = 0; i < results.size(); ++i) check_as_accurate_as(dense[i], results[i], rounded_exact[i]);
    }
  }
}

}  // namespace rms_norm_test
