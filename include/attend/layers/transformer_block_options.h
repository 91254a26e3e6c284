// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/layers/feed_forward.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <torch/arg.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <ostream>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The normalization in a TransformerBlock.
enum class NormKind {
  kLayer,  ///< LayerNorm
  kRms,    ///< RMSNorm
};

/// The place of the norm of a branch f of a TransformerBlock.
enum class NormPlace {
  kPre,         ///< x + f(norm(x)), as in GPT-2, Llama and ViT
  kPost,        ///< norm(x + f(x)), as in BERT and the first transformer
  kPreAndPost,  ///< x + post_norm(f(norm(x))), as in Gemma 2
};

/// How the branches of a TransformerBlock follow one another.
enum class BlockOrder {
  kInTurn,            ///< attention, then the feed-forward network
  kParallel,          ///< x + attention(norm(x)) + feed_forward(norm(x)) with one norm, as in GPT-J
  kParallelTwoNorms,  ///< the same with a norm for each branch, as in GPT-NeoX
};

/// Writes the name, for example "kRms".
inline std::ostream& operator<<(std::ostream& stream, NormKind kind) {
  return stream << (kind == NormKind::kLayer ? "kLayer" : "kRms");
}

/// Writes the name, for example "kPre".
inline std::ostream& operator<<(std::ostream& stream, NormPlace place) {
  return stream << (place == NormPlace::kPre ? "kPre" : place == NormPlace::kPost ? "kPost" : "kPreAndPost");
}

/// Writes the name, for example "kInTurn".
inline std::ostream& operator<<(std::ostream& stream, BlockOrder order) {
  return stream << (order == BlockOrder::kInTurn     ? "kInTurn"
                    : order == BlockOrder::kParallel ? "kParallel"
                                                     : "kParallelTwoNorms");
}

/// Options of TransformerBlock.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// auto attention = attend::MultiheadAttentionOptions(512, 8).num_kv_heads(2).bias(false).is_causal(true);
/// attention.rotary(attend::RotaryEmbeddingOptions(64)).separate_projections(true);
/// auto feed_forward = attend::FeedForwardOptions(512, 1376).activation(attend::kSiLU).gated(true).bias(false);
/// feed_forward.names(attend::FeedForwardNames::kLlama);
/// auto llama = attend::TransformerBlockOptions(attention, feed_forward).norm(attend::NormKind::kRms).norm_eps(1e-5);
/// @endcode
struct TransformerBlockOptions {
  /// Sets the two options that have no default.
  ///
  /// @param attention As the option attention.
  /// @param feed_forward As the option feed_forward.
  TransformerBlockOptions(MultiheadAttentionOptions attention, FeedForwardOptions feed_forward)
      : attention_(std::move(attention)), feed_forward_(std::move(feed_forward)) {}

  /// The self-attention. The block sets batch_first. No default.
  TORCH_ARG(MultiheadAttentionOptions, attention);
  /// The feed-forward network. Its embed_dim must be that of the attention. No default.
  TORCH_ARG(FeedForwardOptions, feed_forward);
  /// An attention to a second sequence, between the self-attention and the feed-forward network, as in decoders.
  /// Default: none.
  TORCH_ARG(std::optional<MultiheadAttentionOptions>, cross_attention);

  /// The normalization. Default: kLayer.
  TORCH_ARG(NormKind, norm) = NormKind::kLayer;
  /// Where a branch is normalized. Default: kPre.
  TORCH_ARG(NormPlace, norm_place) = NormPlace::kPre;
  /// The number that a norm adds to the variance or to the mean square, at least 0. Default: 1e-5.
  TORCH_ARG(double, norm_eps) = 1e-5;
  /// Whether a LayerNorm has a bias. Default: true.
  TORCH_ARG(bool, norm_bias) = true;
  /// How the branches follow one another. The parallel orders exclude kPost and cross_attention. Default: kInTurn.
  TORCH_ARG(BlockOrder, order) = BlockOrder::kInTurn;

  /// The probability with which a number of a branch's output is set to 0 in training mode, from 0 to 1. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// The factor s of the output of each branch, finite. Default: 1.
  TORCH_ARG(double, residual_scale) = 1.0;
  /// The initial value of a LayerScale after each branch. Default: no LayerScale.
  TORCH_ARG(std::optional<double>, layer_scale);
  /// The probability with which a branch is left out for a batch entry in training mode, from 0 to 1; see DropPath. A
  /// packed batch is one batch entry. Default: 0.
  TORCH_ARG(double, drop_path) = 0.0;
  /// The factor α of x in each sum of x and a branch, finite; see deep_norm(). Default: 1.
  TORCH_ARG(double, deep_norm_alpha) = 1.0;
  /// The factor β of the initial weights of values, output projections and feed-forward network, finite. Default: 1.
  TORCH_ARG(double, deep_norm_beta) = 1.0;

 public:
  /// Sets norm_place, deep_norm_alpha and deep_norm_beta for a stack of this many blocks without cross-attention:
  /// kPost, α = (2 · num_layers)^(1/4) and β = (8 · num_layers)^(−1/4).
  ///
  /// @param num_layers The number of blocks, at least 1.
  /// @return The options.
  /// @throws c10::ValueError if num_layers is below 1.
  ///
  /// Source: Wang et al., "DeepNet: scaling transformers to 1,000 layers", 2022.
  TransformerBlockOptions& deep_norm(std::int64_t num_layers) {
    detail::check_positive("attend::TransformerBlockOptions::deep_norm", "num_layers", num_layers);
    const auto layers = static_cast<double>(num_layers);
    norm_place(NormPlace::kPost).deep_norm_alpha(std::pow(2 * layers, 0.25));
    return deep_norm_beta(std::pow(8 * layers, -0.25));
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
