// SPDX-License-Identifier: MIT
#include <attend/attention/detail/calls_impl.h>
#include <attend/attention/reference.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::detail::attention_problem;
using attend::detail::Problem;
using attend::detail::Reference;

namespace {

// q·k: 1 and 0 for the first query, 0 and 2 for the second.
Problem two_by_two(const AttentionOptions& options) {
  const torch::Tensor query = torch::tensor({1.0, 0.0, 0.0, 2.0}, torch::kDouble).view({1, 1, 2, 2});
  const torch::Tensor key = torch::tensor({1.0, 0.0, 0.0, 1.0}, torch::kDouble).view({1, 1, 2, 2});
  const torch::Tensor value = torch::tensor({10.0, 20.0}, torch::kDouble).view({1, 1, 2, 1});
  Problem problem = attention_problem(query, key, value, AttentionOptions(options).scale(1.0));
  problem.needs_log_sum_exp = true;
  return problem;
}

}  // namespace

TEST_CASE("kReference: two queries and two keys give results calculated by hand, for each option") {
  struct Case {
    std::string name;
    AttentionOptions options;
    double scores[2][2];
  };
  const double never = -std::numeric_limits<double>::infinity();
  const auto tensor = [](std::vector<double> values) { return torch::tensor(values, torch::kDouble); };
  const torch::Tensor mask = tensor({0.5, 0.0, 0.0, -3.0}).view({2, 2});
  const torch::Tensor one_each = torch::tensor({0, 1, 2}, torch::kInt);
  const Case cases[] = {
      {"plain", {}, {{1, 0}, {0, 2}}},
      {"softcap", AttentionOptions().softcap(1.5), {{1.5 * std::tanh(1 / 1.5), 0}, {0, 1.5 * std::tanh(2 / 1.5)}}},
      {"ALiBi", AttentionOptions().alibi_slopes(tensor({0.25})), {{1, -0.25}, {-0.25, 2}}},
      {"mask", AttentionOptions().attn_mask(mask), {{1.5, 0}, {0, -1}}},
      {"in this order",
       AttentionOptions().softcap(1.5).alibi_slopes(tensor({0.25})).attn_mask(mask),
       {{1.5 * std::tanh(1 / 1.5) + 0.5, -0.25}, {-0.25, 1.5 * std::tanh(2 / 1.5) - 3}}},
      {"causal", AttentionOptions().is_causal(true), {{1, never}, {0, 2}}},
      {"window", AttentionOptions().window({0, 1}), {{1, 0}, {never, 2}}},
      {"bool mask", AttentionOptions().attn_mask(mask > 0.1), {{1, never}, {never, never}}},
      {"packed", AttentionOptions().query_offsets(one_each).key_offsets(one_each), {{1, never}, {never, 2}}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const attend::AttentionResult result = Reference().run(two_by_two(c.options));
    for (int query = 0; query < 2; ++query) {
      CAPTURE(query);
      const double first = std::exp(c.scores[query][0]), second = std::exp(c.scores[query][1]), sum = first + second;
      const double expected = sum == 0 ? 0 : (10 * first + 20 * second) / sum;
      CHECK(std::abs(result.output[0][0][query][0].item<double>() - expected) < 1e-13);
      const double log_sum_exp = result.log_sum_exp[0][0][query].item<double>();
      if (sum == 0)
        CHECK(log_sum_exp == never);
      else
        CHECK(std::abs(log_sum_exp - std::log(sum)) < 1e-14);
    }
  }
}

TEST_CASE("kReference: half precision is computed in float32 and rounded once; the log-sum-exp stays float32") {
  const torch::Tensor x = torch::randn({1, 2, 50, 16}).to(torch::kHalf);
  const torch::Tensor in_float = x.to(torch::kFloat);
  Problem problem = attention_problem(x, x, x, {}), wide = attention_problem(in_float, in_float, in_float, {});
  problem.needs_log_sum_exp = wide.needs_log_sum_exp = true;
  CHECK(Reference().run(problem).output.equal(Reference().run(wide).output.to(torch::kHalf)));
  CHECK((Reference().run(problem).log_sum_exp.scalar_type() == torch::kFloat));
  CHECK(Reference().run(problem).log_sum_exp.equal(Reference().run(wide).log_sum_exp));
}

TEST_CASE("kReference: the log-sum-exp is computed only if it is requested") {
  const torch::Tensor x = torch::randn({1, 2, 5, 16});
  CHECK_FALSE(Reference().run(attention_problem(x, x, x, {})).log_sum_exp.defined());
}

TEST_CASE("kReference: can_run() accepts every call, and explain() reports its copies") {
  const torch::Tensor empty = torch::randn({0, 2, 0, 1});
  CHECK(Reference().can_run(attention_problem(empty, empty, empty, {})));

  const torch::Tensor query = torch::randn({1, 4, 6, 8}), key = torch::randn({1, 2, 6, 8});
  const std::string converts = "It converts query, key and value to float32.",
                    repeats = "It repeats key and value for every query head.";
  const auto copies = [](const torch::Tensor& q, const torch::Tensor& k) {
    return Reference().copies(attention_problem(q, k, k, {}));
  };
  CHECK(copies(query, query) == "");
  CHECK(copies(query, key) == repeats);
  CHECK(copies(query.to(torch::kHalf), query.to(torch::kHalf)) == converts);
  CHECK(copies(query.to(torch::kBFloat16), key.to(torch::kBFloat16)) == converts + " " + repeats);
  CHECK(copies(query.to(torch::kDouble), query.to(torch::kDouble)) == "");
}
