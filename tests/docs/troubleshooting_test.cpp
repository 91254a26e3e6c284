// SPDX-License-Identifier: MIT

// The C++ of docs/troubleshooting.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attention.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <iostream>

// clang-format off: the lines are the page's

TEST_CASE("docs/troubleshooting.md: explain(), a backend by name, and the definition") {
  const torch::Tensor q = torch::randn({1, 2, 5, 8}), k = torch::randn({1, 2, 5, 8}), v = torch::randn({1, 2, 5, 8});
  const attend::AttentionOptions options;
  std::cout << attend::explain(q, k, v, options) << '\n';

  torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().backend(attend::Backend::kCpu));

  attend::BackendGuard guard(attend::Backend::kReference);
  torch::Tensor expected = attend::attention(q, k, v, options);

  CHECK(attend::test::max_difference(y, expected) < 1e-5);
}

// clang-format on
