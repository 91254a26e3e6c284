// SPDX-License-Identifier: MIT

// Tests what the transformer layers and LayerNorm promise besides equality with torch: packing, dropout, the fused
// kernels, options that change, errors.

#include <attend/layers/transformer.h>

#include "support/accuracy.h"
#include "support/errors.h"
#include "support/operator_log.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using attend::test::check_throws;
using attend::test::max_difference;
using attend::test::OperatorLog;

namespace transformer_test {
namespace {

attend::TransformerEncoderLayerOptions layer_options(double dropout = 0.0) {
  return attend::TransformerEncoderLayerOptions(64, 4).dim_feedforward(128).dropout(dropout).batch_first(true);
}

}  // namespace

TEST_CASE("TransformerEncoderLayer::forward_with(): each sequence of a packed batch gets what it gets alone, also causally") {
  torch::manual_seed(1);
  attend::TransformerEncoderLayer layer(layer_options());
  const torch::Tensor rows = torch::randn({12, 64}).requires_grad_();
  const torch::Tensor offsets = torch::tensor({0, 5, 5, 12}, torch::kInt);
  for (const bool is_causal : {false, true}) {
    CAPTURE(is_causal);
    const torch::Tensor packed = layer->forward_with(
        rows, attend::MultiheadAttentionCall().query_offsets(offsets).is_causal(is_causal));
    const torch::Tensor none;
    const torch::Tensor alone = torch::cat(
        {layer(rows.slice(0, 0, 5), none, none, is_causal), layer(rows.slice(0, 5, 12), none, none, is_causal)});
    CHECK(max_difference(packed, alone) < 1e-5);
    const auto gradient = [&](const torch::Tensor& y) { return torch::autograd::grad({y.pow(3).sum()}, {rows})[0]; };
    CHECK(max_difference(gradient(packed), gradient(alone)) < 1e-3);
  }
}

TEST_CASE("TransformerEncoder: enable_nested_tensor packs in inference only, for padding anywhere, and causally") {
  torch::manual_seed(2);
  attend::TransformerEncoder encoder(attend::TransformerEncoderOptions(layer_options().norm_first(true), 2));
  const torch::Tensor x = torch::randn({2, 6, 64}), none;
  const torch::Tensor padding = torch::tensor({{0, 1, 0, 0, 0, 1}, {1, 1, 1, 1, 1, 1}}).to(torch::kBool);
  const auto has_zeros = [&](const torch::Tensor& y) { return y.index({padding}).eq(0).all().item<bool>(); };
  const torch::Tensor expected = encoder(x, none, padding), causal = encoder(x, none, padding, true);
  CHECK_FALSE(has_zeros(expected));  // training mode
  encoder->eval();
  CHECK_FALSE(has_zeros(encoder(x, none, padding)));  // gradients are recorded
  {
    const torch::NoGradGuard no_grad;
    CHECK_FALSE(has_zeros(encoder(x, torch::zeros({6, 6}), padding)));
    for (const auto dtype : {torch::kBool, torch::kByte}) {
      CAPTURE(dtype);
      const torch::Tensor y = encoder(x, none, padding.to(dtype));
      CHECK(has_zeros(y));
      CHECK(max_difference(y[0].index({padding[0].logical_not()}), expected[0].index({padding[0].logical_not()})) <
            1e-5);
      CHECK(max_difference(encoder(x, none, padding.to(dtype), true)[0].index({padding[0].logical_not()}),
                           causal[0].index({padding[0].logical_not()})) < 1e-5);
    }
    CHECK(max_difference(encoder(x, none, torch::zeros({2, 6}, torch::kBool)), encoder(x)) < 1e-5);
  }
  for (torch::Tensor& parameter : encoder->parameters()) parameter.set_requires_grad(false);
  CHECK(has_zeros(encoder(x, none, padding)));  // nothing requires a gradient
  encoder->options.enable_nested_tensor(false);
  CHECK_FALSE(has_zeros(encoder(x, none, padding)));
}

TEST_CASE("transformer layers: dropout acts in training mode only, follows the seed, and its modules may be changed") {
  attend::TransformerEncoderLayer layer(layer_options(/*dropout=*/0.5));
  const torch::Tensor x = torch::randn({2, 300, 64});
  const auto run = [&] {
    torch::manual_seed(3);
    return layer(x);
  };
  CHECK(run().equal(run()));
  CHECK_FALSE(run().equal(layer(x)));
  const torch::Tensor dropped = run();
  layer->dropout->options.p(0.0);
  CHECK_FALSE(run().equal(dropped));
  layer->eval();
  CHECK(run().equal(layer(x)));
}

TEST_CASE("transformer layers: with the reference backend torch's operations compute them, with the same results") {
  torch::manual_seed(4);
  for (const bool norm_first : {false, true}) {
    CAPTURE(norm_first);
    attend::TransformerEncoderLayer layer(layer_options().norm_first(norm_first));
    const torch::Tensor x = torch::randn({2, 300, 64});
    torch::Tensor fused;
    {
      const OperatorLog log;
      fused = layer(x);
      if (attend::detail::is_measured(attend::detail::available_instruction_set())) {
        CHECK(log.count("aten::relu") == 0);
        CHECK(log.count("aten::layer_norm") == 0);
      }
    }
    const attend::BackendGuard guard(attend::Backend::kReference);
    const OperatorLog log;
    CHECK(max_difference(layer(x), fused) < 1e-4);
    CHECK(log.count("aten::relu") == 1);
    CHECK(log.count("aten::layer_norm") == 2);
  }
}

TEST_CASE("transformer layers: errors name the class, the rule and the value") {
  using Options = attend::TransformerEncoderLayerOptions;
  const auto layer = [](const Options& options) { attend::TransformerEncoderLayer{options}; };
  const std::string name = "attend::TransformerEncoderLayer: ";
  const struct {
    std::string expected;
    std::function<void()> call;
  } values[] = {
      {name + "d_model (0) must be at least 1", [&] { layer(Options(0, 1)); }},
      {name + "nhead (-1) must be at least 1", [&] { layer(Options(4, -1)); }},
      {name + "d_model (10) must be divisible by nhead (3)", [&] { layer(Options(10, 3)); }},
      {name + "dim_feedforward (0) must be at least 1", [&] { layer(Options(4, 2).dim_feedforward(0)); }},
      {name + "dropout (1.5) must be a probability from 0 to 1", [&] { layer(Options(4, 2).dropout(1.5)); }},
      {name + "layer_norm_eps (-1) must be finite and at least 0", [&] { layer(Options(4, 2).layer_norm_eps(-1)); }},
      {"attend::TransformerDecoderLayer: d_model (10) must be divisible by nhead (3)",
       [] { attend::TransformerDecoderLayer{attend::TransformerDecoderLayerOptions(10, 3)}; }},
      {"attend::Transformer: d_model (10) must be divisible by nhead (3)",
       [] { attend::Transformer{attend::TransformerOptions(10, 3)}; }},
      {"attend::TransformerEncoder: num_layers (-1) must be at least 0",
       [] { attend::TransformerEncoder{attend::TransformerEncoderOptions(Options(4, 2), -1)}; }},
      {"attend::TransformerEncoder: encoder_layer must be a layer, got an empty one",
       [] {
         attend::TransformerEncoder{attend::TransformerEncoderOptions(attend::TransformerEncoderLayer(nullptr), 1)};
       }},
      {"attend::TransformerDecoder: num_layers (-1) must be at least 0",
       [] {
         attend::TransformerDecoder{
             attend::TransformerDecoderOptions(attend::TransformerDecoderLayerOptions(4, 2), -1)};
       }},
      {"attend::LayerNorm: normalized_shape must have at least one size",
       [] { attend::LayerNorm{attend::LayerNormOptions(std::vector<std::int64_t>{})}; }},
      {"attend::LayerNorm: normalized_shape (0) must be at least 1",
       [] { attend::LayerNorm{attend::LayerNormOptions({0})}; }},
      {"attend::LayerNorm: eps (-1) must be finite and at least 0",
       [] { attend::LayerNorm{attend::LayerNormOptions({4}).eps(-1)}; }},
      {"attend::LayerNorm: the last sizes of x must be normalized_shape [4], got [2, 3]",
       [] {
         attend::LayerNorm(attend::LayerNormOptions({4}))(torch::randn({2, 3}));
       }},
      {"attend::Transformer: sz (-1) must be at least 0",
       [] { attend::TransformerImpl::generate_square_subsequent_mask(-1); }},
  };
  for (const auto& each : values) check_throws<c10::ValueError>(each.expected, each.call);

  attend::TransformerEncoderLayer encoder_layer(layer_options());
  attend::TransformerDecoderLayer decoder_layer(attend::TransformerDecoderLayerOptions(64, 4));
  attend::Transformer transformer(attend::TransformerOptions(64, 4, 1, 1));
  const torch::Tensor x = torch::randn({3, 2, 64}), none;
  const struct {
    std::string expected;
    std::function<void()> call;
  } inputs[] = {
      {name + "src must be a tensor, got an undefined one", [&] { encoder_layer(none); }},
      {name + "src must be 3-d (N, length, d_model), or 2-d (length, d_model) without a batch, got 1-d [64]",
       [&] { encoder_layer(torch::randn({64})); }},
      {name + "the width of src must be d_model (64), got [2, 3, 4]",
       [&] {
         encoder_layer(torch::randn({2, 3, 4}));
       }},
      {"attend::TransformerDecoderLayer: the width of memory must be d_model (64), got [3, 2, 32]",
       [&] {
         decoder_layer(x, torch::randn({3, 2, 32}));
       }},
      {"attend::TransformerDecoderLayer: memory [3, 1, 64] must have the batch size of tgt [3, 2, 64]",
       [&] {
         decoder_layer(x, torch::randn({3, 1, 64}));
       }},
      {"attend::Transformer: tgt [3, 1, 64] must have the batch size of src [3, 2, 64]",
       [&] {
         transformer(x, torch::randn({3, 1, 64}));
       }},
      {"attend::Transformer: the width of src must be d_model (64), got [3, 2, 32]",
       [&] {
         transformer(torch::randn({3, 2, 32}), x);
       }},
      {"attend::MultiheadAttention: key_padding_mask must be (N, S) = [3, 2], got [2, 2]",
       [&] {
         encoder_layer(x, none, torch::zeros({2, 2}, torch::kBool));
       }},
  };
  for (const auto& each : inputs) check_throws<c10::ValueError>(each.expected, each.call);
  check_throws<c10::TypeError>(name + "src (Double) must have the dtype of the weights (Float)",
                               [&] { encoder_layer(x.to(torch::kDouble)); });
}

}  // namespace transformer_test
