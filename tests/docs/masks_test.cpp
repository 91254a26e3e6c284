// SPDX-License-Identifier: MIT

// The C++ of docs/masks.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/flex_attention.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/relative_position_bias.h>
#include <attend/layers/window_partition.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

using attend::test::max_difference;

// clang-format off: the lines are the page's

TEST_CASE("docs/masks.md: padding, causal masks, windows, packed sequences, BlockMask, materialize()") {
  torch::Tensor q = torch::randn({2, 4, 5, 8}), k = torch::randn({2, 4, 5, 8}), v = torch::randn({2, 4, 5, 8});
  torch::Tensor lengths = torch::tensor({5, 3});                                  // of each batch entry, (N)
  torch::Tensor is_key = torch::arange(5).unsqueeze(0) < lengths.unsqueeze(1);    // (N, S), true = attend
  torch::Tensor mask = is_key.unsqueeze(1).unsqueeze(2);                          // (N, 1, 1, S)
  torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().attn_mask(mask));

  torch::Tensor same = attend::flex_attention(q, k, v, attend::Unchanged{}, attend::KeyPadding(lengths));

  CHECK(max_difference(y, same) < 1e-6);
  const torch::Tensor alone = attend::attention(q.slice(0, 1), k.slice(0, 1).slice(2, 0, 3), v.slice(0, 1).slice(2, 0, 3));
  CHECK(max_difference(y.slice(0, 1), alone) < 1e-6);

  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(32, 4).batch_first(true));
  const torch::Tensor x = torch::randn({2, 5, 32});
  auto [z, weights] = layer(x, x, x, /*key_padding_mask=*/is_key.logical_not(), /*need_weights=*/false);

  const torch::Tensor x_alone = x.slice(0, 1).slice(1, 0, 3);
  const auto [z_alone, none] = layer(x.slice(0, 1), x_alone, x_alone, /*key_padding_mask=*/torch::Tensor(), /*need_weights=*/false);
  CHECK(max_difference(z.slice(0, 1), z_alone) < 1e-5);

  attend::AttentionOptions options = attend::AttentionOptions().is_causal(true).window({256, 0});
  torch::Tensor next = attend::attention(q.slice(2, 4), k, v, options);  // L = 1, S = 5

  CHECK(max_difference(next, attend::attention(q, k, v, options).slice(2, 4)) < 1e-6);

  const torch::Tensor pixels = torch::randn({1, 2, 30, 8});
  attend::NeighborhoodMask nearest({5, 6}, /*kernel_size=*/{3, 3});
  torch::Tensor n = attend::flex_attention(pixels, pixels, pixels, attend::Unchanged{}, nearest);

  const torch::Tensor nine = attend::materialize(nearest, {1, 1, 30, 30})[0][0];
  CHECK(nine.sum(1).eq(9).all().item<bool>());
  CHECK(max_difference(n, attend::attention(pixels, pixels, pixels, attend::AttentionOptions().attn_mask(nine))) < 1e-6);

  torch::Tensor image = torch::randn({2, 8, 12, 48}).requires_grad_();  // (N, height, width, C), C = 3 · heads · head_dim
  attend::RelativePositionBias table(/*num_heads=*/2, /*window_size=*/std::vector<std::int64_t>{4, 4});
  torch::Tensor windows = attend::window_partition(image.roll({-2, -2}, {1, 2}), {4, 4});      // (N · 6, 16, C)
  std::vector<torch::Tensor> heads = windows.view({12, 16, 3, 2, 8}).permute({2, 0, 3, 1, 4}).unbind();
  attend::ShiftedWindowMask neighbours({8, 12}, {4, 4}, /*shift=*/{2, 2});
  torch::Tensor w = attend::flex_attention(heads[0], heads[1], heads[2], table->score_mod(), neighbours);
  torch::Tensor joined = attend::window_reverse(w.transpose(1, 2).flatten(2), {4, 4}, {8, 12}).roll({2, 2}, {1, 2});

  CHECK(joined.sizes() == torch::IntArrayRef({2, 8, 12, 16}));
  joined[0][0][0].sum().backward();  // a corner: its window ends at the border of the image
  CHECK(image.grad()[0].abs().sum(-1).gt(0).sum().item<std::int64_t>() == 4);

  torch::Tensor offsets = torch::tensor({0, 2, 5}, torch::kInt);  // sequences of 2 and 3 tokens
  attend::AttentionOptions packed = attend::AttentionOptions().query_offsets(offsets).key_offsets(offsets).is_causal(true);
  torch::Tensor p = attend::attention(q.slice(0, 0, 1), k.slice(0, 0, 1), v.slice(0, 0, 1), packed);

  const torch::Tensor second = attend::attention(q.slice(0, 0, 1).slice(2, 2), k.slice(0, 0, 1).slice(2, 2),
                                                 v.slice(0, 0, 1).slice(2, 2), attend::AttentionOptions().is_causal(true));
  CHECK(max_difference(p.slice(2, 2), second) < 1e-6);

  const torch::Tensor x128 = torch::randn({2, 4, 128, 8});
  torch::Tensor num_blocks = torch::tensor({1, 2}).view({1, 1, 2});            // (N, H, blocks of queries)
  torch::Tensor indices = torch::tensor({{0, 0}, {0, 1}}).view({1, 1, 2, 2});  // (N, H, blocks of queries, blocks of keys)
  attend::BlockMask block_causal(num_blocks, indices, {}, {}, /*block_size=*/{64, 64});
  torch::Tensor b = attend::flex_attention(x128, x128, x128, attend::Unchanged{}, block_causal);

  const torch::Tensor block = torch::arange(128).div(64, "floor"), dense_mask = block.unsqueeze(1) >= block;
  CHECK(max_difference(b, attend::attention(x128, x128, x128, attend::AttentionOptions().attn_mask(dense_mask))) < 1e-6);

  const torch::Tensor nothing = torch::zeros({5, 5}, torch::kBool);
  CHECK(attend::attention(q, k, v, attend::AttentionOptions().attn_mask(nothing)).eq(0.0).all().item<bool>());

  auto both = attend::SlidingWindow(1, 0) & attend::Document(torch::tensor({0, 0, 0, 1, 1}));
  torch::Tensor allowed = attend::materialize(both, {1, 1, 5, 5})[0][0];  // bool (L, S), true = attend

  CHECK(allowed.sum().item<std::int64_t>() == (3 + 2) + (2 + 1));
}

// clang-format on
