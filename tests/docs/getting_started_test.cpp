// SPDX-License-Identifier: MIT

// The C++ of docs/getting_started.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/layers/multihead_attention.h>

#include <doctest/doctest.h>
#include <torch/types.h>

// clang-format off: the lines are the page's

#define main getting_started_main
#include <attend/attend.h>

#include <iostream>

int main() {
  torch::Tensor q = torch::randn({2, 8, 128, 64});  // (N, H, L, D)
  torch::Tensor k = torch::randn({2, 8, 128, 64});  // (N, H, S, D)
  torch::Tensor v = torch::randn({2, 8, 128, 64});  // (N, H, S, Dv)
  auto options = attend::AttentionOptions().is_causal(true);
  torch::Tensor y = attend::attention(q, k, v, options);
  std::cout << y.sizes() << '\n';                          // [2, 8, 128, 64]
  std::cout << attend::explain(q, k, v, options) << '\n';  // the backend, and why not a faster one
  return 0;
}
#undef main

TEST_CASE("docs/getting_started.md: the first program and the layer run") {
  CHECK(getting_started_main() == 0);
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(256, 8).batch_first(true).is_causal(true));
  torch::Tensor x = torch::randn({4, 100, 256});  // (N, L, E)
  auto [y, weights] = layer(x, x, x, /*key_padding_mask=*/torch::Tensor(), /*need_weights=*/false);

  CHECK(y.sizes() == x.sizes());
  CHECK(!weights.defined());
}

// clang-format on
