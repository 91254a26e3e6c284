// SPDX-License-Identifier: MIT
#include <attend/attention/sinks.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>

#include <limits>
#include <map>
#include <string>
#include <vector>

using attend::attention_with_sinks;
using attend::AttentionOptions;
using attend::Backend;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::max_difference;
using attend::test::reference_data;
using attend::test::Refused;

TEST_CASE("attention_with_sinks: output and gradients equal gpt-oss's softmax with one more column, in Python") {
  const std::map<std::string, torch::Tensor> data = reference_data("position_bias");
  for (const std::string name : {"square", "decode", "long", "empty_rows"})
    for (const Backend backend : kAllBackendsWithAllOptions) {
      const std::string prefix = "sinks/" + name + "/";
      CAPTURE(prefix);
      CAPTURE(backend);
      std::vector<torch::Tensor> in;
      for (const char* each : {"query", "key", "value", "sinks"})
        in.push_back(data.at(prefix + each).clone().requires_grad_());
      const torch::Tensor y =
          attention_with_sinks(in[0], in[1], in[2], in[3], AttentionOptions().is_causal(true).backend(backend));
      CHECK(max_difference(y, data.at(prefix + "output")) < 1e-12);
      y.backward(data.at(prefix + "output_gradient"));
      CHECK(max_difference(in[0].grad(), data.at(prefix + "query_gradient")) < 1e-12);
      CHECK(max_difference(in[1].grad(), data.at(prefix + "key_gradient")) < 1e-12);
      CHECK(max_difference(in[2].grad(), data.at(prefix + "value_gradient")) < 1e-12);
      CHECK(max_difference(in[3].grad(), data.at(prefix + "sinks_gradient")) < 1e-12);
    }
}

TEST_CASE("with_sinks: second derivatives, with a score_mod, equal those of the formula with one more column") {
  const auto ours = [](const std::vector<torch::Tensor>& in) {
    return std::vector{attend::with_sinks(
        attend::flex_attention_with_lse(in[0], in[1], in[2], attend::Softcap{3}, attend::Causal{}), in[3])};
  };
  const auto dense = [](const std::vector<torch::Tensor>& in) {
    torch::Tensor scores = ((in[0] / 2).matmul(in[1].mT()) / 3).tanh() * 3;
    scores = scores.masked_fill(torch::ones({5, 5}, torch::kBool).triu(1), -1e300);
    const torch::Tensor column = in[3].view({1, 3, 1, 1}).expand({2, 3, 5, 1});
    return std::vector{torch::cat({scores, column}, 3).softmax(3).slice(3, 0, 5).matmul(in[2])};
  };
  torch::manual_seed(1);
  const auto heads = [] { return torch::randn({2, 3, 5, 4}, torch::kDouble); };
  attend::test::check_same_derivatives(ours, dense, {heads(), heads(), heads(), torch::randn({3}, torch::kDouble)});
}

TEST_CASE("attention_with_sinks: bfloat16, and tensors without a batch or heads") {
  const torch::Tensor q = torch::randn({2, 3, 7, 8}), sinks = torch::randn({3});
  const torch::Tensor y = attention_with_sinks(q, q, q, sinks);
  CHECK(max_difference(attention_with_sinks(q[1], q[1], q[1], sinks), y[1]) < 1e-6);
  CHECK(max_difference(attention_with_sinks(q[1][2], q[1][2], q[1][2], sinks.slice(0, 2)), y[1][2]) < 1e-6);
  const torch::Tensor half = q.to(torch::kBFloat16);
  const torch::Tensor rounded = attention_with_sinks(half, half, half, sinks.to(torch::kBFloat16));
  CHECK((rounded.scalar_type() == torch::kBFloat16));
  CHECK(max_difference(rounded, y) < 0.03);
}

TEST_CASE("with_sinks: a sink of -inf changes nothing, and a query without keys gives zeros") {
  const torch::Tensor q = torch::randn({2, 3, 4, 8}, torch::kDouble).requires_grad_(),
                      k = torch::randn({2, 3, 2, 8}, torch::kDouble),  // the first two queries have no keys
      sinks = torch::full({3}, -std::numeric_limits<double>::infinity(), torch::kDouble).requires_grad_();
  const AttentionOptions causal = AttentionOptions().is_causal(true);
  const torch::Tensor y = attention_with_sinks(q, k, k, sinks, causal), expected = attend::attention(q, k, k, causal);
  CHECK(y.equal(expected));
  CHECK(y.slice(2, 0, 2).eq(0.0).all().item<bool>());
  y.sum().backward();
  CHECK(q.grad().isfinite().all().item<bool>());
  CHECK(sinks.grad().eq(0.0).all().item<bool>());
}

TEST_CASE("attention_with_sinks: sinks that do not fit are refused") {
  const torch::Tensor q = torch::randn({2, 3, 7, 8});
  const auto call = [&](const torch::Tensor& sinks) { return [=] { attention_with_sinks(q, q, q, sinks); }; };
  const Refused cases[] = {
      {"attend::with_sinks: sinks must be a tensor (3), got an undefined one", false, call({})},
      {"attend::with_sinks: sinks must be (3), one score for each head, got [2]", false, call(torch::zeros({2}))},
      {"attend::with_sinks: sinks must be (3), one score for each head, got [1, 3]", false, call(torch::zeros({1, 3}))},
      {"attend::with_sinks: sinks (Long) must have a floating dtype", true, call(torch::zeros({3}, torch::kLong))},
      {"attend::with_sinks: sinks (meta) must be on the device of the output (cpu)", false,
       call(torch::zeros({3}, torch::kMeta))},
      {"attend::with_sinks: the result must have an output and a log-sum-exp", false,
       [&] {
         attend::with_sinks({q, {}}, torch::zeros({3}));
       }},
  };
  for (const Refused& c : cases) c.check();
}
