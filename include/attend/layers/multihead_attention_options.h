// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/layers/position_bias.h>
#include <attend/positions/rotary.h>
#include <attend/version.h>

#include <torch/arg.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// How MultiheadAttention normalizes each head of the queries and keys.
enum class QkNorm {
  kNone,   ///< no normalization
  kRms,    ///< RMSNorm over head_dim
  kLayer,  ///< LayerNorm over head_dim
};

/// Writes the name, for example "kRms".
inline std::ostream& operator<<(std::ostream& stream, QkNorm norm) {
  return stream << (norm == QkNorm::kNone ? "kNone" : norm == QkNorm::kRms ? "kRms" : "kLayer");
}

/// A function that computes attention in a layer, in place of attention(). It gets the arguments of attention().
using AttentionFunction = std::function<torch::Tensor(const torch::Tensor& query, const torch::Tensor& key,
                                                      const torch::Tensor& value, const AttentionOptions& options)>;

/// Options of MultiheadAttention: those of torch::nn::MultiheadAttentionOptions, then options that torch lacks.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::MultiheadAttentionOptions(512, 8).batch_first(true).num_kv_heads(2).is_causal(true)
/// @endcode
struct MultiheadAttentionOptions {
  /// Sets the two options that have no default.
  ///
  /// @param embed_dim As the option embed_dim.
  /// @param num_heads As the option num_heads.
  MultiheadAttentionOptions(std::int64_t embed_dim, std::int64_t num_heads)
      : embed_dim_(embed_dim), num_heads_(num_heads), kdim_(embed_dim), vdim_(embed_dim) {}

  /// Width E of the query and of the output, at least 1. No default.
  TORCH_ARG(std::int64_t, embed_dim);
  /// The number of query heads H, at least 1. It must divide embed_dim, unless head_dim is given. No default.
  TORCH_ARG(std::int64_t, num_heads);
  /// The probability with which a weight is set to 0 in training mode, from 0 to 1. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// Whether the projections have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
  /// Whether to append one learned key and value, which every query may attend to. The added key has no position: it
  /// cannot be combined with rotary, alibi, position_bias, a cache or a packed batch. Default: false.
  TORCH_ARG(bool, add_bias_kv) = false;
  /// Whether to append one key and value of zeros, which every query may attend to. The restrictions are those of
  /// add_bias_kv. Default: false.
  TORCH_ARG(bool, add_zero_attn) = false;
  /// Width of the keys, at least 1. Default: embed_dim.
  TORCH_ARG(std::int64_t, kdim);
  /// Width of the values, at least 1. Default: embed_dim.
  TORCH_ARG(std::int64_t, vdim);

  /// Whether query, key, value and output are (N, L, E). Otherwise they are (L, N, E). Default: false, as in torch.
  TORCH_ARG(bool, batch_first) = false;
  /// The number of key and value heads G, at least 1. It must divide num_heads. num_heads / num_kv_heads query heads
  /// share one of them. Default: num_heads.
  TORCH_ARG(std::optional<std::int64_t>, num_kv_heads);
  /// Width of one head of queries, keys and values, at least 1. Default: embed_dim / num_heads.
  TORCH_ARG(std::optional<std::int64_t>, head_dim);
  /// Whether a query attends only to the keys up to its own position. The last query is at the last key. Default:
  /// false.
  TORCH_ARG(bool, is_causal) = false;
  /// Limits a query to the keys near its position: `.window({left, right})`, −1 = unlimited. Default: unlimited.
  TORCH_ARG(Window, window) = {};
  /// The factor by which q·k is multiplied: a number or kInverseSqrt. Default: kInverseSqrt, 1/√head_dim.
  TORCH_ARG(Scale, scale) = kInverseSqrt;
  /// Which backend computes the attention; see AttentionOptions::backend(). With kReference torch computes the
  /// projections too. With the other values attend's kernels compute them where they are faster. Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;

  /// Whether the projections of query, key and value have a bias. Default: the option bias.
  TORCH_ARG(std::optional<bool>, qkv_bias);
  /// Whether the projection of the output has a bias. Default: the option bias.
  TORCH_ARG(std::optional<bool>, out_bias);
  /// Whether query, key and value are projected by submodules `q_proj`, `k_proj` and `v_proj`, as in Hugging Face's
  /// models. Otherwise the parameters are torch's `in_proj_weight` or `q_proj_weight`, and so on. Default: false.
  TORCH_ARG(bool, separate_projections) = false;
  /// Rotates the queries and keys by their positions; see RotaryEmbedding. Its head_dim must be that of the layer.
  /// Default: none.
  TORCH_ARG(std::optional<RotaryEmbeddingOptions>, rotary);
  /// Normalizes each head of the queries and keys, before the rotary embedding. The submodules `q_norm` and `k_norm`
  /// have learned factors for each of the head_dim channels, which all heads share. Default: kNone.
  ///
  /// Source: Henry et al., "Query-key normalization for transformers", 2020; as used here: Dehghani et al., "Scaling
  /// vision transformers to 22 billion parameters", 2023.
  TORCH_ARG(QkNorm, qk_norm) = QkNorm::kNone;
  /// The number that qk_norm adds to the mean square or to the variance, finite and at least 0. Default: 1e-6.
  TORCH_ARG(double, qk_norm_eps) = 1e-6;
  /// Keeps scores within ±softcap; see AttentionOptions::softcap(). Default: 0, no softcap.
  TORCH_ARG(double, softcap) = 0.0;
  /// Whether to add linear biases to the scores; see AttentionOptions::alibi_slopes(). The slopes are those of the
  /// paper, alibi_slopes(). They are not parameters and are not saved. Default: false.
  TORCH_ARG(bool, alibi) = false;
  /// A learned bias that is added to the scores. The layer registers a copy of it as the submodule `position_bias`. It
  /// cannot be combined with attention_function. Default: none.
  TORCH_ARG(std::shared_ptr<PositionBias>, position_bias);
  /// Computes the attention of the projected heads in place of attention(): for example a call of flex_attention() with
  /// your own score_mod. The function should pass on the options that it gets: they hold masks, scale, dropout and
  /// backend. Default: attention().
  TORCH_ARG(AttentionFunction, attention_function);
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
