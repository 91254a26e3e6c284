// SPDX-License-Identifier: MIT
#include <attend/attention/reference.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

using attend::AttentionOptions;
using attend::detail::attention_problem;
using attend::detail::Reference;

TEST_CASE("two queries and two keys, by hand") {
  // q·k: 1 and 0 for the first query, 0 and 2 for the second; weights e/(e+1), 1/(e+1) and 1/(1+e²), e²/(1+e²)
  const torch::Tensor query = torch::tensor({1.0, 0.0, 0.0, 2.0}, torch::kDouble).view({1, 1, 2, 2});
  const torch::Tensor key = torch::tensor({1.0, 0.0, 0.0, 1.0}, torch::kDouble).view({1, 1, 2, 2});
  const torch::Tensor value = torch::tensor({10.0, 20.0}, torch::kDouble).view({1, 1, 2, 1});
  const torch::Tensor output = Reference::run(attention_problem(query, key, value, AttentionOptions().scale(1.0)));
  const double e = std::exp(1.0);
  CHECK(output[0][0][0][0].item<double>() == doctest::Approx((10 * e + 20) / (e + 1)).epsilon(1e-14));
  CHECK(output[0][0][1][0].item<double>() == doctest::Approx((10 + 20 * e * e) / (1 + e * e)).epsilon(1e-14));
}

TEST_CASE("half precision is computed in float32 and rounded once") {
  const torch::Tensor x = torch::randn({1, 2, 50, 16}).to(torch::kHalf);
  const torch::Tensor in_float = x.to(torch::kFloat);
  CHECK(Reference::run(attention_problem(x, x, x, {}))
            .equal(Reference::run(attention_problem(in_float, in_float, in_float, {})).to(torch::kHalf)));
}

TEST_CASE("the reference can do everything") {
  const torch::Tensor empty = torch::randn({0, 2, 0, 1});
  CHECK_FALSE(Reference::why_not(attention_problem(empty, empty, empty, {})).has_value());
}
