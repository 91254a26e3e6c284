// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr const char* kMultiheadAttention = "attend::MultiheadAttention";

inline std::int64_t num_kv_heads(const MultiheadAttentionOptions& options) {
  return options.num_kv_heads().value_or(options.num_heads());
}

inline bool has_qkv_bias(const MultiheadAttentionOptions& options) {
  return options.qkv_bias().value_or(options.bias());
}

inline bool has_out_bias(const MultiheadAttentionOptions& options) {
  return options.out_bias().value_or(options.bias());
}

/// Throws c10::ValueError for an added key together with an option that needs the positions of keys.
inline void check_added_keys(const MultiheadAttentionOptions& options) {
  for (const auto& [is_set, name] :
       {std::pair(options.rotary().has_value(), "rotary"), std::pair(options.alibi(), "alibi"),
        std::pair(options.position_bias() != nullptr, "position_bias")})
    TORCH_CHECK_VALUE(!is_set || !(options.add_bias_kv() || options.add_zero_attn()), kMultiheadAttention, ": ",
                      options.add_bias_kv() ? "add_bias_kv" : "add_zero_attn", " cannot be combined with ", name,
                      ", because the added key has no position");
}

inline void check_options(const MultiheadAttentionOptions& options) {
  constexpr const char* kName = kMultiheadAttention;
  check_positive(kName, "embed_dim", options.embed_dim());
  check_positive(kName, "num_heads", options.num_heads());
  check_positive(kName, "kdim", options.kdim());
  check_positive(kName, "vdim", options.vdim());
  check_positive(kName, "num_kv_heads", num_kv_heads(options));
  TORCH_CHECK_VALUE(options.num_heads() % num_kv_heads(options) == 0, kName, ": num_heads (", options.num_heads(),
                    ") must be divisible by num_kv_heads (", num_kv_heads(options), ")");
  if (options.head_dim())
    check_positive(kName, "head_dim", *options.head_dim());
  else
    TORCH_CHECK_VALUE(options.embed_dim() % options.num_heads() == 0, kName, ": embed_dim (", options.embed_dim(),
                      ") must be divisible by num_heads (", options.num_heads(), "), or set head_dim");
  TORCH_CHECK_VALUE(options.dropout() >= 0.0 && options.dropout() <= 1.0, kName, ": dropout (", options.dropout(),
                    ") must be a probability from 0 to 1");
  TORCH_CHECK_VALUE(options.window().left >= -1 && options.window().right >= -1, kName,
                    ": both sides of window must be at least 0, or -1 for unlimited, got ", options.window());
  TORCH_CHECK_VALUE(options.softcap() >= 0.0 && std::isfinite(options.softcap()), kName, ": softcap (",
                    options.softcap(), ") must be positive and finite, or 0 for none");
  TORCH_CHECK_VALUE(options.qk_norm_eps() >= 0.0 && std::isfinite(options.qk_norm_eps()), kName, ": qk_norm_eps (",
                    options.qk_norm_eps(), ") must be finite and at least 0");
  check_added_keys(options);
  if (options.rotary()) {
    const std::int64_t head_dim = options.head_dim().value_or(options.embed_dim() / options.num_heads());
    TORCH_CHECK_VALUE(options.rotary()->head_dim() == head_dim, kName, ": head_dim of rotary (",
                      options.rotary()->head_dim(), ") must be the head_dim of the layer (", head_dim, ")");
  }
  if (options.position_bias()) {
    TORCH_CHECK_VALUE(options.position_bias()->num_heads() == options.num_heads(), kName,
                      ": position_bias must have num_heads (", options.num_heads(), "), got one of ",
                      options.position_bias()->num_heads(), " heads");
    TORCH_CHECK_VALUE(!options.attention_function(), kName,
                      ": position_bias cannot be combined with attention_function, which computes all scores");
  }
}

/// The options that determine the parameters, for the error messages of load().
inline std::vector<ParameterOptions> multihead_parameters() {
  const std::string all = "num_heads, num_kv_heads or head_dim", keys = "num_kv_heads or head_dim",
                    queries = "num_heads or head_dim", widths = "kdim, vdim or separate_projections",
                    separate = "separate_projections", qkv_bias = "bias, qkv_bias or separate_projections",
                    norm = "qk_norm";
  return {{"in_proj_weight", {all, "embed_dim"}, widths},
          {"q_proj_weight", {queries, "embed_dim"}, widths},
          {"k_proj_weight", {keys, "kdim"}, widths},
          {"v_proj_weight", {keys, "vdim"}, widths},
          {"in_proj_bias", {all}, qkv_bias},
          {"q_proj.weight", {queries, "embed_dim"}, separate},
          {"k_proj.weight", {keys, "kdim"}, separate},
          {"v_proj.weight", {keys, "vdim"}, separate},
          {"q_proj.bias", {queries}, qkv_bias},
          {"k_proj.bias", {keys}, qkv_bias},
          {"v_proj.bias", {keys}, qkv_bias},
          {"out_proj.weight", {"embed_dim", queries}},
          {"out_proj.bias", {"embed_dim"}, "bias or out_bias"},
          {"bias_k", {"", "", keys}, "add_bias_kv"},
          {"bias_v", {"", "", keys}, "add_bias_kv"},
          {"q_norm.weight", {"head_dim"}, norm},
          {"q_norm.bias", {"head_dim"}, norm},
          {"k_norm.weight", {"head_dim"}, norm},
          {"k_norm.bias", {"head_dim"}, norm}};
}

/// Writes all options of torch, and those of attend's own that are set.
inline void print_options(std::ostream& stream, const MultiheadAttentionOptions& options, std::int64_t head_dim) {
  stream << kMultiheadAttention << "(" << options.embed_dim() << ", " << options.num_heads()
         << ", num_kv_heads=" << num_kv_heads(options) << ", head_dim=" << head_dim << ", kdim=" << options.kdim()
         << ", vdim=" << options.vdim() << std::boolalpha << ", bias=" << options.bias()
         << ", dropout=" << options.dropout() << ", add_bias_kv=" << options.add_bias_kv()
         << ", add_zero_attn=" << options.add_zero_attn() << ", batch_first=" << options.batch_first()
         << ", is_causal=" << options.is_causal() << ", window=" << options.window() << ", scale=" << options.scale();
  if (options.qkv_bias()) stream << ", qkv_bias=" << *options.qkv_bias();
  if (options.out_bias()) stream << ", out_bias=" << *options.out_bias();
  if (options.separate_projections()) stream << ", separate_projections=true";
  if (options.qk_norm() != QkNorm::kNone)
    stream << ", qk_norm=" << options.qk_norm() << ", qk_norm_eps=" << options.qk_norm_eps();
  if (options.rotary()) stream << ", rotary=(given)";
  if (options.softcap() != 0.0) stream << ", softcap=" << options.softcap();
  if (options.alibi()) stream << ", alibi=true";
  if (options.position_bias()) stream << ", position_bias=(given)";
  if (options.attention_function()) stream << ", attention_function=(given)";
  stream << std::noboolalpha << ")";
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
