// SPDX-License-Identifier: MIT

// The C++ of docs/transformers.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>

#include <doctest/doctest.h>
#include <torch/types.h>

// clang-format off: the lines are the page's

TEST_CASE("docs/transformers.md: encoder, transformer, packed rows") {
  auto layer = attend::TransformerEncoderLayerOptions(512, 8).batch_first(true).norm_first(true);
  attend::TransformerEncoder encoder(attend::TransformerEncoderOptions(layer, 6));
  torch::Tensor tokens = torch::randn({4, 100, 512});                                       // (N, L, E)
  torch::Tensor padding = torch::arange(100) >= torch::tensor({{100}, {80}, {60}, {40}});   // (N, L), true = padding
  torch::Tensor encoded = encoder(tokens, /*src_mask=*/torch::Tensor(), padding);           // (N, L, E)

  CHECK(encoded.sizes() == tokens.sizes());
  const torch::Tensor source = tokens, target = torch::randn({4, 20, 512});
  attend::Transformer transformer(attend::TransformerOptions(512, 8, 6, 6).batch_first(true));
  torch::Tensor translated = transformer->forward(source, target, {}, {}, {}, /*src_key_padding_mask=*/padding, {},
                                                  /*memory_key_padding_mask=*/padding, /*src_is_causal=*/false,
                                                  /*tgt_is_causal=*/true);  // (N, T, E)

  CHECK(translated.sizes() == target.sizes());
  attend::TransformerEncoderLayer block(layer);
  torch::Tensor rows = torch::randn({140, 512});                                  // (total, E)
  torch::Tensor offsets = torch::tensor({0, 100, 140}, torch::kInt);              // two sequences: 100 and 40 rows
  torch::Tensor packed = block->forward_packed(rows, offsets, /*is_causal=*/true);  // (total, E)

  CHECK(packed.sizes() == rows.sizes());
}

// clang-format on
