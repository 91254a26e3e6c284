// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/rotation.h>
#include <attend/attention/rotary_tables.h>
#include <attend/detail/torch/without_data.h>
#include <attend/layers/detail/multihead_options.h>
#include <attend/layers/detail/multihead_projection.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/layers/rms_norm.h>
#include <attend/positions/rotary.h>
#include <attend/positions/token_positions.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/repeat_interleave.h>
#include <c10/util/Exception.h>
#include <torch/nn/modules/container/any.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// What MultiheadAttention does to the heads of queries and keys after the projections.

/// The layer of the option qk_norm.
inline torch::nn::AnyModule head_norm(const MultiheadAttentionOptions& options, std::int64_t head_dim) {
  const std::vector<std::int64_t> sizes{head_dim};
  if (options.qk_norm() == QkNorm::kRms)
    return torch::nn::AnyModule(RMSNorm(RMSNormOptions(sizes).eps(options.qk_norm_eps())));
  return torch::nn::AnyModule(LayerNorm(LayerNormOptions(sizes).eps(options.qk_norm_eps())));
}

/// Normalizes each head of (N, heads, length, head_dim). The result has the memory layout of the projection's rows.
inline torch::Tensor normalized_heads(torch::nn::AnyModule& norm, const torch::Tensor& heads, bool batch_first,
                                      bool has_data) {
  const torch::Tensor rows = batch_first ? heads.transpose(1, 2) : heads.permute({2, 0, 1, 3});
  bool requires_grad = rows.requires_grad();
  if (!has_data)
    for (const torch::Tensor& parameter : norm.ptr()->parameters()) requires_grad |= parameter.requires_grad();
  const torch::Tensor result =
      has_data ? norm.forward<torch::Tensor>(rows) : without_data(rows.sizes(), rows.options(), requires_grad);
  return batch_first ? result.transpose(1, 2) : result.permute({1, 2, 0, 3});
}

/// The positions of queries and keys. An undefined tensor means 0 … length − 1.
struct HeadPositions {
  torch::Tensor query, key;
};

/// The positions of a call. Query i is at key position i + S − L: in a packed batch within its sequence, with a cache
/// after the call's keys are added to it.
inline HeadPositions positions_of(const MultiheadAttentionCall& call, const HeadTensors& heads,
                                  bool is_self_attention) {
  HeadPositions result{call.positions(), call.key_positions()};
  const std::int64_t length = heads.query.size(2), keys = heads.key.defined() ? heads.key.size(2) : 0;
  if (call.cache() != nullptr && is_self_attention && !result.query.defined()) {
    result.query = call.cache()->positions(length, call.cache_layer(), call.cache_valid());
  } else if (call.cache() != nullptr && !is_self_attention) {
    torch::Tensor end = call.cache()->lengths(call.cache_layer());  // one past the last key of each batch entry
    end = call.cache_valid().defined() ? end + call.cache_valid() : end + keys;
    const auto last = [&](std::int64_t count) {
      return (end.unsqueeze(1) + at::arange(-count, 0, torch::kLong)).to(heads.query.device());
    };
    if (!result.query.defined()) result.query = last(length);
    if (!result.key.defined()) result.key = last(keys);
  }
  if (is_self_attention && !result.key.defined()) result.key = result.query;
  const torch::Tensor &query_offsets = call.query_offsets(), &key_offsets = call.key_offsets();
  if (query_offsets.defined() && key_offsets.defined()) {
    if (!result.key.defined()) result.key = packed_positions(key_offsets);
    if (!result.query.defined()) {
      result.query = packed_positions(query_offsets);
      if (!query_offsets.is_same(key_offsets)) {
        const torch::Tensor lengths = query_offsets.diff().to(torch::kLong);
        result.query = result.query + at::repeat_interleave(key_offsets.diff() - lengths, lengths);
      }
    }
  } else if (!result.query.defined() && keys != length) {
    result.query = at::arange(keys - length, keys, heads.query.options().dtype(torch::kLong));
  }
  return result;
}

/// The tables of queries and keys. Without keys, the second is empty.
struct HeadTables {
  RotaryTables query, key;
};

inline HeadTables tables_of(const HeadTensors& heads, RotaryEmbeddingImpl& rotary, const HeadPositions& positions) {
  const RotaryTables of_query = rotary.cos_sin(heads.query, positions.query);
  if (!heads.key.defined()) return {of_query, {}};
  const bool is_same = positions.query.defined() ? positions.query.is_same(positions.key)
                                                 : !positions.key.defined();  // then the lengths are equal
  return {of_query, is_same ? of_query : rotary.cos_sin(heads.key, positions.key)};
}

/// Rotates queries and keys. They are the results of projections or of norms, which no backward pass reads.
inline void rotate_heads(HeadTensors& heads, const HeadTables& tables) {
  const auto rotate_one = [](torch::Tensor& x, const RotaryTables& of_x) {
    x = Rotation::apply_to_owned(x, of_x.cos, of_x.sin, of_x.layout);
  };
  rotate_one(heads.query, tables.query);
  if (heads.key.defined()) rotate_one(heads.key, tables.key);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
