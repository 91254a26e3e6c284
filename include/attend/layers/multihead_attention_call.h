// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/key_value_cache.h>
#include <attend/layers/position_bias.h>
#include <attend/version.h>

#include <torch/arg.h>
#include <torch/types.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The optional arguments of MultiheadAttention::self_attention() and cross_attention(): masks, positions, a cache, the
/// offsets of a packed batch, a bias.
///
/// Each member is set by `.name(value)`, which returns the struct, and read by `.name()`.
///
/// @code
/// attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(512, 8).batch_first(true));
/// auto call = attend::MultiheadAttentionCall().key_padding_mask(key_padding_mask).is_causal(true);
/// torch::Tensor y = layer->self_attention(x, call);
/// @endcode
struct MultiheadAttentionCall {
  /// A pointer to a bias. The call does not own it.
  using PositionBiasPointer = PositionBias*;
  /// A pointer to a cache. The call does not own it.
  using CachePointer = KeyValueCache*;

  /// Keys to ignore, (N, S), or (S) without a batch: bool or uint8, true = ignore, or numbers that are added to the
  /// scores. It cannot be combined with a cache: set cache_valid instead. Default: none.
  TORCH_ARG(torch::Tensor, key_padding_mask);
  /// A mask, (L, S) or (N·H, L, S), without a batch (L, S) or (H, L, S): bool or uint8, true = ignore, or numbers that
  /// are added to the scores. Default: none.
  TORCH_ARG(torch::Tensor, attn_mask);
  /// Whether a query attends only to the keys up to its own position. The option is_causal has this effect in every
  /// call. Default: false.
  TORCH_ARG(bool, is_causal) = false;
  /// The positions of the queries for the option rotary, (L) or (N, L); with several axes (L, axes) or (N, L, axes).
  /// They need the option rotary. Default: i + S − L for query i, so that the last query is at the last key. With a
  /// cache S counts all its keys, those of this call included.
  TORCH_ARG(torch::Tensor, positions);
  /// The positions of the keys for the option rotary, (S) or (N, S); with several axes (S, axes) or (N, S, axes). They
  /// need the option rotary and, in cross_attention(), the argument memory. Default: in self_attention() those of the
  /// queries, in cross_attention() 0 … S − 1. With a cache the positions in cross_attention() continue after its keys.
  TORCH_ARG(torch::Tensor, key_positions);
  /// Keys and values of earlier tokens. The layer appends those of this call, and attends to all. After an error the
  /// new ones may already be in the cache: call KeyValueCache::truncate() before you repeat the call. Default: none.
  TORCH_ARG(CachePointer, cache) = nullptr;
  /// The index of this layer in the cache. Default: 0.
  TORCH_ARG(std::int64_t, cache_layer) = 0;
  /// The number of new tokens of each batch entry, int64 (N); see KeyValueCache::append(). It needs a cache. Default:
  /// all.
  TORCH_ARG(torch::Tensor, cache_valid);
  /// The offsets of the queries of a packed batch, int32 (B + 1); see AttentionOptions::query_offsets(). The batch has
  /// sequences of any lengths one after the other: N is 1, or x has no batch dimension. Positions count within a
  /// sequence. It cannot be combined with a cache. Default: none.
  TORCH_ARG(torch::Tensor, query_offsets);
  /// The offsets of the keys, int32 (B + 1). Default: query_offsets in self_attention().
  TORCH_ARG(torch::Tensor, key_offsets);
  /// A bias for this call, in place of the layer's own: T5 has one bias for all layers. Its num_heads() must be that of
  /// the layer. It must live until the call returns. Default: the layer's own, if it has one.
  TORCH_ARG(PositionBiasPointer, position_bias) = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
