// SPDX-License-Identifier: MIT
#pragma once

// What the tests of flex_attention() share: a case is a score_mod and a mask_mod with their dense form.

#include <attend/flex_attention.h>

#include "support/backends.h"
#include "support/dense.h"
#include "support/derivatives.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace attend::test {

struct TanhCap {
  double limit;

  template <class T>
  T operator()(T score, Coordinate) const {
    return limit * tanh(score / limit);
  }
};

struct FlexSizes {
  std::int64_t batch = 2, heads = 4, kv_heads = 2, queries = 5, keys = 7, width = 3, value_dim = 2;
};

/// Random query, key and value.
inline Tensors random_inputs(const FlexSizes& n) {
  return {torch::randn({n.batch, n.heads, n.queries, n.width}, torch::kDouble),
          torch::randn({n.batch, n.kv_heads, n.keys, n.width}, torch::kDouble),
          torch::randn({n.batch, n.kv_heads, n.keys, n.value_dim}, torch::kDouble)};
}

/// The calls of flex_attention() and related functions with the structs of a case. `inputs`: query, key, value,
/// learned.
struct FlexCalls {
  std::function<torch::Tensor(const Tensors& inputs, const AttentionOptions& options)> output;
  std::function<AttentionResult(const Tensors& inputs, const AttentionOptions& options)> with_lse;
  std::function<attend::Explanation(const Tensors& inputs, const AttentionOptions& options)> explain;
};

/// The calls for a score_mod that `make_score` makes from the learned tensors.
template <class MakeScore, class Mask>
FlexCalls calls_of(const MakeScore& make_score, const Mask& mask) {
  const auto score = [make_score](const Tensors& inputs) {
    return make_score(Tensors(inputs.begin() + 3, inputs.end()));
  };
  return {[=](const Tensors& in, const AttentionOptions& options) {
            return attend::flex_attention(in[0], in[1], in[2], score(in), mask, options);
          },
          [=](const Tensors& in, const AttentionOptions& options) {
            return attend::flex_attention_with_lse(in[0], in[1], in[2], score(in), mask, options);
          },
          [=](const Tensors& in, const AttentionOptions& options) {
            return attend::explain_flex(in[0], in[1], in[2], score(in), mask, options);
          }};
}

template <class Score, class Mask = EveryKey>
FlexCalls fixed(const Score& score, const Mask& mask = {}) {
  return calls_of([score](const Tensors&) { return score; }, mask);
}

struct FlexCase {
  std::string name;
  FlexCalls calls;
  DenseScore score = same;
  DenseMask allowed = everywhere;
  Tensors learned = {};
  FlexSizes sizes = {};
  AttentionOptions options = {};
};

inline double scale_of(const FlexCase& c) { return c.options.scale().factor(c.sizes.width); }

/// Checks that output, log-sum-exp and their first and second derivatives equal the dense form's, on every backend.
inline void check_equals_dense(const FlexCase& c) {
  CAPTURE(c.name);
  torch::manual_seed(3);
  Tensors inputs = random_inputs(c.sizes);
  inputs.insert(inputs.end(), c.learned.begin(), c.learned.end());
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions(c.options).backend(backend);
    check_same_derivatives(
        [&](const Tensors& in) { return Tensors{c.calls.output(in, options)}; },
        [&](const Tensors& in) { return Tensors{dense(in, c.score, c.allowed, scale_of(c)).output}; }, inputs);
    CAPTURE("with the log-sum-exp");
    check_same_derivatives(
        [&](const Tensors& in) {
          const AttentionResult result = c.calls.with_lse(in, options);
          return Tensors{result.output, result.log_sum_exp};
        },
        [&](const Tensors& in) {
          const AttentionResult result = dense(in, c.score, c.allowed, scale_of(c));
          return Tensors{result.output, result.log_sum_exp};
        },
        inputs);
  }
}

inline torch::Tensor random(const std::vector<std::int64_t>& sizes) { return torch::randn(sizes, torch::kDouble); }

}  // namespace attend::test
