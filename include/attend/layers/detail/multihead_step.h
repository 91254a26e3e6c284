// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/key_value_cache.h>
#include <attend/layers/detail/ignore_masks.h>
#include <attend/layers/detail/multihead_options.h>
#include <attend/layers/detail/multihead_projection.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/layers/position_bias.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// One call of MultiheadAttention after the projections: what attention() needs.
struct MultiheadStep : HeadTensors {
  AttentionOptions options;
  PositionBias* bias = nullptr;       // may be null
  const AttentionFunction& function;  // may be empty

  /// (N, H, L, head_dim)
  torch::Tensor attention() const {
    if (bias != nullptr) return bias->attention(query, key, value, options);
    return function ? function(query, key, value, options) : attend::attention(query, key, value, options);
  }

  Explanation explain() const {
    TORCH_CHECK_NOT_IMPLEMENTED(!function, kMultiheadAttention,
                                ": explain() does not know what the attention_function of the options computes");
    return bias != nullptr ? bias->explain(query, key, value, options) : attend::explain(query, key, value, options);
  }

  /// (N, H, L, S), by the dense formula.
  torch::Tensor weights() const {
    AttentionOptions with_bias = options;
    if (bias != nullptr) {
      const torch::Tensor added = bias->dense(query.size(2), key.size(2)), &mask = options.attn_mask();  // (H, L, S)
      if (!mask.defined())
        with_bias.attn_mask(added);
      else if (mask.scalar_type() == torch::kBool)
        with_bias.attn_mask(torch::where(mask, added, -std::numeric_limits<double>::infinity()));
      else
        with_bias.attn_mask(mask + added);
    }
    return attend::attention_weights(query, key, with_bias);
  }
};

/// How many keys the longest batch entry has after the new ones are in the cache.
inline std::int64_t keys_with_cache(const MultiheadStep& step, const MultiheadAttentionCall& call) {
  const KeyValueCache& cache = *call.cache();
  if (!step.key.defined() || step.key.size(2) == 0) return cache.lengths(call.cache_layer()).max().item<std::int64_t>();
  const torch::Tensor positions = cache.positions(step.key.size(2), call.cache_layer(), call.cache_valid());
  return positions.select(1, -1).max().item<std::int64_t>() + 1;
}

/// Sets the masks and the window of a call. New keys are not in the cache yet.
inline void add_masks(MultiheadStep& step, const MultiheadAttentionOptions& layer, const MultiheadAttentionCall& call,
                      bool is_batched, bool has_data) {
  Window window = layer.window();
  if (call.is_causal() || layer.is_causal()) window.right = 0;
  const std::int64_t added_keys = layer.add_bias_kv() + layer.add_zero_attn();
  if (added_keys == 0) step.options.window(window);
  const bool has_window_mask = added_keys > 0 && (window.left >= 0 || window.right >= 0);
  if (!call.key_padding_mask().defined() && !call.attn_mask().defined() && !has_window_mask) return;
  const std::int64_t keys = call.cache() != nullptr ? keys_with_cache(step, call) : step.key.size(2) - added_keys;
  const MaskSizes sizes{step.query.size(0), layer.num_heads(), step.query.size(2), keys, is_batched};
  MaskParts parts{{}, {}, added_keys, sizes};
  if (call.key_padding_mask().defined())
    parts.given.push_back(checked_key_padding_mask(kMultiheadAttention, call.key_padding_mask(), sizes, step.query));
  if (call.attn_mask().defined())
    parts.given.push_back(checked_attn_mask(kMultiheadAttention, call.attn_mask(), sizes, step.query));
  if (has_window_mask) parts.window = window;  // the added keys have no position
  step.options.attn_mask(has_data ? attention_mask(parts, step.query) : attention_mask_without_data(parts, step.query));
}

/// Takes all keys and values of the layer from the cache. The other options must be set.
inline void read_cache(MultiheadStep& step, const MultiheadAttentionCall& call) {
  const CachedKeys cached = call.cache()->arguments(call.cache_layer(), step.query.size(2), step.options);
  step.key = cached.key;
  step.value = cached.value;
  step.options = cached.options;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
