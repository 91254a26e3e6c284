// SPDX-License-Identifier: MIT

// The C++ of docs/positions.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>
#include <attend/layers/conv_stack.h>

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/types.h>

#include <cmath>

// clang-format off: the lines are the page's

TEST_CASE("docs/positions.md: layers, functions and scores") {
  torch::Tensor x = torch::randn({8, 1, 100});  // (N, C, L)
  torch::nn::Sequential front(attend::BinaryPositions(), attend::ConvStack(8, 64, 64));
  torch::Tensor y = front->forward(x);  // (8, 64, 100): 1 + 7 channels became 64

  CHECK(y.sizes() == torch::IntArrayRef({8, 64, 100}));
  attend::SinusoidalPositions waves(attend::SinusoidalPositionsOptions(64).sine_first(true));  // default: cosine first
  attend::LearnedPositions learned(attend::LearnedPositionsOptions(64, /*max_length=*/512));
  torch::Tensor z = learned(waves(y));  // (8, 64, 100)

  CHECK(z.sizes() == torch::IntArrayRef({8, 64, 100}));
  torch::Tensor bits = attend::binary_positions(100);                                               // (7, 100)
  torch::Tensor table = attend::sinusoidal_positions(100, attend::SinusoidalPositionsOptions(64));  // (64, 100)

  CHECK(bits.sizes() == torch::IntArrayRef({7, 100}));
  torch::Tensor tokens = torch::randn({8, 100, 64});
  torch::nn::Sequential embedding(
      torch::nn::Linear(64, 64), attend::LearnedPositions(attend::LearnedPositionsOptions(64, 512).batch_first(true)));
  torch::Tensor placed = embedding->forward(tokens);  // (8, 100, 64)

  CHECK(placed.sizes() == tokens.sizes());

  const torch::Tensor q = torch::randn({1, 8, 5, 8}), k = torch::randn({1, 8, 5, 8}), v = torch::randn({1, 8, 5, 8});
  torch::Tensor bias = torch::zeros({8, 2 * 16 + 1}).requires_grad_();  // (H, 2M + 1), M = 16
  torch::Tensor output = attend::flex_attention(q, k, v, attend::RelativeBias(bias));

  attend::T5PositionBias t5(attend::T5PositionBiasOptions(8).bidirectional(false));  // 8 heads of a decoder
  torch::Tensor decoded = t5->attention(q, k, v, attend::AttentionOptions().scale(1.0).is_causal(true));
  torch::Tensor capped = attend::flex_attention(q, k, v, attend::then(attend::Softcap{30}, t5->score_mod()));

  CHECK(decoded.allclose(attend::attention(q, k, v, attend::AttentionOptions().scale(1.0).is_causal(true).attn_mask(t5->dense(5, 5))), 1e-4, 1e-5));
  CHECK(capped.allclose(attend::attention(q, k, v, attend::AttentionOptions().softcap(30).attn_mask(t5->dense(5, 5))), 1e-4, 1e-5));

  torch::Tensor sinks = torch::zeros({8}).requires_grad_();  // (H)
  torch::Tensor less = attend::attention_with_sinks(q, k, v, sinks, attend::AttentionOptions().is_causal(true));

  CHECK(less.select(2, 0).allclose(v.select(2, 0) * (q.select(2, 0) * k.select(2, 0)).sum(-1, true).div(std::sqrt(8.0)).sigmoid(), 1e-4, 1e-5));
  output.sum().backward();
  CHECK(bias.grad().defined());
}

TEST_CASE("docs/positions.md: rotary embeddings") {
  const torch::Tensor q = torch::randn({2, 8, 5, 64}), k = torch::randn({2, 8, 5, 64}), v = torch::randn({2, 8, 5, 64});
  attend::RotaryEmbedding rotary(64);  // heads of 64
  torch::Tensor attended =
      attend::attention(rotary(q), rotary(k), v, attend::AttentionOptions().is_causal(true));  // (N, H, L, 64)

  CHECK(attended.sizes() == q.sizes());
  const torch::Tensor before = attended;
  attended = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).rotary(rotary->cos_sin(k)));

  CHECK(attended.equal(before));
  auto options = attend::RotaryEmbeddingOptions(64).theta(500000).scaling(attend::Llama3RotaryScaling(8));
  attend::RotaryEmbedding llama3(options);

  const torch::Tensor image = torch::randn({2, 8, 196, 64});
  torch::Tensor later = llama3->forward(q, /*positions=*/{}, /*offset=*/100);            // positions 100 … 104
  torch::Tensor packed = llama3(q, attend::packed_positions(torch::tensor({0, 3, 5})));  // positions 0, 1, 2, 0, 1
  attend::RotaryEmbedding axial(attend::RotaryEmbeddingOptions(64).axes(2));             // rows and columns
  torch::Tensor patches = axial(image, attend::grid_positions({14, 14}));                // (N, H, 196, 64)

  CHECK(later.equal(llama3(q, torch::arange(100, 105))));
  CHECK(packed.narrow(2, 3, 1).equal(q.narrow(2, 3, 1)));  // position 0
  CHECK(patches.sizes() == image.sizes());
  torch::Tensor angles = torch::randn({5, 32}).requires_grad_();  // (L, R/2)
  torch::Tensor turned = attend::rotate(q, angles.cos(), angles.sin(), attend::RotaryLayout::kInterleaved);

  turned.sum().backward();
  CHECK(angles.grad().defined());
}

// clang-format on
