// SPDX-License-Identifier: MIT

// Tests docs/torch_nn_defects.md: the behaviour of the transformer layers of torch::nn, and that of attend's. If
// LibTorch fixes a defect, the test says so; then remove the row from that page.

#include <attend/layers/transformer.h>

#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/autocast.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/transformer.h>
#include <torch/nn/modules/transformercoder.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/serialize.h>

#include <cstddef>
#include <limits>
#include <sstream>
#include <string>

using attend::test::max_difference;
using attend::test::message_of;

namespace transformer_stock_and_ours_test {
namespace {

constexpr const char* kMended = "torch::nn does this right now: take the row out of docs/torch_nn_defects.md";

/// Both layers with the same parameters: d_model 16, 4 heads.
template <class Stock, class Ours>
struct Pair {
  Stock stock{nullptr};
  Ours ours{nullptr};

  template <class StockOptions, class OurOptions>
  Pair(const StockOptions& stock_options, const OurOptions& our_options) {
    torch::manual_seed(0);
    stock = Stock(stock_options);
    torch::manual_seed(0);
    ours = Ours(our_options);
  }
};

using EncoderLayers = Pair<torch::nn::TransformerEncoderLayer, attend::TransformerEncoderLayer>;

EncoderLayers encoder_layers() {
  return {torch::nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0.0),
          attend::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0.0)};
}

torch::Tensor sequence() {
  torch::manual_seed(1);
  return torch::randn({4, 2, 16});
}

torch::Tensor later_keys() { return torch::ones({4, 4}, torch::kBool).triu(1); }

}  // namespace

TEST_CASE("Transformer: torch::nn adds a bool tgt_mask to the scores, so the decoder sees the future; attend masks") {
  Pair<torch::nn::Transformer, attend::Transformer> pair(
      torch::nn::TransformerOptions(16, 4, 1, 1).dim_feedforward(32).dropout(0.0),
      attend::TransformerOptions(16, 4, 1, 1).dim_feedforward(32).dropout(0.0));
  const torch::Tensor src = sequence(), tgt = torch::randn({4, 2, 16}), none;
  torch::Tensor changed = tgt.clone();
  changed[3] += 1;
  const auto change = [&](auto& model) {
    return max_difference(model(src, changed, none, later_keys())[0], model(src, tgt, none, later_keys())[0]);
  };
  const double stock = change(pair.stock), ours = change(pair.ours);
  MESSAGE("the first output's change with the last token: stock " << stock << ", ours " << ours);
  CHECK_MESSAGE(stock > 0.01, kMended);
  CHECK(ours == 0);
}

TEST_CASE(
    "TransformerEncoderLayer: torch::nn refuses a mask for each head and an input without a batch; attend does not") {
  EncoderLayers pair = encoder_layers();
  const torch::Tensor x = sequence();
  const torch::Tensor for_each_head = torch::randn({8, 4, 4});
  CHECK_MESSAGE(message_of<c10::Error>([&] {
                  pair.stock(x, for_each_head);
                }).find("doesn't match the broadcast shape") != std::string::npos,
                kMended);
  CHECK(pair.ours(x, for_each_head).sizes() == x.sizes());
  CHECK_MESSAGE(
      message_of<c10::Error>([&] { pair.stock(x.select(1, 0)); }).find("INTERNAL ASSERT FAILED") != std::string::npos,
      kMended);
  CHECK(max_difference(pair.ours(x.select(1, 0)), pair.ours(x).select(1, 0)) < 1e-5);
}

TEST_CASE("TransformerEncoderLayer: a fully padded batch entry spoils all gradients in torch::nn, none in attend") {
  EncoderLayers pair = encoder_layers();
  const torch::Tensor x = sequence(), padding = torch::tensor({{0, 0, 0, 0}, {1, 1, 1, 1}}).to(torch::kBool), none;
  pair.stock(x, none, padding).select(1, 0).sum().backward();
  pair.ours(x, none, padding).select(1, 0).sum().backward();
  CHECK_MESSAGE(pair.stock->self_attn->in_proj_weight.grad().isnan().any().item<bool>(), kMended);
  CHECK_FALSE(pair.ours->self_attn->in_proj_weight.grad().isnan().any().item<bool>());
  CHECK_FALSE(pair.ours(x, none, padding).isnan().any().item<bool>());
}

TEST_CASE("TransformerEncoderLayer: src_key_padding_mask in bfloat16 and under autocast throws in torch::nn only") {
  const torch::Tensor x = sequence(), padding = torch::tensor({{0, 0, 0, 0}, {0, 0, 1, 1}}).to(torch::kBool), none;
  const auto check = [&](EncoderLayers& pair, const torch::Tensor& input) {
    CHECK_MESSAGE(message_of<c10::NotImplementedError>([&] { pair.stock(input, none, padding); }).find("masked_fill") !=
                      std::string::npos,
                  kMended);
    CHECK(pair.ours(input, none, padding).sizes() == x.sizes());
  };
  EncoderLayers pair = encoder_layers();
  {
    const attend::test::Autocast autocast;
    check(pair, x);
  }
  pair.stock->to(torch::kBFloat16);
  pair.ours->to(torch::kBFloat16);
  check(pair, x.to(torch::kBFloat16));
}

TEST_CASE(
    "TransformerEncoderLayer: torch::nn computes the attention weights and drops them; attend allocates no (L, L)") {
  EncoderLayers pair = encoder_layers();
  const torch::Tensor x = torch::randn({1024, 1, 16});
  const torch::NoGradGuard no_grad;
  const auto peak = [&](auto& layer) {
    const attend::test::AllocatorPeak memory;
    layer(x);
    return static_cast<double>(memory.peak()) / (1 << 20);
  };
  const double stock = peak(pair.stock), ours = peak(pair.ours);
  MESSAGE("MiB for a forward pass, L 1,024, 4 heads: stock " << stock << ", ours " << ours);
  CHECK_MESSAGE(stock > 16, kMended);
  CHECK(ours < 4);
}

TEST_CASE("TransformerEncoder: without layers and norm torch::nn returns an undefined tensor, attend the input") {
  torch::nn::TransformerEncoder stock(
      torch::nn::TransformerEncoderOptions(torch::nn::TransformerEncoderLayerOptions(16, 4), 0));
  attend::TransformerEncoder ours(attend::TransformerEncoderOptions(attend::TransformerEncoderLayerOptions(16, 4), 0));
  const torch::Tensor x = sequence();
  CHECK_MESSAGE(!stock(x).defined(), kMended);
  CHECK(ours(x).equal(x));
}

TEST_CASE("TransformerEncoderLayer: torch::load takes over other sizes in torch::nn; attend names the option") {
  std::stringstream stream;
  torch::save(torch::nn::TransformerEncoderLayer(torch::nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(64)),
              stream);
  EncoderLayers pair = encoder_layers();
  torch::load(pair.stock, stream);
  CHECK_MESSAGE(pair.stock->linear1->weight.size(0) == 64, kMended);
  stream.seekg(0);
  CHECK(message_of<c10::ValueError>([&] { torch::load(pair.ours, stream); }) ==
        "attend::TransformerEncoderLayer: cannot load: linear1.bias is [64] in the archive and [32] in this layer. The "
        "saved layer has a different dim_feedforward.");
  CHECK(pair.ours->linear1->weight.size(0) == 32);
}

}  // namespace transformer_stock_and_ours_test
