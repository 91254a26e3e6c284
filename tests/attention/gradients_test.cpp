// SPDX-License-Identifier: MIT

// Compares first and second derivatives of attention() and attention_with_lse() with finite differences.

#include <attend/attention.h>

#include "support/backends.h"
#include "support/gradcheck.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::gradcheck;
using attend::test::gradgradcheck;
using attend::test::TensorFunction;

namespace gradients_test {
namespace {

struct Sizes {
  std::int64_t batch = 1, heads = 2, kv_heads = 2, length = 3, keys = 4, width = 3, value_dim = 3;
};

/// The differentiated tensors: query, key, value, and the learned mask and slopes if the variant has them.
struct Variant {
  std::string name;
  bool sdpa_can;
  Sizes sizes = {};
  AttentionOptions options = {};
  bool with_lse = false;
  torch::Tensor learned_mask = {}, learned_slopes = {};

  std::vector<torch::Tensor> inputs() const {
    const Sizes& n = sizes;
    std::vector<torch::Tensor> tensors{torch::randn({n.batch, n.heads, n.length, n.width}, torch::kDouble),
                                       torch::randn({n.batch, n.kv_heads, n.keys, n.width}, torch::kDouble),
                                       torch::randn({n.batch, n.kv_heads, n.keys, n.value_dim}, torch::kDouble)};
    for (const torch::Tensor& learned : {learned_mask, learned_slopes})
      if (learned.defined()) tensors.push_back(learned);
    for (torch::Tensor& tensor : tensors) tensor.requires_grad_();
    return tensors;
  }

  TensorFunction function(Backend backend) const {
    return [*this, backend](const std::vector<torch::Tensor>& at) -> std::vector<torch::Tensor> {
      AttentionOptions all = AttentionOptions(options).backend(backend);
      auto next = at.begin() + 3;
      if (learned_mask.defined()) all.attn_mask(*next++);
      if (learned_slopes.defined()) all.alibi_slopes(*next++);
      torch::manual_seed(1);  // the same dropout each time
      if (!with_lse) return {attend::attention(at[0], at[1], at[2], all)};
      const attend::AttentionResult result = attend::attention_with_lse(at[0], at[1], at[2], all);
      return {result.output, result.log_sum_exp};
    };
  }
};

std::vector<Variant> variants() {
  torch::manual_seed(2);
  const auto normal = [](at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); };
  const auto offsets = [](std::vector<std::int32_t> values) { return torch::tensor(values, torch::kInt); };
  const auto options = [] { return AttentionOptions(); };
  torch::Tensor with_empty_row = torch::ones({3, 4}, torch::kBool);
  with_empty_row[1] = false;
  with_empty_row[2][0] = false;
  const AttentionOptions packed = options().query_offsets(offsets({0, 2, 3})).key_offsets(offsets({0, 1, 4}));
  const AttentionOptions everything = options().is_causal(true).window({2, 0}).softcap(1.2).scale(0.8);
  const Sizes square{.keys = 3}, grouped{.heads = 4, .length = 2}, batch{.batch = 2, .length = 2, .keys = 2};
  const bool kLse = true;
  return {
      {"plain", true},
      {"plain, with lse", true, {}, {}, kLse},
      {"batch", true, batch},
      {"one query", true, {.length = 1}},
      {"one key, with lse", true, {.keys = 1}, {}, kLse},
      {"width 1", true, {.width = 1, .value_dim = 1}},
      {"value width", false, {.value_dim = 2}},
      {"scale", true, {}, options().scale(1.7)},
      {"scale, with lse", true, {}, options().scale(1.7), kLse},
      {"negative scale, with lse", false, {}, options().scale(-0.7), kLse},
      {"grouped", true, grouped},
      {"multi-query, with lse", true, {.kv_heads = 1}, {}, kLse},
      {"causal", true, square, options().is_causal(true)},
      {"causal, with lse", true, square, options().is_causal(true), kLse},
      {"causal to the last key, with lse", true, {}, options().is_causal(true), kLse},
      {"bool mask with an empty row", true, {}, options().attn_mask(with_empty_row)},
      {"bool mask with an empty row, with lse", false, {}, options().attn_mask(with_empty_row), kLse},
      {"float mask", true, {}, options().attn_mask(normal({2, 3, 4}))},
      {"causal and padding", true, square, options().is_causal(true).attn_mask(torch::rand({1, 1, 1, 3}) < 0.7)},
      {"learned mask", false, {}, {}, false, normal({2, 3, 4})},
      {"learned mask of one row, with lse", false, {}, {}, kLse, normal({1, 4})},
      {"window", false, {.length = 4}, options().window({1, 1})},
      {"window with empty rows, with lse", false, {.length = 5, .keys = 2}, options().window({1, 0}), kLse},
      {"softcap, with lse", false, {}, options().softcap(0.9), kLse},
      {"ALiBi", false, {}, options().alibi_slopes(normal({2}))},
      {"learned ALiBi, with lse", false, {}, {}, kLse, {}, normal({2})},
      {"learned ALiBi for each batch entry", false, batch, {}, false, {}, normal({2, 2})},
      {"packed, with lse", false, {}, packed, kLse},
      {"packed, with an empty sequence, causal",
       false,
       {},
       options().query_offsets(offsets({0, 0, 3})).key_offsets(offsets({0, 2, 4})).is_causal(true)},
      {"dropout", false, {}, options().dropout(0.4)},
      {"dropout, grouped, with lse", false, grouped, options().dropout(0.4), kLse},
      {"everything, with lse",
       false,
       {.heads = 4, .value_dim = 2},
       AttentionOptions(everything).dropout(0.2),
       kLse,
       normal({3, 4}),
       normal({4})},
      {"everything, packed",
       false,
       {.value_dim = 2},
       AttentionOptions(everything).query_offsets(packed.query_offsets()).key_offsets(packed.key_offsets()),
       false,
       normal({1, 2, 1, 4}),
       normal({1, 2})},
  };
}

/// Calls check(function, inputs) for each variant, on each backend that can run it.
template <class Check>
void for_each_variant(const Check& check) {
  for (const Variant& variant : variants()) {
    for (const Backend backend : attend::test::kNamedBackends) {
      CAPTURE(variant.name);
      CAPTURE(backend);
      if (backend == Backend::kSdpa && !variant.sdpa_can) {
        CHECK_THROWS_AS(variant.function(backend)(variant.inputs()), c10::NotImplementedError);
        continue;
      }
      check(variant.function(backend), variant.inputs());
    }
  }
}

}  // namespace

TEST_CASE("attention: gradients equal finite differences, for every option on every backend") {
  for_each_variant(gradcheck);
}

TEST_CASE("attention: second derivatives equal finite differences of the gradients, on every backend") {
  for_each_variant(gradgradcheck);
}

}  // namespace gradients_test
