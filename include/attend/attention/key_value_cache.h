// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/detail/key_value_store.h>
#include <attend/attention/key_value_cache_options.h>
#include <attend/attention/options.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The keys and values of earlier tokens, for decoding: each step computes only the keys and values of the new tokens.
///
/// A cache belongs to one batch of sequences and to all attention layers of a model. It is an object outside of the
/// model: the same model can use several caches. In each step, every layer appends its new keys and values, and attends
/// to all of its keys. The result equals attention without a cache, for every option of attention() except dropout.
///
/// All memory is allocated by the constructor. Each layer counts its own tokens. A cache must not be used from several
/// threads at once.
///
/// Sequences of different lengths: pass `valid` to append() and positions(). Entry n then has valid[n] new tokens: its
/// last valid[n] rows. The rows before them are padding, and their results have no meaning.
///
/// No gradient reaches cached keys and values.
///
/// Source: Shazeer, "Fast Transformer Decoding", 2019; pages: Kwon et al., "PagedAttention", 2023.
///
/// @code
/// attend::KeyValueCache cache(attend::KeyValueCacheOptions(1, 2, 4, 16, 100));  // 1 layer, N 2, G 4, D 16
/// torch::NoGradGuard no_grad;
/// cache.append(0, k, v);                                                   // (2, 4, L, 16): the prompt
/// torch::Tensor y = cache.attention(0, q, attend::AttentionOptions().is_causal(true));
/// cache.append(0, k1, v1);                                                 // (2, 4, 1, 16): the next token
/// torch::Tensor next = cache.attention(0, x);                              // x: its query. L + 1 keys
/// @endcode
class KeyValueCache {
 public:
  /// Allocates the memory.
  ///
  /// @param options The sizes and the kind of cache.
  /// @throws c10::ValueError for options out of range.
  /// @throws c10::TypeError for a dtype that attention() does not support.
  explicit KeyValueCache(const KeyValueCacheOptions& options) : store_(options) {}

  // A copy would share the memory, but not the lengths.
  KeyValueCache(const KeyValueCache&) = delete;
  KeyValueCache& operator=(const KeyValueCache&) = delete;
  /// Takes over the memory of another cache, which must not be used any more.
  KeyValueCache(KeyValueCache&& other) = default;
  /// Takes over the memory of another cache, which must not be used any more.
  KeyValueCache& operator=(KeyValueCache&& other) = default;

  /// Adds the keys and values of new tokens to a layer.
  ///
  /// @param layer The layer, from 0.
  /// @param key (N, G, L, D), with the dtype and device of the cache. With a rotary embedding, rotate it first; see
  /// positions().
  /// @param value (N, G, L, Dv), with the dtype and device of the cache.
  /// @param valid int64 (N) on the CPU: the number of new tokens of each entry, from 0 to L. They are the last rows.
  /// Default: L for all entries.
  /// @throws c10::ValueError for another shape or device, a layer that does not exist, more tokens than max_length,
  /// max_append or num_pages allow, and for a tensor that requires a gradient while gradients are recorded.
  /// @throws c10::TypeError for another dtype.
  ///
  /// If append() throws, no token is added.
  void append(std::int64_t layer, const at::Tensor& key, const at::Tensor& value, const at::Tensor& valid = {}) {
    store_.append(layer, key, value, valid);
  }

  /// Attention of queries to all keys of a layer. The last query is at the position of the last key.
  ///
  /// @param layer The layer, from 0.
  /// @param query (N, H, L, D). Usually the queries of the tokens of the last append().
  /// @param options As in attention(). key_lengths, block_table, query_offsets and key_offsets must not be set. Query
  /// and keys have absolute positions: key j is the token at position j. An attn_mask has S = the largest of lengths().
  /// @return (N, H, L, Dv). Zeros for an entry without keys.
  /// @throws c10::ValueError for a layer that does not exist, and for queries that need keys that were evicted.
  /// @throws c10::Error of the same kinds as attend::attention().
  at::Tensor attention(std::int64_t layer, const at::Tensor& query, const AttentionOptions& options = {}) const {
    TORCH_CHECK_VALUE(query.defined() && query.dim() == 4 && query.size(0) == this->options().batch_size(),
                      "attend::KeyValueCache: query must be (N, H, L, D), with N = ", this->options().batch_size(),
                      ", got ", query.defined() ? c10::str(query.sizes()) : "an undefined tensor");
    const CachedKeys cached = arguments(layer, query.size(2), options);
    return attend::attention(query, cached.key, cached.value, cached.options);
  }

  /// The arguments with which attention(), attention_with_lse() and flex_attention() attend to all keys of a layer.
  ///
  /// @param layer The layer, from 0.
  /// @param query_length The number of queries L.
  /// @param options The options of the call.
  /// @return Keys and values as they are stored, and the options that say how to read them. Valid until the next call
  /// that changes the cache. With pages S is a multiple of page_size.
  /// @throws c10::ValueError as attention().
  ///
  /// @code
  /// attend::KeyValueCache cache(attend::KeyValueCacheOptions(1, 2, 4, 16, 100));
  /// attend::CachedKeys cached = cache.arguments(0, q.size(2));
  /// torch::Tensor y = attend::flex_attention(q, cached.key, cached.value, attend::Softcap{30}, {}, cached.options);
  /// @endcode
  CachedKeys arguments(std::int64_t layer, std::int64_t query_length, const AttentionOptions& options = {}) const {
    return store_.arguments(layer, query_length, options);
  }

  /// The number of tokens of each batch entry.
  ///
  /// @param layer The layer, from 0. Layers differ only within a step. Default: 0.
  /// @return int64 (N) on the CPU. Evicted tokens are included.
  /// @throws c10::ValueError for a layer that does not exist.
  at::Tensor lengths(std::int64_t layer = 0) const { return store_.lengths(layer); }

  /// The positions of the next tokens, for rotary embeddings. Call it before append().
  ///
  /// @param length The number of new tokens L.
  /// @param layer The layer, from 0. Layers differ only within a step. Default: 0.
  /// @param valid As in append(). The positions of padding rows have no meaning, and are at least 0.
  /// @return int64 (N, L) on the device of the cache. Without padding: lengths()[n] + i.
  /// @throws c10::ValueError for a negative length, a layer that does not exist, and for numbers in valid outside of 0
  /// … L.
  /// @throws c10::TypeError if valid is not int64.
  at::Tensor positions(std::int64_t length, std::int64_t layer = 0, const at::Tensor& valid = {}) const {
    return store_.positions(length, layer, valid);
  }

  /// Forgets all tokens from a position on, in all layers. A shorter entry stays as it is.
  ///
  /// @param length The number of tokens to keep, at least 0.
  /// @throws c10::ValueError for a negative length, or if an entry then needs keys that were evicted.
  void truncate(std::int64_t length) { store_.truncate(length); }

  /// Replaces each batch entry by a copy of another one, as beam search needs it. With pages, nothing is copied:
  /// entries share their pages until one of them appends.
  ///
  /// @param indices int64 (N): entry n becomes a copy of entry indices[n].
  /// @throws c10::ValueError for another shape, and for an entry that does not exist.
  /// @throws c10::TypeError for another dtype.
  void reorder(const at::Tensor& indices) { store_.reorder(indices); }

  /// Forgets all tokens. The memory is kept.
  void reset() { truncate(0); }

  /// The number of pages that no entry uses; 0 for a cache without pages.
  std::int64_t free_pages() const { return store_.free_pages(); }

  /// The options that the cache was made with.
  const KeyValueCacheOptions& options() const { return store_.options(); }

 private:
  detail::KeyValueStore store_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
