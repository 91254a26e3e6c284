// SPDX-License-Identifier: MIT
#include <attend/layers/transformer_encoder_layer.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <array>

namespace transformer_packed_test {

using attend::TransformerEncoderLayer;
using attend::TransformerEncoderLayerOptions;

TEST_CASE("TransformerEncoderLayer::forward_with(): the sequences of a packed batch do not see each other") {
  for (const bool norm_first : {false, true}) {
    CAPTURE(norm_first);
    torch::manual_seed(1);
    TransformerEncoderLayer layer(
        TransformerEncoderLayerOptions(16, 4).dim_feedforward(24).activation(torch::kGELU).norm_first(norm_first));
    layer->to(torch::kDouble);
    layer->eval();
    const torch::Tensor packed = torch::randn({9, 16}, torch::kDouble);
    const torch::Tensor offsets = torch::tensor({0, 4, 5, 9}, torch::kInt);
    const torch::Tensor together = layer->forward_with(packed, attend::MultiheadAttentionCall().query_offsets(offsets));
    for (const auto& [begin, end] : std::array<std::array<int, 2>, 3>{{{0, 4}, {4, 5}, {5, 9}}})
      attend::test::check_equal_in_float64(together.slice(0, begin, end), layer->forward(packed.slice(0, begin, end)));
  }
}

TEST_CASE("TransformerEncoderLayer::forward_with(): masks of the call are those of forward()") {
  torch::manual_seed(1);
  TransformerEncoderLayer layer(TransformerEncoderLayerOptions(16, 4).dim_feedforward(24).batch_first(true));
  layer->to(torch::kDouble);
  layer->eval();
  const torch::Tensor x = torch::randn({2, 5, 16}, torch::kDouble), padding = torch::zeros({2, 5}, torch::kBool);
  padding[1][4] = true;
  attend::test::check_equal_in_float64(
      layer->forward_with(x, attend::MultiheadAttentionCall().key_padding_mask(padding).is_causal(true)),
      layer->forward(x, /*src_mask=*/{}, padding, /*is_causal=*/true));
}

}  // namespace transformer_packed_test
