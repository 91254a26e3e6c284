// SPDX-License-Identifier: MIT
#include <attend/layers/drop_path.h>
#include <attend/layers/feed_forward.h>
#include <attend/layers/layer_scale.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using attend::DropPath;
using attend::FeedForward;
using attend::FeedForwardNames;
using attend::FeedForwardOptions;
using attend::LayerScale;
using attend::LayerScaleOptions;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::Refused;

namespace feed_forward_test {
namespace {

using Tensors = std::vector<torch::Tensor>;
using Function = std::function<torch::Tensor(const torch::Tensor&)>;

/// The formula, with the parameters of a layer.
torch::Tensor by_formula(FeedForward layer, const Function& activation, const torch::Tensor& x) {
  const auto parameters = layer->named_parameters();
  const auto project = [&](const char* name, const torch::Tensor& of) {
    const torch::Tensor* const bias = parameters.find(std::string(name) + ".bias");
    return at::linear(of, parameters[std::string(name) + ".weight"], bias == nullptr ? torch::Tensor() : *bias);
  };
  const std::int64_t hidden = layer->options.hidden_dim();
  if (layer->options.names() == FeedForwardNames::kLlama) {
    const torch::Tensor up = project("up_proj", x);
    return project("down_proj", layer->options.gated() ? activation(project("gate_proj", x)) * up : activation(up));
  }
  const torch::Tensor first = project("linear1", x);
  if (!layer->options.gated()) return project("linear2", activation(first));
  return project("linear2", activation(first.narrow(-1, 0, hidden)) * first.narrow(-1, hidden, hidden));
}

Tensors results_of(FeedForward layer, const Function& forward, const torch::Tensor& x, const torch::Tensor& given) {
  Tensors leaves = layer->parameters();
  leaves.push_back(x.detach().to(layer->down->weight.scalar_type()).requires_grad_());
  const torch::Tensor y = forward(leaves.back());
  Tensors results = torch::autograd::grad({y}, leaves, {given.to(y.scalar_type())});
  results.push_back(y);
  return results;
}

}  // namespace

TEST_CASE("FeedForward: outputs and gradients follow the formula, for every activation, gate, bias and names") {
  struct Named {
    attend::Activation activation;
    Function function;
  };
  struct Size {
    std::int64_t rows, width;
  };
  const Named activations[] = {
      {torch::kReLU, [](const torch::Tensor& x) { return x.clamp_min(0); }},
      {torch::kGELU, [](const torch::Tensor& x) { return at::gelu(x); }},
      {attend::kGELUTanh, [](const torch::Tensor& x) { return at::gelu(x, "tanh"); }},
      {attend::kSiLU, [](const torch::Tensor& x) { return x * x.sigmoid(); }},
      {attend::kReLUSquared, [](const torch::Tensor& x) { return x.clamp_min(0).pow(2); }},
  };
  for (const Named& named : activations)
    for (const bool gated : {false, true})
      for (const bool bias : {false, true})
        for (const FeedForwardNames names : {FeedForwardNames::kTorch, FeedForwardNames::kLlama})
          for (const auto& [rows, width] : {Size{9, 16}, Size{9, 7}, Size{200, 64}}) {  // fused: products, none, all
            FeedForward layer(
                FeedForwardOptions(width, 2 * width).activation(named.activation).gated(gated).bias(bias).names(names));
            CAPTURE(layer->options.activation());
            CAPTURE(gated);
            torch::manual_seed(1);
            const torch::Tensor x = torch::randn({2, rows, width}), given = torch::randn({2, rows, width});
            const auto ours = [&](const torch::Tensor& of) { return layer(of); };
            const auto formula = [&](const torch::Tensor& of) { return by_formula(layer, named.function, of); };
            const Tensors dense = results_of(layer, formula, x, given), results = results_of(layer, ours, x, given);
            layer->to(torch::kDouble);
            const Tensors exact = results_of(layer, formula, x, given);
            for (std::size_t i = 0; i < exact.size(); ++i) check_as_accurate_as(dense[i], results[i], exact[i]);
            const Tensors in_float64 = results_of(layer, ours, x, given);
            for (std::size_t i = 0; i < exact.size(); ++i) check_equal_in_float64(in_float64[i], exact[i]);
          }
}

TEST_CASE("FeedForward: with kReference, as an option or by a guard, it computes exactly torch's operations") {
  torch::manual_seed(1);
  FeedForward layer(FeedForwardOptions(64, 128).activation(torch::kGELU));
  const torch::Tensor x = torch::randn({400, 64}).requires_grad_();
  const torch::Tensor formula = by_formula(
      layer, [](const torch::Tensor& of) { return at::gelu(of); }, x);
  {
    const attend::BackendGuard guard(attend::Backend::kReference);
    CHECK(layer(x).equal(formula));
  }
  layer->options.backend(attend::Backend::kReference);
  CHECK(layer(x).equal(formula));
}

TEST_CASE("FeedForward: dropout is applied to the hidden layer in training mode only") {
  FeedForward layer(FeedForwardOptions(4, 8).dropout(1.0));
  const torch::Tensor x = torch::randn({2, 4});
  CHECK(layer(x).equal(layer->down->bias.expand({2, 4})));
  layer->eval();
  CHECK_FALSE(layer(x).equal(layer->down->bias.expand({2, 4})));
}

TEST_CASE("LayerScale: x is multiplied by gamma, which begins at init") {
  LayerScale scale(LayerScaleOptions(3).init(0.5));
  const torch::Tensor x = torch::randn({2, 4, 3}).requires_grad_();
  const torch::Tensor y = scale(x);
  CHECK(y.equal(x * 0.5));
  y.sum().backward();
  CHECK(x.grad().equal(torch::full_like(x, 0.5)));
  CHECK(attend::test::max_difference(scale->gamma.grad(), x.sum({0, 1})) < 1e-5);
  CHECK(LayerScale(2)->gamma.equal(torch::full({2}, 1e-5)));
}

TEST_CASE("DropPath: whole batch entries are dropped, the others are divided by 1 - p, as in torchvision") {
  DropPath drop(0.25);
  const torch::Tensor x = torch::randn({1000, 2, 3});
  torch::manual_seed(3);
  const torch::Tensor y = drop(x);
  // torchvision.ops.stochastic_depth(x, p, "row")
  torch::manual_seed(3);
  const torch::Tensor noise = torch::empty({1000, 1, 1}).bernoulli_(0.75).div_(0.75);
  CHECK(y.equal(x * noise));
  drop->eval();
  CHECK(drop(x).equal(x));
  CHECK(DropPath(1.0)(x).equal(torch::zeros_like(x)));
  CHECK(DropPath()(x).equal(x));
}

TEST_CASE("FeedForward, LayerScale and DropPath: clones, archives, Sequential and printing") {
  const auto options =
      FeedForwardOptions(4, 8).activation(attend::kSiLU).gated(true).names(FeedForwardNames::kLlama).bias(false);
  torch::nn::Sequential one(FeedForward(options), LayerScale(LayerScaleOptions(4).init(2)), DropPath(0.5)),
      other(FeedForward(options), LayerScale(4), DropPath(0.5));
  one->eval();
  other->eval();
  const torch::Tensor x = torch::randn({2, 5, 4});
  const torch::Tensor y = one->forward(x);
  CHECK(std::dynamic_pointer_cast<torch::nn::SequentialImpl>(one->clone())->forward(x).equal(y));
  std::stringstream archive;
  torch::save(one, archive);
  torch::load(other, archive);
  CHECK(other->forward(x).equal(y));
  std::ostringstream stream;
  stream << *FeedForward(options) << *LayerScale(4) << *DropPath(0.5);
  CHECK(stream.str() ==
        "attend::FeedForward(4, 8, activation=SiLU, gated=true, bias=false, dropout=0, names=kLlama)(\n"
        "  (gate_proj): torch::nn::Linear(in_features=4, out_features=8, bias=false)\n"
        "  (up_proj): torch::nn::Linear(in_features=4, out_features=8, bias=false)\n"
        "  (down_proj): torch::nn::Linear(in_features=8, out_features=4, bias=false)\n"
        ")attend::LayerScale(4, init=1e-05)attend::DropPath(p=0.5)");
}

TEST_CASE("FeedForward, LayerScale and DropPath: bad input is refused with the rule and the values") {
  FeedForward layer(4, 8);
  LayerScale scale(4);
  DropPath drop(0.5);
  const torch::Tensor narrow = torch::randn({2, 3}), wide = torch::randn({2, 4});
  const auto load = [](FeedForwardOptions from, FeedForwardOptions to) {
    return [=] {
      FeedForward saved(from), loaded(to);
      std::stringstream archive;
      torch::save(saved, archive);
      torch::load(loaded, archive);
    };
  };
  const FeedForwardOptions options(4, 8);
  const Refused cases[] = {
      {"attend::FeedForward: embed_dim (0) must be at least 1", false, [] { FeedForward(0, 8); }},
      {"attend::FeedForward: hidden_dim (-1) must be at least 1", false, [] { FeedForward(4, -1); }},
      {"attend::FeedForward: dropout (1.5) must be a probability from 0 to 1", false,
       [] { FeedForward{FeedForwardOptions(4, 8).dropout(1.5)}; }},
      {"attend::FeedForward: x must be a tensor, got an undefined one", false,
       [=]() mutable { layer(torch::Tensor()); }},
      {"attend::FeedForward: the last size of x must be embed_dim (4), got [2, 3]", false,
       [=]() mutable { layer(narrow); }},
      {"attend::FeedForward: x (Double) must have the dtype of the weights (Float)", true,
       [=]() mutable { layer(wide.to(torch::kDouble)); }},
      {"attend::FeedForward: cannot load: linear1.bias is [16] in the archive and [8] in this layer. The saved "
       "layer has a different hidden_dim or gated.",
       false, load(FeedForwardOptions(options).gated(true), options)},
      {"attend::FeedForward: cannot load: the archive has no down_proj.bias, which this layer has. The saved layer has "
       "a "
       "different names, gated or bias.",
       false, load(options, FeedForwardOptions(options).names(FeedForwardNames::kLlama))},
      {"attend::LayerScale: dim (0) must be at least 1", false, [] { LayerScale(0); }},
      {"attend::LayerScale: init (inf) must be finite", false, [] { LayerScale{LayerScaleOptions(2).init(INFINITY)}; }},
      {"attend::LayerScale: the last size of x must be dim (4), got [2, 3]", false, [=]() mutable { scale(narrow); }},
      {"attend::DropPath: p (1.5) must be a probability from 0 to 1", false, [] { DropPath(1.5); }},
      {"attend::DropPath: x must have a batch dimension, got 0-d", false, [=]() mutable { drop(torch::tensor(1.0f)); }},
      {"attend::DropPath: x (Long) must have a floating dtype", true,
       [=]() mutable { drop(torch::ones({2}, torch::kLong)); }},
  };
  for (const Refused& each : cases) each.check();
}

}  // namespace feed_forward_test
