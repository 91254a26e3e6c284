// SPDX-License-Identifier: MIT

// Tests calls of flex_attention(): dtypes, strides, dropout, autocast, backends, errors.

#include <attend/flex_attention.h>

#include "flex_attention/support.h"
#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/structs.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstddef>
#include <string>

using attend::AttentionOptions;
using attend::Backend;
using attend::Coordinate;
using attend::EveryKey;
using attend::Unchanged;
using attend::test::check_throws;
using attend::test::fixed;
using attend::test::kReferenceAndAuto;
using attend::test::max_difference;
using attend::test::random;
using attend::test::random_inputs;
using attend::test::same;
using attend::test::SoftSign;
using attend::test::TanhCap;
using attend::test::Tensors;

namespace flex_attention_calls_test {
namespace {

using Calls = attend::test::FlexCalls;

/// Allows only keys whose value is positive.
struct PositiveKeys {
  torch::Tensor values;  // floating-point (S)

  struct View {
    attend::TensorView values;

    bool operator()(Coordinate at) const { return values.read<attend::Real<float>>(at.key) > 0; }
  };

  View bind(attend::Binder& binder) const { return {binder.values(values)}; }
};

}  // namespace

TEST_CASE("flex_attention: a learned tensor may have another dtype than the query; so has its gradient") {
  for (const Backend backend : kReferenceAndAuto) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
      for (const auto learned_dtype : {torch::kDouble, torch::kFloat, torch::kHalf}) {
        CAPTURE(backend);
        CAPTURE(dtype);
        CAPTURE(learned_dtype);
        Tensors inputs = random_inputs({});
        for (torch::Tensor& input : inputs) input = input.to(dtype);
        const auto gradient = [&](const torch::Tensor& slopes) {
          const torch::Tensor leaf = slopes.detach().requires_grad_();
          const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Alibi(leaf),
                                                              EveryKey{}, AttentionOptions().backend(backend));
          CHECK((output.scalar_type() == dtype));
          return torch::autograd::grad({output.to(torch::kDouble).sin().sum()}, {leaf})[0];
        };
        const torch::Tensor slopes = (torch::arange(4) * 0.25).to(learned_dtype);  // exact in every dtype
        const torch::Tensor narrow = gradient(slopes), wide = gradient(slopes.to(torch::kDouble));
        CHECK((narrow.scalar_type() == learned_dtype));
        CHECK(max_difference(narrow, wide.to(learned_dtype)) == 0);
      }
    }
  }
}

TEST_CASE("flex_attention: any strides of query, key, value and learned tensors give the results of copies") {
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    const torch::Tensor query = random({2, 5, 4, 3}).transpose(1, 2), key = random({2, 2, 3, 7}).transpose(2, 3);
    const torch::Tensor value = random({1, 1, 7, 4}).expand({2, 2, 7, 4}).slice(3, 0, 4, 2);
    const torch::Tensor bias = random({7, 5}).t(), slopes = random({1}).expand({4});
    Tensors inputs{query, key, value, bias, slopes}, results[2];
    for (const bool is_copied : {false, true}) {
      Tensors leaves;
      for (const torch::Tensor& input : inputs)
        leaves.push_back((is_copied ? input.contiguous() : input).detach().requires_grad_());
      const auto score = attend::then(attend::DenseBias(leaves[3]), attend::Alibi(leaves[4]));
      const torch::Tensor output = attend::flex_attention(leaves[0], leaves[1], leaves[2], score, attend::Causal{},
                                                          AttentionOptions().backend(backend));
      results[is_copied] = torch::autograd::grad({output.sin().sum()}, leaves);
      results[is_copied].push_back(output);
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(max_difference(results[0][i], results[1][i]) < 1e-12);
  }
}

TEST_CASE("flex_attention: dropout drops the same weights as attention() for the same seed, on every backend") {
  const Tensors inputs = random_inputs({});
  const auto options = AttentionOptions().dropout(0.4);
  torch::manual_seed(6);
  const torch::Tensor expected = attend::attention(
      inputs[0], inputs[1], inputs[2], AttentionOptions(options).softcap(0.75).backend(Backend::kReference));
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    torch::manual_seed(6);
    const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Softcap{0.75f},
                                                        EveryKey{}, AttentionOptions(options).backend(backend));
    CHECK(max_difference(output, expected) < 1e-12);
  }
}

TEST_CASE("flex_attention: autocast casts query, key and value as in attention(), and no learned tensor") {
  Tensors inputs = random_inputs({});
  for (torch::Tensor& input : inputs) input = input.to(torch::kFloat);
  const attend::Alibi alibi(torch::rand({4}));
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    const auto options = AttentionOptions().backend(backend);
    const torch::Tensor expected =
        attend::flex_attention(inputs[0].to(torch::kBFloat16), inputs[1].to(torch::kBFloat16),
                               inputs[2].to(torch::kBFloat16), alibi, attend::Causal{}, options);
    const attend::test::Autocast autocast;
    CHECK(attend::flex_attention(inputs[0], inputs[1], inputs[2], alibi, attend::Causal{}, options).equal(expected));
  }
}

TEST_CASE("flex_attention: two calls give the same bits, forward and backward") {
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    Tensors leaves = random_inputs({.queries = 70, .keys = 90, .width = 16});
    leaves.push_back(random({4}));
    for (torch::Tensor& leaf : leaves) leaf = leaf.to(torch::kFloat).requires_grad_();
    const auto once = [&] {
      const auto score = attend::then(SoftSign{1}, attend::Alibi(leaves[3]));
      Tensors results{attend::flex_attention(leaves[0], leaves[1], leaves[2], score, attend::Causal{},
                                             AttentionOptions().backend(backend))};
      for (const torch::Tensor& gradient : torch::autograd::grad({results[0].sum()}, leaves))
        results.push_back(gradient);
      return results;
    };
    const Tensors first = once(), second = once();
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].equal(second[i]));
  }
}

TEST_CASE("flex_attention: backward uses the values of the forward pass and refuses tensors changed in place") {
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    const Tensors inputs = random_inputs({});
    const torch::Tensor slopes = random({4}).requires_grad_();
    const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Alibi(slopes),
                                                        EveryKey{}, AttentionOptions().backend(backend));
    const torch::Tensor loss = output.sum();
    const torch::NoGradGuard no_grad;
    slopes.mul_(2);
    check_throws<c10::Error>("modified by an inplace operation", [&] { loss.backward(); });
  }
}

TEST_CASE("flex_attention: a mask_mod may read floating-point values, for every dtype of the call") {
  Tensors inputs = random_inputs({});
  const torch::Tensor values = random({inputs[1].size(2)});
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    CAPTURE(dtype);
    for (torch::Tensor& input : inputs) input = input.to(dtype);
    const auto output = [&](Backend backend) {
      return attend::flex_attention(inputs[0], inputs[1], inputs[2], Unchanged{}, PositiveKeys{values.to(dtype)},
                                    AttentionOptions().backend(backend));
    };
    const torch::Tensor expected = attend::attention(
        inputs[0], inputs[1], inputs[2],
        AttentionOptions().attn_mask(values.to(dtype).gt(0).unsqueeze(0)).backend(Backend::kReference));
    CHECK(output(Backend::kReference).equal(expected));
    CHECK(max_difference(output(Backend::kCpu), expected) < (dtype == torch::kDouble ? 1e-12 : 2e-2));
  }
}

TEST_CASE("explain_flex: it names the backend and why no faster one is used; kAuto uses that backend") {
  Tensors inputs = random_inputs({});
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    for (torch::Tensor& input : inputs) input = input.to(dtype);
    const Calls calls = fixed(SoftSign{1}, attend::Causal{});
    const attend::Explanation plan = calls.explain(inputs, {});
    CHECK(plan.backend == Backend::kCpu);
    CHECK(calls.output(inputs, {}).equal(calls.output(inputs, AttentionOptions().backend(plan.backend))));
    const auto by_name = AttentionOptions().backend(Backend::kReference);
    CHECK(calls.explain(inputs, by_name).backend == Backend::kReference);
    const attend::BackendGuard guard(Backend::kReference);
    CHECK(calls.explain(inputs, {}).backend == Backend::kReference);
  }
}

TEST_CASE("flex_attention: kSdpa requested by name throws with the reason") {
  const Tensors inputs = random_inputs({.value_dim = 3});
  const Calls calls = fixed(Unchanged{});
  const auto options = AttentionOptions().backend(Backend::kSdpa);
  const auto throws_the_reason = [](const auto& call) {
    check_throws<c10::NotImplementedError>(
        "attend::attention: the requested backend cannot run. "
        "kSdpa does not support a score_mod or a mask_mod.",
        call);
  };
  throws_the_reason([&] { calls.output(inputs, options); });
  throws_the_reason([&] { calls.with_lse(inputs, options); });
  throws_the_reason([&] { calls.explain(inputs, options); });
}

TEST_CASE("flex_attention: a third derivative is refused, with and without create_graph") {
  for (const Backend backend : kReferenceAndAuto) {
    for (const bool create_graph : {true, false}) {
      CAPTURE(backend);
      CAPTURE(create_graph);
      Tensors leaves = random_inputs({});
      leaves[0].requires_grad_();
      torch::Tensor derivative = attend::flex_attention(leaves[0], leaves[1], leaves[2], TanhCap{1}, EveryKey{},
                                                        AttentionOptions().backend(backend));
      for (int order = 1; order <= 2; ++order)
        derivative = torch::autograd::grad({derivative.sin().sum()}, {leaves[0]}, {}, /*retain_graph=*/true,
                                           /*create_graph=*/true)[0];
      check_throws<c10::NotImplementedError>(
          "attend::flex_attention: a score_mod can be differentiated at most twice", [&] {
            torch::autograd::grad({derivative.sin().sum()}, {leaves[0]}, {}, /*retain_graph=*/true, create_graph);
          });
    }
  }
}

TEST_CASE("flex_attention: type and text of errors about structs and arguments") {
  const Tensors inputs = random_inputs({});
  const auto flex = [&](const auto& score, const auto& mask) {
    attend::flex_attention(inputs[0], inputs[1], inputs[2], score, mask);
  };
  const torch::Tensor whole = torch::arange(4), elsewhere = torch::empty({4}, torch::kMeta);
  const attend::test::Refused cases[] = {
      {"attend::Binder: values() needs a floating-point tensor, got Long", true,
       [&] { flex(attend::Alibi(whole), EveryKey{}); }},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       [&] { flex(attend::Alibi(elsewhere), EveryKey{}); }},
      {"attend::Alibi: slopes must be (H) or (N, H), with N = 2 and H = 4, got [3]", false,
       [&] { flex(attend::Alibi(torch::rand({3})), EveryKey{}); }},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got [4]", false,
       [&] { flex(Unchanged{}, attend::KeyPadding(whole)); }},
      {"attend::Binder: integers() needs an integer or bool tensor, got Double", true,
       [&] { flex(Unchanged{}, attend::KeyPadding(torch::ones({2}, torch::kDouble))); }},
      {"attend::attention: value (Float) must have the dtype of query (Double)", true,
       [&] { attend::flex_attention(inputs[0], inputs[1], inputs[2].to(torch::kFloat), Unchanged{}); }},
      {"attend::attention: key [2, 2, 7, 2] must have the width of query [2, 4, 5, 3]", false,
       [&] { attend::flex_attention(inputs[0], inputs[2], inputs[2], Unchanged{}); }},
      {"attend::attention: query must be a tensor (N, H, L, D), got an undefined one", false,
       [&] { attend::flex_attention({}, inputs[1], inputs[2], Unchanged{}); }},
  };
  for (const attend::test::Refused& each : cases) each.check();
}

}  // namespace flex_attention_calls_test
