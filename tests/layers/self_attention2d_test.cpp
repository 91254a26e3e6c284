// SPDX-License-Identifier: MIT
#include <attend/layers/self_attention2d.h>

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/layers.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>

#include <map>
#include <string>

using attend::Backend;
using attend::ImageAxis;
using attend::SelfAttention2d;
using attend::SelfAttention2dOptions;
using attend::test::check_gradients;
using attend::test::copy_parameters;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::max_difference;
using attend::test::reference_data;
using attend::test::Refused;

TEST_CASE("SelfAttention2d: outputs, attention_map and gradients equal Einstein sums in Python, for each axis") {
  const std::map<std::string, torch::Tensor> data = reference_data("position_bias");
  for (const auto& [name, axis] : {std::pair<std::string, ImageAxis>{"both", ImageAxis::kBoth},
                                   {"height", ImageAxis::kHeight},
                                   {"width", ImageAxis::kWidth}})
    for (const Backend backend : kAllBackendsWithAllOptions) {
      const std::string prefix = "self_attention2d/" + name + "/";
      CAPTURE(prefix);
      CAPTURE(backend);
      SelfAttention2d layer(SelfAttention2dOptions(5, 6, 4).num_heads(2).scale(0.7).axis(axis).backend(backend));
      layer->to(torch::kDouble);
      copy_parameters(data, prefix, *layer);
      const torch::Tensor x = data.at(prefix + "x").clone().requires_grad_();
      const torch::Tensor y = layer(x);
      CHECK(max_difference(y, data.at(prefix + "output")) < 1e-12);
      y.backward(data.at(prefix + "output_gradient"));
      CHECK(max_difference(x.grad(), data.at(prefix + "x_gradient")) < 1e-12);
      check_gradients(data, prefix, *layer);
      // (N, H, height, width, positions) in Python; query positions of a column or row are a dimension of their own.
      const torch::Tensor expected = data.at(prefix + "map");
      const torch::Tensor map = axis == ImageAxis::kBoth     ? expected.flatten(2, 3)
                                : axis == ImageAxis::kHeight ? expected.permute({0, 3, 1, 2, 4}).flatten(0, 1)
                                                             : expected.permute({0, 2, 1, 3, 4}).flatten(0, 1);
      CHECK(max_difference(layer->attention_map(x), map) < 1e-12);
    }
}

TEST_CASE("SelfAttention2d: two layers in Sequential are axial attention, and every pixel reaches every other") {
  const auto options = [](ImageAxis axis) { return SelfAttention2dOptions(3, 3, 4).axis(axis); };
  torch::nn::Sequential axial(SelfAttention2d(options(ImageAxis::kHeight)),
                              SelfAttention2d(options(ImageAxis::kWidth)));
  const torch::Tensor x = torch::randn({1, 3, 4, 5}).requires_grad_();
  axial->forward(x).index({0, 0, 3, 4}).backward();
  CHECK(x.grad().abs().sum(1).gt(0).all().item<bool>());
  const torch::Tensor z = x.detach().clone().requires_grad_();
  SelfAttention2d(options(ImageAxis::kWidth))->forward(z).index({0, 0, 3, 4}).backward();
  CHECK(z.grad().abs().sum(1).gt(0).sum().item<std::int64_t>() == 5);
}

TEST_CASE("SelfAttention2d: options and images that do not fit are refused") {
  SelfAttention2d layer(4, 6, 8);
  const auto image = [&](const torch::Tensor& x) { return [=]() mutable { layer(x); }; };
  const Refused cases[] = {
      {"attend::SelfAttention2d: in_channels (0) must be at least 1", false, [] { SelfAttention2d(0, 6, 8); }},
      {"attend::SelfAttention2d: out_channels (0) must be at least 1", false, [] { SelfAttention2d(4, 0, 8); }},
      {"attend::SelfAttention2d: key_channels (0) must be at least 1", false, [] { SelfAttention2d(4, 6, 0); }},
      {"attend::SelfAttention2d: num_heads (0) must be at least 1", false,
       [] { SelfAttention2d(SelfAttention2dOptions(4, 6, 8).num_heads(0)); }},
      {"attend::SelfAttention2d: key_channels (8) must be divisible by num_heads (3)", false,
       [] { SelfAttention2d(SelfAttention2dOptions(4, 6, 8).num_heads(3)); }},
      {"attend::SelfAttention2d: out_channels (6) must be divisible by num_heads (4)", false,
       [] { SelfAttention2d(SelfAttention2dOptions(4, 6, 8).num_heads(4)); }},
      {"attend::SelfAttention2d: x must be a tensor (N, 4, height, width), got an undefined one", false, image({})},
      {"attend::SelfAttention2d: x must be 4-d (N, 4, height, width), got 3-d [2, 4, 9]", false,
       image(torch::zeros({2, 4, 9}))},
      {"attend::SelfAttention2d: x must have 4 channels (N, 4, height, width), got [2, 3, 9, 9]", false,
       image(torch::zeros({2, 3, 9, 9}))},
      {"attend::SelfAttention2d: x must have a height and width of at least 1, got [2, 4, 0, 9]", false,
       image(torch::zeros({2, 4, 0, 9}))},
      {"attend::SelfAttention2d: x (Double) must have the dtype of the weights (Float)", true,
       image(torch::zeros({2, 4, 9, 9}, torch::kDouble))},
      {"attend::SelfAttention2d: x must be dense, got the layout Sparse", true,
       image(torch::zeros({2, 4, 9, 9}).to_sparse())},
  };
  for (const Refused& c : cases) c.check();
}
