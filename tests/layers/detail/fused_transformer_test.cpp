// SPDX-License-Identifier: MIT

// The fused feed-forward network and layer norm against torch's operations.

#include <attend/layers/detail/fused_feed_forward.h>
#include <attend/layers/detail/fused_layer_norm.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/operator_log.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

using attend::cpu::HiddenActivation;
using attend::detail::FusedFeedForward;
using attend::detail::FusedLayerNorm;
using attend::detail::Linear;
using attend::detail::Norm;
using attend::test::check_as_accurate_as;
using attend::test::max_difference;
using attend::test::OperatorLog;

namespace fused_transformer_test {
namespace {

using Tensors = std::vector<torch::Tensor>;

/// x, then weight and bias of two layers. Undefined biases stay undefined.
Tensors network(std::int64_t rows, std::int64_t width, std::int64_t hidden, bool has_bias) {
  const auto leaf = [](torch::IntArrayRef sizes) { return torch::randn(sizes).requires_grad_(); };
  Tensors all{leaf({rows, width}), leaf({hidden, width}), torch::Tensor(), leaf({width, hidden}), torch::Tensor()};
  if (has_bias) {
    all[2] = leaf({hidden});
    all[4] = leaf({width});
  }
  return all;
}

torch::Tensor fused(const Tensors& all, HiddenActivation activation, double dropout) {
  return FusedFeedForward::run(all[0], {all[1], all[2]}, activation, dropout, {all[3], all[4]});
}

torch::Tensor dense(const Tensors& all, HiddenActivation activation) {
  const torch::Tensor hidden = torch::linear(all[0], all[1], all[2]);
  return torch::linear(activation == HiddenActivation::kReLU ? torch::relu(hidden) : torch::gelu(hidden), all[3],
                       all[4]);
}

constexpr HiddenActivation kActivations[] = {HiddenActivation::kReLU, HiddenActivation::kGELU};

Tensors defined(const Tensors& all) {
  Tensors result;
  for (const torch::Tensor& tensor : all)
    if (tensor.defined()) result.push_back(tensor);
  return result;
}

Tensors in_float64(const Tensors& all) {
  Tensors result;
  for (const torch::Tensor& tensor : all)
    result.push_back(tensor.defined() ? tensor.detach().to(torch::kDouble).requires_grad_() : tensor);
  return result;
}

Tensors gradients(const torch::Tensor& y, const Tensors& leaves, const torch::Tensor& weight) {
  return torch::autograd::grad({(y * weight.to(y.dtype())).sum()}, defined(leaves));
}

}  // namespace

TEST_CASE("fused feed-forward: output and all gradients are as accurate as torch's, without torch's operations") {
  if (!attend::detail::is_measured(attend::detail::available_instruction_set())) {
    MESSAGE(
        "layers do not use it with this instruction set; tests/kernels/cpu/feed_forward_test.cpp covers its kernels");
    return;
  }
  torch::manual_seed(1);
  for (const bool has_bias : {false, true}) {
    for (const auto& [rows, activation] :
         {std::pair(1, kActivations[0]), std::pair(97, kActivations[0]), std::pair(400, kActivations[0]),
          std::pair(97, kActivations[1]), std::pair(400, kActivations[1])}) {
      CAPTURE(has_bias);
      CAPTURE(rows);
      CAPTURE((activation == HiddenActivation::kGELU));
      const Tensors all = network(rows, 64, 208, has_bias), exact = in_float64(all);
      const torch::Tensor weight = torch::randn({rows, 64});
      torch::Tensor y;
      {
        const OperatorLog log;
        y = fused(all, activation, 0.0);
        CHECK(log.count("aten::relu") == 0);
        CHECK(log.count("aten::gelu") == 0);
        CHECK(log.count("aten::linear") == 0);
      }
      check_as_accurate_as(dense(all, activation), y, dense(exact, activation));
      const Tensors found = gradients(y, all, weight), plain = gradients(dense(all, activation), all, weight),
                    wanted = gradients(dense(exact, activation), exact, weight);
      for (std::size_t i = 0; i < found.size(); ++i) {
        CAPTURE(i);
        check_as_accurate_as(plain[i], found[i], wanted[i]);
      }
      const torch::NoGradGuard no_grad;
      CHECK(fused(all, activation, 0.0).equal(y));
    }
  }
}

TEST_CASE("fused feed-forward: dropout keeps the share 1 - p, follows the seed, and backward drops the same numbers") {
  torch::manual_seed(2);
  const Tensors all = network(300, 64, 256, true);
  for (const HiddenActivation activation : kActivations) {
    CAPTURE((activation == HiddenActivation::kGELU));
    torch::manual_seed(3);
    const torch::Tensor y = fused(all, activation, 0.25);
    torch::manual_seed(3);
    CHECK(fused(all, activation, 0.25).equal(y));
    CHECK_FALSE(fused(all, activation, 0.25).equal(y));
    // With create_graph the gradient is computed by torch's operations, from the factors of the same seed.
    const Tensors leaves = defined(all);
    const torch::Tensor loss = y.pow(2).sum();
    const Tensors found = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/true);
    const Tensors wanted = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/true, /*create_graph=*/true);
    for (std::size_t i = 0; i < found.size(); ++i)
      CHECK(max_difference(found[i], wanted[i]) < 1e-5 * wanted[i].abs().max().item<double>());
  }

  // Ones through weights of 1 / hidden: the mean of the factors of each row.
  const torch::Tensor ones = torch::ones({256, 64}) / 64, mean = torch::ones({64, 256}) / 256, none;
  const torch::Tensor means =
      FusedFeedForward::run(torch::ones({2000, 64}), {ones, none}, HiddenActivation::kReLU, 0.25, {mean, none});
  CHECK(means.mean().item<double>() == doctest::Approx(1.0).epsilon(0.01));
  CHECK(means.std().item<double>() > 0.01);
  CHECK(FusedFeedForward::run(torch::ones({200, 64}), {ones, none}, HiddenActivation::kReLU, 1.0, {mean, none})
            .eq(0)
            .all()
            .item<bool>());
}

TEST_CASE("fused feed-forward: it is not used where it cannot compute or is slower") {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto is_faster = [](const Tensors& all) {
    return FusedFeedForward::is_faster(all[0], {all[1], all[2]}, {all[3], all[4]});
  };
  const Tensors all = network(200, 64, 128, true);
  CHECK(is_faster(all) == attend::detail::is_measured(attend::detail::available_instruction_set()));
  CHECK_FALSE(is_faster(network(20, 64, 128, true)));
  CHECK_FALSE(is_faster(network(200, 60, 128, true)));
  CHECK_FALSE(is_faster(network(200, 64, 100, true)));
  CHECK_FALSE(is_faster(in_float64(all)));
  Tensors transposed = all;
  transposed[0] = torch::randn({64, 200}).t();
  CHECK_FALSE(is_faster(transposed));
  for (const std::size_t bias : {2, 4}) {
    Tensors strided = all;
    strided[bias] = torch::randn({all[bias].size(0), 2}).select(1, 1);
    CHECK_FALSE(is_faster(strided));
  }
  const attend::test::Autocast autocast;
  CHECK_FALSE(is_faster(all));
  at::set_num_threads(threads);
}

TEST_CASE("fused layer norm: output and all gradients are as accurate as torch's, with and without a branch") {
  torch::manual_seed(4);
  for (const std::int64_t width : {5, 64, 300}) {
    for (const bool is_affine : {false, true}) {
      CAPTURE(width);
      CAPTURE(is_affine);
      const auto leaf = [&](torch::IntArrayRef sizes) { return torch::randn(sizes).requires_grad_(); };
      Tensors all{leaf({3, 170, width}), leaf({3, 170, width}), torch::Tensor(), torch::Tensor()};
      if (is_affine) {
        all[2] = leaf({width});
        all[3] = leaf({width});
      }
      const Tensors exact = in_float64(all);
      const std::int64_t shape[] = {width};
      const torch::Tensor weights[] = {torch::randn({3, 170, width}), torch::randn({3, 170, width})};
      const auto norm_of = [&](const Tensors& t) { return Norm{shape, t[2], t[3], 1e-5}; };
      const auto by_torch = [&](const Tensors& t) { return torch::layer_norm(t[0] + t[1], shape, t[2], t[3], 1e-5); };
      {
        const OperatorLog log;
        FusedLayerNorm::add(all[0], all[1], 0.0, norm_of(all));
        CHECK(log.count("aten::native_layer_norm") ==
              (attend::detail::is_measured(attend::detail::available_instruction_set()) ? 0 : 1));
      }
      // Gradients of the norm, of the sum, and of both.
      for (const auto& [of_norm, of_sum] : {std::pair(1.0, 0.0), std::pair(0.0, 1.0), std::pair(1.0, 2.0)}) {
        CAPTURE(of_norm);
        CAPTURE(of_sum);
        const auto loss = [&](const torch::Tensor& normed, const torch::Tensor& sum) {
          torch::Tensor result;
          if (of_norm != 0) result = (of_norm * normed * weights[0].to(normed.dtype())).sum();
          if (of_sum != 0) {
            const torch::Tensor other = (of_sum * sum * weights[1].to(sum.dtype())).sum();
            result = result.defined() ? result + other : other;
          }
          return result;
        };
        const auto grad = [&](const torch::Tensor& y, const Tensors& t) {
          return torch::autograd::grad({y}, defined(t), {}, /*retain_graph=*/false, /*create_graph=*/false,
                                       /*allow_unused=*/true);
        };
        const attend::detail::AddedNorm y = FusedLayerNorm::add(all[0], all[1], 0.0, norm_of(all));
        check_as_accurate_as(by_torch(all), y.normed, by_torch(exact));
        CHECK(y.sum.equal(all[0] + all[1]));
        const Tensors found = grad(loss(y.normed, y.sum), all), plain = grad(loss(by_torch(all), all[0] + all[1]), all),
                      wanted = grad(loss(by_torch(exact), exact[0] + exact[1]), exact);
        for (std::size_t i = 0; i < found.size(); ++i) {
          CAPTURE(i);
          if (plain[i].defined())
            check_as_accurate_as(plain[i], found[i], wanted[i]);
          else
            CHECK((!found[i].defined() || found[i].eq(0).all().item<bool>()));
        }
      }
      const auto alone = [&](const Tensors& t) { return torch::layer_norm(t[0], shape, t[2], t[3], 1e-5); };
      check_as_accurate_as(alone(all), FusedLayerNorm::run(all[0], norm_of(all)), alone(exact));
      const torch::Tensor turned = all[0].transpose(0, 1);
      CHECK(max_difference(FusedLayerNorm::run(turned, norm_of(all)),
                           FusedLayerNorm::run(turned.contiguous(), norm_of(all))) == 0);
    }
  }
}

TEST_CASE("fused layer norm: weight and bias of any strides") {
  torch::manual_seed(7);
  const torch::Tensor x = torch::randn({2, 3, 40}), both = torch::randn({40, 2}).requires_grad_(),
                      one = torch::randn({1}).requires_grad_();
  const std::int64_t shape[] = {40};
  for (const Norm& norm : {Norm{shape, both.select(1, 0), both.select(1, 1), 1e-5},
                           Norm{shape, one.expand({40}), both.select(1, 1), 1e-5}}) {
    const Tensors leaves{both, one};
    const auto gradients = [&](const torch::Tensor& y) {
      return torch::autograd::grad({y.square().sum()}, leaves, {}, /*retain_graph=*/false, /*create_graph=*/false,
                                   /*allow_unused=*/true);
    };
    const torch::Tensor expected = torch::layer_norm(x, shape, norm.weight, norm.bias, 1e-5);
    CHECK(max_difference(FusedLayerNorm::run(x, norm), expected) < 1e-5);
    CHECK(max_difference(FusedLayerNorm::add(x, torch::zeros_like(x), 0.0, norm).normed, expected) < 1e-5);
    const Tensors found = gradients(FusedLayerNorm::run(x, norm)), wanted = gradients(expected);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      CHECK(found[i].defined() == wanted[i].defined());
      if (wanted[i].defined()) CHECK(max_difference(found[i], wanted[i]) < 1e-3);
    }
  }
}

TEST_CASE(
    "fused layer norm: dropout follows the seed, backward drops the same numbers, outputs may be changed in place") {
  torch::manual_seed(5);
  const torch::Tensor x = torch::randn({50, 70}).requires_grad_(), branch = torch::randn({50, 70}).requires_grad_(),
                      weight = torch::randn({70}).requires_grad_(), bias = torch::randn({70}).requires_grad_();
  const std::int64_t shape[] = {70};
  const Norm norm{shape, weight, bias, 1e-5};
  const auto run = [&] { return FusedLayerNorm::add(x, branch, 0.25, norm); };
  torch::manual_seed(6);
  attend::detail::AddedNorm y = run();
  torch::manual_seed(6);
  CHECK(run().normed.equal(y.normed));
  CHECK_FALSE(run().normed.equal(y.normed));
  const torch::Tensor dropped = y.sum.eq(x), kept = (y.sum - x - branch / 0.75).abs().lt(1e-5);
  CHECK((dropped | kept).all().item<bool>());
  CHECK(dropped.to(torch::kDouble).mean().item<double>() == doctest::Approx(0.25).epsilon(0.1));

  const torch::Tensor loss = (y.normed * y.sum).sum();
  const Tensors leaves{x, branch, weight, bias};
  const Tensors found = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/true);
  const Tensors wanted = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/true, /*create_graph=*/true);
  for (std::size_t i = 0; i < found.size(); ++i) CHECK(max_difference(found[i], wanted[i]) < 1e-4);

  y = run();
  y.normed.add_(1.0);
  y.normed.sum().backward();
  CHECK(bias.grad().allclose(torch::full({70}, 50.0)));
}

}  // namespace fused_transformer_test
