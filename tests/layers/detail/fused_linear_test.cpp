// SPDX-License-Identifier: MIT
#include <attend/layers/detail/fused_linear.h>

#include "support/accuracy.h"
#include "support/autocast.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

using attend::detail::FusedLinear;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::max_difference;

namespace fused_linear_test {
namespace {

using Tensors = std::vector<torch::Tensor>;

/// Outputs, then gradients of x and of the weights, for given output gradients.
template <class Project>
Tensors results_of(const Tensors& inputs, const Tensors& output_gradients, at::ScalarType dtype,
                   const Project& project) {
  Tensors leaves, given;
  for (const torch::Tensor& input : inputs) leaves.push_back(input.to(dtype).clone().requires_grad_());
  for (const torch::Tensor& gradient : output_gradients)
    given.push_back(gradient.scalar_type() == torch::kBFloat16 ? gradient : gradient.to(dtype));
  Tensors results = project(leaves[0], Tensors(leaves.begin() + 1, leaves.end()));
  const Tensors gradients = torch::autograd::grad(results, leaves, given);
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

// `weights` are matrices, each of which a bias may follow.

bool has_bias(const Tensors& weights, std::size_t k) { return k + 1 < weights.size() && weights[k + 1].dim() == 1; }

Tensors by_torch(const torch::Tensor& x, const Tensors& weights) {
  Tensors outputs;
  for (std::size_t k = 0; k < weights.size(); ++k)
    if (weights[k].dim() == 2)
      outputs.push_back(at::linear(x, weights[k], has_bias(weights, k) ? weights[k + 1] : torch::Tensor()));
  return outputs;
}

Tensors fused(const torch::Tensor& x, const Tensors& weights) {
  std::vector<attend::detail::Linear> layers;
  for (std::size_t k = 0; k < weights.size(); ++k)
    if (weights[k].dim() == 2) layers.push_back({weights[k], has_bias(weights, k) ? weights[k + 1] : torch::Tensor()});
  return FusedLinear::run(x, layers, attend::Backend::kAuto);
}

}  // namespace

TEST_CASE("projections: several linear layers of one input equal torch's, forward and backward, for all sizes") {
  struct Case {
    std::int64_t batch, length, channels;
    std::vector<std::int64_t> outs;
    bool has_bias = false;
  };
  const Case cases[] = {{32, 100, 64, {64, 64, 64}},      {3, 7, 16, {16, 48}},     {1, 1, 32, {16}},
                        {2, 97, 80, {16, 32, 112}},       {2, 5, 10, {16, 3}},      {3, 70, 64, {192}, true},
                        {2, 97, 80, {16, 32, 112}, true}, {2, 5, 10, {16, 3}, true}};
  for (const Case& c : cases) {
    CAPTURE(c.channels);
    torch::manual_seed(1);
    Tensors inputs{torch::randn({c.batch, c.length, c.channels})}, gradients;
    for (const std::int64_t out : c.outs) {
      inputs.push_back(torch::randn({out, c.channels}));
      if (c.has_bias) inputs.push_back(torch::randn({out}));
      gradients.push_back(torch::randn({c.batch, c.length, out}));
    }
    const Tensors exact = results_of(inputs, gradients, torch::kDouble, by_torch);
    const Tensors dense = results_of(inputs, gradients, torch::kFloat, by_torch);
    const Tensors ours = results_of(inputs, gradients, torch::kFloat, fused);
    const Tensors in_float64 = results_of(inputs, gradients, torch::kDouble, fused);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      check_as_accurate_as(dense[i], ours[i], exact[i]);
      check_equal_in_float64(in_float64[i], exact[i]);
    }

    // All inputs are representable in bfloat16. Under autocast the gradients of weights are float32.
    for (Tensors* tensors : {&inputs, &gradients})
      for (torch::Tensor& tensor : *tensors) tensor = tensor.to(torch::kBFloat16).to(torch::kFloat);
    const Tensors exact_bfloat16 = results_of(inputs, gradients, torch::kDouble, by_torch),
                  dense_bfloat16 = results_of(inputs, gradients, torch::kBFloat16, by_torch),
                  our_bfloat16 = results_of(inputs, gradients, torch::kBFloat16, fused);
    const auto under_autocast = [](const torch::Tensor& x, const Tensors& weights) {
      const attend::test::Autocast autocast;
      return fused(x, weights);
    };
    Tensors autocast_gradients;
    for (const torch::Tensor& gradient : gradients) autocast_gradients.push_back(gradient.to(torch::kBFloat16));
    const Tensors under = results_of(inputs, autocast_gradients, torch::kFloat, under_autocast);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      CHECK((our_bfloat16[i].scalar_type() == torch::kBFloat16));
      check_as_accurate_as(dense_bfloat16[i], our_bfloat16[i], exact_bfloat16[i]);
      CHECK((under[i].scalar_type() == (i < gradients.size() ? torch::kBFloat16 : torch::kFloat)));
      check_as_accurate_as(dense_bfloat16[i], under[i].to(torch::kBFloat16), exact_bfloat16[i]);
    }
  }
}

TEST_CASE("projections: without gradients, layers of any width equal torch's, with and without GELU") {
  const c10::NoGradGuard no_grad;
  for (const auto& [rows, channels, out] :
       std::vector<std::array<std::int64_t, 3>>{{512, 10, 3}, {600, 384, 1536}, {545, 1536, 70}, {601, 7, 200}}) {
    CAPTURE(rows);
    torch::manual_seed(2);
    const torch::Tensor x = torch::randn({1, rows, channels}), bias = torch::randn({out}), none,
                        weight = torch::randn({out, channels}) / std::sqrt(channels), second = weight * 0.5;
    for (const torch::Tensor& b : {bias, none}) {
      const Tensors ours = FusedLinear::run(x, {{weight, b}, {second, none}}, attend::Backend::kAuto);
      const torch::Tensor exact =
          at::linear(x.to(torch::kDouble), weight.to(torch::kDouble), b.defined() ? b.to(torch::kDouble) : b);
      check_as_accurate_as(at::linear(x, weight, b), ours[0], exact);
      check_as_accurate_as(at::linear(x, second), ours[1], at::linear(x.to(torch::kDouble), second.to(torch::kDouble)));
      check_as_accurate_as(at::gelu(at::linear(x, weight, b)),
                           FusedLinear::gelu(x, {weight, b}, attend::Backend::kAuto), at::gelu(exact));
      const torch::Tensor few = x.slice(1, 0, 3);
      CHECK(torch::equal(FusedLinear::gelu(few, {weight, b}, attend::Backend::kAuto),
                         at::gelu(at::linear(few, weight, b))));
    }
    const torch::Tensor transposed = x.transpose(1, 2).contiguous().transpose(1, 2),
                        transposed_weight = weight.t().contiguous().t();
    check_as_accurate_as(
        at::gelu(at::linear(x, weight, bias)),
        FusedLinear::gelu(transposed, {transposed_weight, bias}, attend::Backend::kAuto),
        at::gelu(at::linear(x.to(torch::kDouble), weight.to(torch::kDouble), bias.to(torch::kDouble))));
  }
}

TEST_CASE("projections: GELU with gradients equals torch's") {
  torch::manual_seed(3);
  const torch::Tensor x = torch::randn({200, 32}).requires_grad_(), weight = torch::randn({48, 32}).requires_grad_();
  const torch::Tensor ours = FusedLinear::gelu(x, {weight, {}}, attend::Backend::kAuto),
                      by_torch = at::gelu(at::linear(x, weight));
  CHECK(torch::allclose(ours, by_torch, 1e-5, 1e-5));
  const auto gradients = [&](const torch::Tensor& y) { return torch::autograd::grad({y.sum()}, {x, weight}); };
  CHECK(torch::allclose(gradients(ours)[1], gradients(by_torch)[1], 1e-4, 1e-4));
}

TEST_CASE("projections: rows of any number of dimensions, each with the sizes of x") {
  const torch::Tensor x = torch::randn({6, 5, 32}), weight = torch::randn({48, 32}), bias = torch::randn({48});
  const torch::Tensor rows = fused(x, {weight, bias})[0];
  CHECK(rows.sizes() == torch::IntArrayRef{6, 5, 48});
  // torch's product, which the baseline instruction set uses, rounds differently for other numbers of rows.
  const auto is_near = [](const torch::Tensor& a, const torch::Tensor& b) {
    return a.sizes() == b.sizes() && (a - b).abs().max().item<double>() <= 1e-5;
  };
  CHECK(is_near(fused(x[0], {weight, bias})[0], rows[0]));
  CHECK(is_near(fused(x[0][0], {weight, bias})[0], rows[0][0]));
  CHECK(is_near(fused(x.view({2, 3, 5, 32}), {weight, bias})[0], rows.view({2, 3, 5, 48})));
}

TEST_CASE("projections: unused outputs cost nothing and change nothing; second derivatives equal torch's") {
  torch::manual_seed(2);
  const torch::Tensor x = torch::randn({4, 9, 16}).requires_grad_(), a = torch::randn({16, 16}).requires_grad_(),
                      b = torch::randn({32, 16}).requires_grad_();
  for (const bool is_second : {false, true}) {
    const auto derivatives = [&](const Tensors& outputs) {
      const torch::Tensor first =
          torch::autograd::grad({outputs[1].pow(3).sum()}, {x}, {}, std::nullopt, /*create_graph=*/is_second)[0];
      if (!is_second) return Tensors{first};
      return torch::autograd::grad({first.pow(2).sum()}, {x, b});
    };
    const Tensors ours = derivatives(fused(x, {a, b})), expected = derivatives(by_torch(x, {a, b}));
    for (std::size_t i = 0; i < ours.size(); ++i)
      CHECK(max_difference(ours[i], expected[i]) < 1e-5 * attend::test::size_of(expected[i]));
  }
  const Tensors outputs = fused(x, {a, b});
  const Tensors gradients =
      torch::autograd::grad({outputs[1].sum()}, {a, b}, {}, std::nullopt, false, /*allow_unused=*/true);
  CHECK_FALSE(gradients[0].defined());
  CHECK(gradients[1].defined());
}

TEST_CASE("projections: the same call gives the same bits; BackendGuard kReference uses torch's operators") {
  torch::manual_seed(3);
  const Tensors inputs{torch::randn({7, 100, 32}), torch::randn({48, 32}), torch::randn({80, 32})};
  const Tensors gradients{torch::randn({7, 100, 48}), torch::randn({7, 100, 80})};
  const Tensors first = results_of(inputs, gradients, torch::kFloat, fused),
                again = results_of(inputs, gradients, torch::kFloat, fused);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(torch::equal(first[i], again[i]));

  const attend::BackendGuard guard(attend::Backend::kReference);
  const Tensors guarded = results_of(inputs, gradients, torch::kFloat, fused),
                expected = results_of(inputs, gradients, torch::kFloat, by_torch);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(torch::equal(guarded[i], expected[i]));
}

}  // namespace fused_linear_test
