// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/dropout.h>
#include <attend/attention/detail/output_layout.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/products.h>
#include <attend/attention/variant.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_safe_softmax.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/searchsorted.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Attention by its definition: the dense formula in a few lines. It can be differentiated any number of times, with a
/// score_mod twice. Tests compare every kernel with it. It computes the calls that no kernel can.
///
/// float64 is computed in float64, everything else in float32. The output and the weights have the query's dtype.
class Reference final : public AttentionBackend {
 public:
  Backend name() const override { return Backend::kReference; }

  bool can_run(const Problem&, std::string* = nullptr) const override { return true; }

  std::string how(const Problem&) const override {
    return "kReference runs the dense formula, which allocates all scores (N, H, L, S).";
  }

  std::string copies(const Problem& problem) const override {
    std::string copies;
    if (compute_dtype(problem.query.scalar_type()) != problem.query.scalar_type())
      copies = "It converts query, key and value to float32.";
    const auto also = [&copies](const char* sentence) {
      copies += (copies.empty() ? "" : " ") + std::string(sentence);
    };
    if (problem.has_pages()) also("It copies the pages of key and value to contiguous tensors.");
    if (problem.num_kv_heads() != problem.num_heads()) also("It repeats key and value for every query head.");
    return copies;
  }

  AttentionResult run(const Problem& problem) const override {
    const at::Tensor value = keys_of_each_query_head(problem.value, problem);  // (N, H, S, Dv)
    const at::Tensor scores = masked_scores(problem);                          // (N, H, L, S)
    at::Tensor weights = softmax(scores);                                      // (N, H, L, S)
    if (problem.dropout > 0.0) {
      const at::Tensor keep = dropout_keep(problem.dropout_seed, problem.dropout, weights.sizes());
      weights = weights.masked_fill(keep.logical_not(), 0.0);
      if (problem.dropout < 1.0) weights = weights / (1.0 - problem.dropout);
    }
    const at::Tensor wide = may_mask(problem) ? values_product(weights, value) : at::matmul(weights, value);
    at::Tensor output = wide.to(problem.query.scalar_type());  // (N, H, L, Dv)
    const std::array<std::int64_t, 4> strides = output_strides(problem);
    if (output.strides() != at::IntArrayRef(strides) && output.numel() > 0)
      output = at::empty_strided(output.sizes(), strides, output.options()).copy_(output);
    return {output, problem.needs_log_sum_exp ? log_sum_exp(scores) : at::Tensor()};
  }

  /// The weights alone, before dropout, in the query's dtype: (N, H, L, S).
  static at::Tensor weights(const Problem& problem) {
    return softmax(masked_scores(problem)).to(problem.query.scalar_type());
  }

 private:
  static constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

  /// Whether a score may be masked. Unlike Problem::may_mask(), this includes packed batches and key_lengths.
  static bool may_mask(const Problem& problem) {
    return problem.may_mask() || problem.is_packed() || problem.key_lengths.defined();
  }

  static at::Tensor masked_scores(const Problem& problem) {
    const at::Tensor query = converted(problem.query);                     // (N, H, L, D)
    const at::Tensor key = keys_of_each_query_head(problem.key, problem);  // (N, H, S, D)
    const bool is_dense = !may_mask(problem);
    at::Tensor scores = is_dense ? at::matmul(query, key.transpose(2, 3)) : scores_product(query, key);  // (N, H, L, S)
    scores = problem.scale * scores;
    const Positions at = positions_of(problem);
    const KeyLengths key_lengths(problem.variant != nullptr ? problem.key_lengths : at::Tensor());
    const at::Tensor masked = masked_by(problem, at, sizes_of(scores), key_lengths);
    const at::Tensor& mask = problem.attn_mask;
    const bool is_added_mask = mask.defined() && mask.scalar_type() != at::kBool;
    // The derivatives below must not read a masked NaN, and the backward pass must not pass a NaN on to a masked score:
    // 0 · NaN is NaN.
    const bool is_watched = is_looked_at(scores) && !is_finite(scores);
    if (masked.defined() && is_watched) scores = scores.masked_fill(masked, 0.0);
    if (is_added_mask) scores = scores.masked_fill(mask.eq(kNegativeInfinity), 0.0);
    if (problem.softcap > 0.0) scores = problem.softcap * (scores / problem.softcap).tanh();
    if (problem.alibi_slopes.defined()) {
      const at::Tensor slopes = problem.alibi_slopes.to(scores.dtype()).unsqueeze(2).unsqueeze(3);  // (1 or N, H, 1, 1)
      scores = scores - slopes * (at.key - at.query).abs();
    }
    if (is_added_mask) scores = scores + mask;
    if (problem.variant != nullptr) scores = problem.variant->change(scores, problem.variant_tensors, key_lengths);
    if (masked.defined()) scores = scores.masked_fill(masked, kNegativeInfinity);
    return is_watched ? scores.masked_fill(scores.eq(kNegativeInfinity), kNegativeInfinity)
                      : scores;  // −∞ has no gradient
  }

  /// The positions of queries and keys, and, in packed batches, the sequence that each belongs to.
  struct Positions {
    at::Tensor query, key;                    // (L, 1), or (N, 1, L, 1) with key_lengths; (S)
    at::Tensor query_sequence, key_sequence;  // (L, 1), (S)
  };

  static Positions positions_of(const Problem& problem) {
    const auto count_to = [&](std::int64_t length) {
      return at::arange(length, problem.query.options().dtype(at::kInt));
    };
    const at::Tensor query = count_to(problem.query_length()), key = count_to(problem.key_length());
    if (problem.key_lengths.defined()) {
      const at::Tensor first = problem.key_lengths.view({-1, 1, 1, 1}) - problem.query_length();  // (N, 1, 1, 1)
      return {first + query.unsqueeze(1), key, {}, {}};
    }
    if (!problem.is_packed())
      return {(query + (problem.key_length() - problem.query_length())).unsqueeze(1), key, {}, {}};
    const auto sequence = [](const at::Tensor& offsets, const at::Tensor& position) {
      return at::searchsorted(offsets, position, /*out_int32=*/true, /*right=*/true);  // its number, counted from 1
    };
    const at::Tensor number = sequence(problem.query_offsets, query);  // (L)
    const at::Tensor key_end = problem.key_offsets.index_select(0, number),
                     query_end = problem.query_offsets.index_select(0, number);
    return {(query + (key_end - query_end)).unsqueeze(1), key, number.unsqueeze(1), sequence(problem.key_offsets, key)};
  }

  /// The scores that masks, the window, packed batches and key_lengths mask: bool, broadcastable to (N, H, L, S);
  /// undefined if none.
  static at::Tensor masked_by(const Problem& problem, const Positions& at, const AttentionSizes& sizes,
                              const KeyLengths& key_lengths) {
    at::Tensor masked;
    const auto add = [&masked](const at::Tensor& also) { masked = masked.defined() ? masked.logical_or(also) : also; };
    const Window& window = problem.window;
    if (window.left >= 0) add(at.key < at.query - window.left);
    if (window.right >= 0) add(at.key > at.query + window.right);
    if (problem.is_packed()) add(at.query_sequence != at.key_sequence);
    if (problem.key_lengths.defined()) add(at.key >= problem.key_lengths.view({-1, 1, 1, 1}));
    const at::Tensor& mask = problem.attn_mask;
    if (mask.defined() && mask.scalar_type() == at::kBool) add(mask.logical_not());
    if (problem.variant != nullptr)
      add(problem.variant->mask(sizes, problem.variant_tensors, key_lengths).logical_not().to(problem.query.device()));
    return masked;
  }

  /// If all scores of a row are −∞, its weights and gradients are zeros. In a row with NaN, −∞ gives 0 too.
  static at::Tensor softmax(const at::Tensor& scores) {
    const at::Tensor weights = at::_safe_softmax(scores, -1);
    return is_looked_at(weights) && !is_finite(weights) ? weights.masked_fill(scores.eq(kNegativeInfinity), 0.0)
                                                        : weights;
  }

  /// If all scores of a row are −∞, the result is −∞ and the gradients are zeros. torch's gradients are NaN.
  static at::Tensor log_sum_exp(const at::Tensor& scores) {
    const at::Tensor is_empty = scores.eq(kNegativeInfinity).all(-1, /*keepdim=*/true);  // (N, H, L, 1)
    return at::logsumexp(scores.masked_fill(is_empty, 0.0), -1).masked_fill(is_empty.squeeze(-1), kNegativeInfinity);
  }

  static at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

  static at::Tensor converted(const at::Tensor& tensor) { return tensor.to(compute_dtype(tensor.scalar_type())); }

  /// Key or value for every query head: query head h reads head h·G/H. (N, H, S, D or Dv)
  static at::Tensor keys_of_each_query_head(const at::Tensor& given, const Problem& problem) {
    const at::Tensor tensor = converted(problem.has_pages() ? gathered(given, problem.block_table) : given);
    const auto queries_per_key = problem.num_heads() / problem.num_kv_heads();
    return queries_per_key == 1 ? tensor : tensor.repeat_interleave(queries_per_key, 1);
  }

  /// Pages (num_pages, G, page_size, D) as (N, G, S, D). The table may have any numbers for keys that do not exist.
  static at::Tensor gathered(const at::Tensor& pages, const at::Tensor& table) {
    const at::Tensor which = table.remainder(std::max<std::int64_t>(pages.size(0), 1)).flatten();
    return pages.index_select(0, which)
        .unflatten(0, {table.size(0), table.size(1)})  // (N, P, G, page_size, D)
        .transpose(1, 2)
        .flatten(2, 3);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
