// SPDX-License-Identifier: MIT

// The C++ of docs/index.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attention.h>

#include <doctest/doctest.h>
#include <torch/types.h>

// clang-format off: the lines are the page's

TEST_CASE("docs/index.md: the call of attention()") {
  const torch::Tensor q = torch::randn({1, 2, 5, 8}), k = torch::randn({1, 2, 5, 8}), v = torch::randn({1, 2, 5, 8});
  auto options = attend::AttentionOptions().is_causal(true);
  torch::Tensor y = attend::attention(q, k, v, options);  // (N, H, L, Dv)

  CHECK(y.sizes() == q.sizes());
}

// clang-format on
