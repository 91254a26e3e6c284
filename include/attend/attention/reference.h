// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_safe_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>

#include <limits>
#include <optional>
#include <string>

namespace attend::detail {

/// Attention by its definition: dense, a few lines, differentiable any number of times. It is the specification that
/// every kernel is held against, and what runs where no kernel can.
///
/// float64 is computed in float64, everything else in float32; results have the query's dtype.
struct Reference {
  static constexpr Backend kBackend = Backend::kReference;

  static std::optional<std::string> why_not(const Problem&) { return std::nullopt; }

  static std::string copies(const Problem& problem) {
    std::string copies;
    if (compute_dtype(problem.query.scalar_type()) != problem.query.scalar_type())
      copies = "kReference converts query, key and value to float32";
    if (problem.num_kv_heads() != problem.num_heads())
      copies += std::string(copies.empty() ? "" : "; ") + "kReference repeats key and value for every query head";
    return copies;
  }

  static at::Tensor run(const Problem& problem) {
    const at::Tensor value = for_each_query_head(converted(problem.value), problem);       // (N, H, S, Dv)
    return at::matmul(softmax_of_scores(problem), value).to(problem.query.scalar_type());  // (N, H, L, Dv)
  }

  /// The weights alone, in the query's dtype: (N, H, L, S).
  static at::Tensor weights(const Problem& problem) {
    return softmax_of_scores(problem).to(problem.query.scalar_type());
  }

 private:
  static at::Tensor softmax_of_scores(const Problem& problem) {
    constexpr double kNever = -std::numeric_limits<double>::infinity();
    const at::Tensor query = converted(problem.query);                            // (N, H, L, D)
    const at::Tensor key = for_each_query_head(converted(problem.key), problem);  // (N, H, S, D)
    at::Tensor scores = problem.scale * at::matmul(query, key.transpose(2, 3));   // (N, H, L, S)
    if (problem.attn_mask.defined()) {
      scores = problem.attn_mask.scalar_type() == at::kBool
                   ? scores.masked_fill(problem.attn_mask.logical_not(), kNever)
                   : scores + problem.attn_mask;
    }
    if (problem.is_causal) {
      const auto length = problem.query_length(), keys = problem.key_length();
      const at::Tensor future =
          at::ones({length, keys}, scores.options().dtype(at::kBool)).triu(keys - length + 1);  // (L, S)
      scores = scores.masked_fill(future, kNever);
    }
    return at::_safe_softmax(scores, -1);  // a row of nothing but -inf gives zeros, and zero gradients
  }

  static at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

  static at::Tensor converted(const at::Tensor& tensor) { return tensor.to(compute_dtype(tensor.scalar_type())); }

  /// Query head h reads key and value head h·G/H.
  static at::Tensor for_each_query_head(const at::Tensor& tensor, const Problem& problem) {
    const auto queries_per_key = problem.num_heads() / problem.num_kv_heads();
    return queries_per_key == 1 ? tensor : tensor.repeat_interleave(queries_per_key, 1);
  }
};

}  // namespace attend::detail
