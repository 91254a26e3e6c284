// SPDX-License-Identifier: MIT

// The C++ of docs/transformers.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
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
  torch::Tensor rows = torch::randn({140, 512});                      // (total, E)
  torch::Tensor offsets = torch::tensor({0, 100, 140}, torch::kInt);  // two sequences: 100 and 40 rows
  torch::Tensor packed = block->forward_with(rows, attend::MultiheadAttentionCall().query_offsets(offsets));  // (total, E)

  CHECK(packed.sizes() == rows.sizes());
}

TEST_CASE("docs/transformers.md: blocks, stacks, masks and cross-attention") {
  const torch::Tensor x = torch::randn({2, 10, 64}), memory = torch::randn({2, 7, 64});
  attend::TransformerBlock block(attend::TransformerBlockOptions(attend::MultiheadAttentionOptions(64, 4),
                                                                 attend::FeedForwardOptions(64, 256)));
  torch::Tensor y = block(x);  // (N, L, 64) → (N, L, 64)

  CHECK(y.sizes() == x.sizes());
  auto attention = attend::MultiheadAttentionOptions(64, 4)
                       .num_kv_heads(2)
                       .bias(false)
                       .is_causal(true)
                       .separate_projections(true)
                       .rotary(attend::RotaryEmbeddingOptions(16));
  auto feed_forward = attend::FeedForwardOptions(64, 172)
                          .activation(attend::kSiLU)
                          .gated(true)
                          .bias(false)
                          .names(attend::FeedForwardNames::kLlama);
  attend::TransformerBlock llama(attend::TransformerBlockOptions(attention, feed_forward).norm(attend::NormKind::kRms));

  CHECK(llama(x).narrow(1, 0, 3).allclose(llama(x.narrow(1, 0, 3)), 1e-4, 1e-5));  // causal
  torch::nn::Sequential stack;
  for (int i = 0; i < 4; ++i)
    stack->push_back(attend::TransformerBlock(
        attend::TransformerBlockOptions(attention, feed_forward).norm(attend::NormKind::kRms).drop_path(0.1 * i / 3)));
  stack->push_back(attend::RMSNorm(64));
  torch::Tensor hidden = stack->forward(x);  // (N, L, 64)

  CHECK(hidden.sizes() == x.sizes());
  torch::Tensor padding = torch::zeros({2, 10}, torch::kBool);  // (N, L), true = ignore
  torch::Tensor z = block->forward_with(x, attend::MultiheadAttentionCall().key_padding_mask(padding));

  CHECK(z.allclose(y, 1e-4, 1e-5));
  attend::TransformerBlock decoder(
      attend::TransformerBlockOptions(attend::MultiheadAttentionOptions(64, 4).is_causal(true),
                                      attend::FeedForwardOptions(64, 256))
          .cross_attention(attend::MultiheadAttentionOptions(64, 4)));
  torch::Tensor decoded = decoder->forward_with(x, attend::MultiheadAttentionCall(), memory);  // memory: (N, S, 64)

  CHECK(decoded.sizes() == x.sizes());
}

// clang-format on
