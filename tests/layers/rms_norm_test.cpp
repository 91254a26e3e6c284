// SPDX-License-Identifier: MIT
#include <attend/layers/rms_norm.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/gradcheck.h"

#include <ATen/ops/rms_norm.h>
#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstddef>
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
  const Case cases[] = {{{64}, {3, 5}, {}},        {{64}, {3, 5}, 1e-6}, {{512}, {130}, 1e-5}, {{7}, {2, 3, 4}, {}},
                        {{1}, {5}, 1e-3},          {{33}, {65}, {}},     {{3, 5}, {4, 2}, {}}, {{2, 3, 4}, {5}, 1e-5},
                        {{64}, {3, 5}, {}, false}, {{3, 5}, {}, {}},     {{64}, {}, {}},       {{64}, {0, 5}, {}},
                        {{100}, {700}, 1e-5},      {{1000}, {3}, 0.0}};
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

TEST_CASE("RMSNorm: first and second derivatives equal those of torch's function") {
  const std::vector<std::int64_t> shapes[] = {{6}, {2, 3}};
  for (const std::vector<std::int64_t>& shape : shapes) {
    std::vector<std::int64_t> sizes{4};
    sizes.insert(sizes.end(), shape.begin(), shape.end());
    const auto ours = [&](const Tensors& inputs) {
      RMSNorm norm(RMSNormOptions(shape).eps(1e-3));
      norm->weight = inputs[1];
      return Tensors{norm(inputs[0])};
    };
    const auto by_torch = [&](const Tensors& inputs) {
      return Tensors{at::rms_norm(inputs[0], shape, inputs[1], 1e-3)};
    };
    check_same_derivatives(ours, by_torch, {torch::randn(sizes, torch::kDouble), torch::randn(shape, torch::kDouble)});
  }
}

TEST_CASE("RMSNorm: x and the gradient may have any order in memory") {
  const torch::Tensor x = torch::randn({2, 3, 50, 20}, torch::kDouble), given = torch::randn_like(x),
                      weight = torch::randn({20}, torch::kDouble);
  const auto norm = [](const torch::Tensor& of, const torch::Tensor& with) {
    RMSNorm layer(20);
    layer->weight = with;
    return layer(of);
  };
  const Tensors expected = results_of(norm, x, weight, given, torch::kDouble);
  const torch::Tensor by_position = x.transpose(1, 2).contiguous().transpose(1, 2),
                      strided = x.transpose(1, 3).contiguous().transpose(1, 3),
                      slice = torch::cat({x, x}, 3).narrow(3, 20, 20), five = x.unsqueeze(2).expand({2, 3, 2, 50, 20});
  CHECK(norm(by_position, weight).strides() == by_position.strides());
  for (const torch::Tensor& same : {by_position, strided, slice}) {
    const Tensors results =
        results_of(norm, same, weight, given.transpose(1, 2).contiguous().transpose(1, 2), torch::kDouble);
    for (std::size_t i = 0; i < results.size(); ++i) check_equal_in_float64(results[i], expected[i]);
  }
  check_equal_in_float64(norm(five, weight).select(2, 1), expected[0]);
  // An expanded gradient.
  const torch::Tensor leaf = x.detach().requires_grad_();
  norm(leaf, weight).sum().backward();
  check_equal_in_float64(leaf.grad(), results_of(norm, x, weight, torch::ones_like(x), torch::kDouble)[1]);
}

TEST_CASE("RMSNorm: gradients of x alone and of the weight alone") {
  const torch::Tensor x = torch::randn({3, 8}, torch::kDouble), given = torch::randn_like(x);
  RMSNorm norm(8);
  norm->to(torch::kDouble);
  const torch::Tensor leaf = x.detach().requires_grad_();
  const Tensors both = torch::autograd::grad({norm(leaf)}, {leaf, norm->weight}, {given});
  check_equal_in_float64(torch::autograd::grad({norm(x)}, {norm->weight}, {given})[0], both[1]);
  norm->weight.requires_grad_(false);
  check_equal_in_float64(torch::autograd::grad({norm(leaf)}, {leaf}, {given})[0], both[0]);
}

TEST_CASE("RMSNorm: under autocast the result has the dtype of x") {
  RMSNorm norm(8);
  const torch::Tensor x = torch::randn({3, 8});
  const torch::Tensor y = norm(x);
  const attend::test::Autocast autocast;
  CHECK(norm(x).equal(y));
  const torch::Tensor low = norm(x.to(torch::kBFloat16));
  CHECK((low.scalar_type() == torch::kBFloat16));
  CHECK(attend::test::max_difference(low, y) < 0.05);
}

TEST_CASE("RMSNorm: bad input is refused with the rule and the values") {
  const std::string name = "attend::RMSNorm: ";
  RMSNorm norm(RMSNormOptions({3, 4}));
  const auto call = [&](const torch::Tensor& x) { return [=]() mutable { norm(x); }; };
  const Refused cases[] = {
      {name + "normalized_shape must have at least one size, got none", false,
       [] { RMSNorm{RMSNormOptions(std::vector<std::int64_t>{})}; }},
      {name + "a size of normalized_shape (0) must be at least 1", false, [] { RMSNorm{0}; }},
      {name + "eps (-1) must be at least 0 and finite", false, [] { RMSNorm{RMSNormOptions(4).eps(-1)}; }},
      {name + "x must be a tensor, got an undefined one", false, call({})},
      {name + "the last sizes of x must be normalized_shape [3, 4], got [3, 5]", false, call(torch::randn({3, 5}))},
      {name + "the last sizes of x must be normalized_shape [3, 4], got [4]", false, call(torch::randn({4}))},
      {name + "x (meta) must be on the device of the weights (cpu)", false,
       call(torch::randn({3, 4}).to(torch::kMeta))},
      {name + "x (Double) must have the dtype of the weights (Float)", true,
       call(torch::randn({3, 4}, torch::kDouble))},
      {name + "x (Long) must have a floating dtype", true, call(torch::ones({3, 4}, torch::kLong))},
  };
  for (const Refused& each : cases) each.check();
}

}  // namespace rms_norm_test
