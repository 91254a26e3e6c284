// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/options.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <torch/arg.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// All keys and values of one layer of a KeyValueCache: the arguments of attention() after the query.
struct CachedKeys {
  at::Tensor key,            ///< the keys, as they are stored
      value;                 ///< the values, as they are stored
  AttentionOptions options;  ///< the caller's options, with key_lengths, block_table and window set by the cache
};

/// Options of KeyValueCache.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::KeyValueCacheOptions(32, 1, 8, 128, 4096).dtype(torch::kBFloat16)
/// @endcode
struct KeyValueCacheOptions {
  /// Sets the options that have no default.
  ///
  /// @param num_layers As the option num_layers.
  /// @param batch_size As the option batch_size.
  /// @param num_kv_heads As the option num_kv_heads.
  /// @param head_dim As the option head_dim.
  /// @param max_length As the option max_length.
  KeyValueCacheOptions(std::int64_t num_layers, std::int64_t batch_size, std::int64_t num_kv_heads,
                       std::int64_t head_dim, std::int64_t max_length)
      : num_layers_(num_layers),
        batch_size_(batch_size),
        num_kv_heads_(num_kv_heads),
        head_dim_(head_dim),
        max_length_(max_length) {}

  /// The number of attention layers whose keys and values are stored, at least 1. No default.
  TORCH_ARG(std::int64_t, num_layers);
  /// The number of batch entries N, at least 1. No default.
  TORCH_ARG(std::int64_t, batch_size);
  /// The number of key and value heads G, at least 1. No default.
  TORCH_ARG(std::int64_t, num_kv_heads);
  /// The width D of a key, at least 1. No default.
  TORCH_ARG(std::int64_t, head_dim);
  /// The largest number of positions of a batch entry, at least 1. No default.
  TORCH_ARG(std::int64_t, max_length);
  /// The width Dv of a value, or 0 for head_dim. Default: 0.
  TORCH_ARG(std::int64_t, value_dim) = 0;
  /// The dtype of keys and values: float64, float32, bfloat16 or float16. Default: float32.
  TORCH_ARG(c10::ScalarType, dtype) = c10::kFloat;
  /// The device of keys and values. Default: the CPU.
  TORCH_ARG(c10::Device, device) = c10::kCPU;

  /// Sliding attention: a query attends to at most this many keys before its own position, as in Window::left. Older
  /// keys are evicted, and their memory is reused. −1: no key is evicted. Default: −1.
  ///
  /// The memory depends on the window and max_append, not on max_length.
  ///
  /// Source: Jiang et al., "Mistral 7B", 2023.
  TORCH_ARG(std::int64_t, window) = -1;
  /// The largest number of tokens in one append() to a cache with a window, at least 1. Feed a longer prompt in pieces.
  /// No effect without a window. Default: 512.
  TORCH_ARG(std::int64_t, max_append) = 512;

  /// The number of positions in a page, or 0 for one contiguous tensor. With pages, a batch entry takes memory from a
  /// common pool only for the positions that it has, and entries share pages after KeyValueCache::reorder(). A cache
  /// with a window always has pages: 0 then means 64. Default: 0.
  ///
  /// Source: Kwon et al., "PagedAttention", 2023.
  TORCH_ARG(std::int64_t, page_size) = 0;
  /// The number of pages in the pool, or 0 for as many as all entries can need. No effect without pages. Default: 0.
  TORCH_ARG(std::int64_t, num_pages) = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
