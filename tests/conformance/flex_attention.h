// SPDX-License-Identifier: MIT
#pragma once

#include "attention.h"

#include <attend/flex_attention.h>

#include <string>
#include <vector>

namespace conformance {

/// A score_mod with a learned tensor: tanh(score) + table[head][query − key mod 8] · 0.5.
struct TiltedByTable {
  torch::Tensor table;  // (H, 8)

  struct View {
    attend::TensorView table;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      return tanh(score) + table.read<T>(at.head, (at.query - at.key) & 7) * T(0.5f);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table)}; }
};

/// A mask_mod that excludes every third key, and all keys for query 3.
struct NotEveryThird {
  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return at.key % 3 != 0 && at.query != 3; }
};

/// The dense formula of both structs.
inline Tensors dense_flex_attention(const Case& c, const Inputs& inputs) {
  Geometry geometry = geometry_of(c.length, c.keys, c.options, {}, {});
  torch::Tensor place = torch::zeros({c.length, c.keys}, torch::kLong);
  auto places = place.accessor<std::int64_t, 2>();
  auto allowed = geometry.allowed.accessor<bool, 2>();
  for (std::int64_t i = 0; i < c.length; ++i) {
    for (std::int64_t j = 0; j < c.keys; ++j) {
      places[i][j] = (i - j) & 7;
      allowed[i][j] = allowed[i][j] && j % 3 != 0 && i != 3;
    }
  }
  const torch::Tensor bias = inputs.slopes.index_select(1, place.flatten()).view({-1, c.length, c.keys}) * 0.5;
  Inputs without = inputs;
  without.slopes = torch::Tensor();
  const DenseResult dense = dense_attention(without, c.options, geometry, {},
                                            [&](const torch::Tensor& scores) { return torch::tanh(scores) + bias; });
  const bool is_half = inputs.query.scalar_type() != torch::kDouble && inputs.query.scalar_type() != torch::kFloat;
  if (!c.with_lse) return {dense.output};
  return {dense.output, is_half ? dense.log_sum_exp.to(torch::kFloat) : dense.log_sum_exp};
}

/// The table takes the place of the slopes in the inputs, so that evaluate() finds its gradient.
inline Tensors flex_attend_to(const Case& c, const Inputs& inputs, Backend backend) {
  AttentionOptions options = c.options;
  options.backend(backend).attn_mask(inputs.mask);
  const TiltedByTable score_mod{inputs.slopes};
  if (!c.with_lse)
    return {attend::flex_attention(inputs.query, inputs.key, inputs.value, score_mod, NotEveryThird{}, options)};
  const AttentionResult result =
      attend::flex_attention_with_lse(inputs.query, inputs.key, inputs.value, score_mod, NotEveryThird{}, options);
  return {result.output, result.log_sum_exp};
}

inline void require_flex_case(const Case& c, Accuracy& accuracy) {
  for (const at::ScalarType dtype : kDtypes) {
    torch::manual_seed(1);
    const Inputs inputs = inputs_of(c, dtype);
    const auto dense = [&](const Inputs& leaves) { return dense_flex_attention(c, leaves); };
    const Evaluated exact = evaluate(c, inputs, at::kDouble, dense), same_dtype = evaluate(c, inputs, dtype, dense);
    for (const Backend backend : {Backend::kAuto, Backend::kReference, Backend::kCpu}) {
      const auto ours = [&](const Inputs& leaves) { return flex_attend_to(c, leaves, backend); };
      require_as_accurate(c10::str(dtype, " ", backend), dtype, evaluate(c, inputs, dtype, ours), same_dtype, exact,
                          Accuracy::kOurFactor, accuracy);
    }
  }
}

inline void flex_attention_checks(Checks& checks) {
  Accuracy accuracy;
  Case c;
  c.name = "score_mod with a learned tensor, mask_mod";
  c.slopes_sizes = {4, 8};
  c.slopes_are_learned = true;
  std::vector<Case> cases{c};
  c.name += ", with grouped heads, is_causal, a learned attn_mask, the log-sum-exp, more keys than a block";
  c.options.is_causal(true).softcap(4.0);
  c.kv_heads = 2;
  c.length = 60;
  c.keys = 150;
  c.value_dim = 24;
  c.with_lse = true;
  c.mask_sizes = {2, 1, 60, 150};
  c.mask_is_learned = true;
  cases.push_back(c);
  for (const Case& each : cases)
    checks.check("flex_attention: " + each.name, [&] { require_flex_case(each, accuracy); });
  checks.check("flex_attention: results of fewer than 64 numbers, over all cases",
               [&] { accuracy.require_of_few_numbers(); });

  checks.check("flex_attention: then(Softcap, RelativeBias) with Document & Causal equals the dense formula", [] {
    const torch::Tensor x = torch::randn({1, 2, 12, 8}, torch::kDouble), table = torch::randn({2, 7}, torch::kDouble);
    const std::vector<std::int64_t> documents{0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2};
    const torch::Tensor y =
        attend::flex_attention(x, x, x, attend::then(attend::Softcap{2.0f}, attend::RelativeBias(table)),
                               attend::Document(torch::tensor(documents, torch::kLong)) & attend::Causal{},
                               AttentionOptions().backend(Backend::kCpu));
    Geometry geometry = geometry_of(12, 12, AttentionOptions().is_causal(true), {}, {});
    auto allowed = geometry.allowed.accessor<bool, 2>();
    torch::Tensor bias = torch::zeros({2, 12, 12}, torch::kDouble);
    for (std::int64_t i = 0; i < 12; ++i) {
      for (std::int64_t j = 0; j < 12; ++j) {
        const auto document = [&](std::int64_t place) { return documents[static_cast<std::size_t>(place)]; };
        allowed[i][j] = allowed[i][j] && document(i) == document(j);
        bias.select(2, j).select(1, i).copy_(table.select(1, std::clamp<std::int64_t>(j - i, -3, 3) + 3));
      }
    }
    const DenseResult dense = dense_attention({x, x, x, {}, {}}, AttentionOptions().softcap(2.0), geometry, {},
                                              [&](const torch::Tensor& scores) { return scores + bias; });
    require_equal("the output", y, dense.output);
  });
  checks.check("materialize: a mask_mod gives the mask of allowed scores", [] {
    const torch::Tensor allowed = attend::materialize(NotEveryThird{}, {1, 1, 5, 6});
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < 5; ++i)
      for (std::int64_t j = 0; j < 6; ++j) wrong += allowed[0][0][i][j].item<bool>() != (j % 3 != 0 && i != 3);
    require(wrong == 0 && allowed.numel() == 30, "the mask is wrong");
  });
  checks.check("explain_flex: names kCpu; kSdpa is refused", [] {
    const torch::Tensor x = torch::randn({1, 4, 8, 4}), table = torch::randn({4, 8});
    require(attend::explain_flex(x, x, x, TiltedByTable{table}, NotEveryThird{}).backend == Backend::kCpu,
            "kCpu is not taken");
    require_throws<c10::NotImplementedError>("kSdpa", "kSdpa does not support a score_mod", [&] {
      attend::flex_attention(x, x, x, TiltedByTable{table}, NotEveryThird{},
                             AttentionOptions().backend(Backend::kSdpa));
    });
  });
}

}  // namespace conformance
