// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/multihead_options.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Throws unless the tensors fit the options, the weights and one another.
inline void check_inputs(const MultiheadAttentionOptions& options, const torch::Tensor& query, const torch::Tensor& key,
                         const torch::Tensor& value, const torch::Tensor& weight) {
  constexpr const char* kName = kMultiheadAttention;
  const auto check_one = [&](const char* name, const torch::Tensor& x, const char* width_name, std::int64_t width) {
    check_tensor(kName, name, x);
    TORCH_CHECK_VALUE(x.dim() == 2 || x.dim() == 3, kName, ": ", name, " must be 3-d ",
                      options.batch_first() ? "(N, length, width)" : "(length, N, width)",
                      ", or 2-d (length, width) without a batch, got ", x.dim(), "-d ", x.sizes());
    TORCH_CHECK_VALUE(x.size(-1) == width, kName, ": the width of ", name, " must be ", width_name, " (", width,
                      "), got ", x.sizes());
    check_fits_weights(kName, name, x, weight);
  };
  check_one("query", query, "embed_dim", options.embed_dim());
  check_one("key", key, "kdim", options.kdim());
  check_one("value", value, "vdim", options.vdim());
  TORCH_CHECK_VALUE(key.dim() == query.dim(), kName, ": key ", key.sizes(), " must have as many dimensions as query ",
                    query.sizes());
  const auto all_but_width = [](const torch::Tensor& x) { return x.sizes().slice(0, x.sizes().size() - 1); };
  TORCH_CHECK_VALUE(all_but_width(value) == all_but_width(key), kName, ": value ", value.sizes(),
                    " must have the batch size and length of key ", key.sizes());
  const int batch = options.batch_first() ? 0 : 1;
  TORCH_CHECK_VALUE(query.dim() == 2 || key.size(batch) == query.size(batch), kName, ": key ", key.sizes(),
                    " must have the batch size of query ", query.sizes());
}

/// Throws for a wrong query of a call whose keys are all in the cache.
inline void check_inputs_without_memory(const MultiheadAttentionOptions& options, const torch::Tensor& query,
                                        const MultiheadAttentionCall& call, const torch::Tensor& weight) {
  check_inputs(options, query, query, query, weight);
  TORCH_CHECK_VALUE(!call.key_positions().defined(), kMultiheadAttention,
                    ": key_positions need memory; the keys in the cache are rotated already");
}

/// Throws for parts of a call that contradict the options or one another.
inline void check_call(const MultiheadAttentionOptions& options, const MultiheadAttentionCall& call) {
  constexpr const char* kName = kMultiheadAttention;
  const bool has_cache = call.cache() != nullptr, has_bias = call.position_bias() != nullptr;
  if (options.add_bias_kv() || options.add_zero_attn())
    for (const auto& [is_given, name] :
         {std::pair(has_cache, "a cache"), std::pair(call.query_offsets().defined(), "query_offsets"),
          std::pair(has_bias, "position_bias")})
      TORCH_CHECK_VALUE(!is_given, kName, ": ", options.add_bias_kv() ? "add_bias_kv" : "add_zero_attn",
                        " cannot be combined with ", name, ", because the added key has no position");
  for (const auto& [is_given, name] :
       {std::pair(call.positions().defined(), "positions"), std::pair(call.key_positions().defined(), "key_positions")})
    TORCH_CHECK_VALUE(!is_given || options.rotary(), kName, ": ", name, " need the option rotary");
  TORCH_CHECK_VALUE(has_cache || !call.cache_valid().defined(), kName, ": cache_valid needs a cache");
  TORCH_CHECK_VALUE(!has_cache || !call.key_padding_mask().defined(), kName,
                    ": key_padding_mask cannot be combined with a cache; pass cache_valid");
  TORCH_CHECK_VALUE(!has_cache || !call.query_offsets().defined(), kName,
                    ": query_offsets cannot be combined with a cache; each batch entry of a cache is one sequence");
  if (!has_bias) return;
  TORCH_CHECK_VALUE(call.position_bias()->num_heads() == options.num_heads(), kName,
                    ": position_bias must have num_heads (", options.num_heads(), "), got one of ",
                    call.position_bias()->num_heads(), " heads");
  TORCH_CHECK_VALUE(!options.attention_function(), kName,
                    ": position_bias cannot be combined with attention_function, which computes all scores");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
