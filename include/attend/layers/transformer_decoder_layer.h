// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/detail/transformer_parts.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/transformer_layer_options.h>
#include <attend/version.h>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <tuple>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Self-attention, attention to a memory, and a feed-forward network, each with a residual connection and a layer norm.
///
/// With x the target and feed_forward(x) = linear2(dropout(activation(linear1(x)))):
/// - by default: y = norm1(x + dropout1(self_attn(x))), z = norm2(y + dropout2(multihead_attn(y, memory))), output =
///   norm3(z + dropout3(feed_forward(z)));
/// - with norm_first: y = x + dropout1(self_attn(norm1(x))), z = y + dropout2(multihead_attn(norm2(y), memory)),
///   output = z + dropout3(feed_forward(norm3(z))).
///
/// Replaces torch::nn::TransformerDecoderLayer. Options, forward(), results, public members, names and shapes of
/// parameters are the same. After the same torch::manual_seed the initial weights are the same. With the same options,
/// each of the two layers loads the files that torch::save wrote for the other.
///
/// Shapes: N batch entries, T positions of the target, S positions of the memory, E = d_model, H = nhead.
///
/// | Tensor | Shape | with batch_first | without a batch |
/// | --- | --- | --- | --- |
/// | tgt, output | (T, N, E) | (N, T, E) | (T, E) |
/// | memory | (S, N, E) | (N, S, E) | (S, E) |
/// | tgt_mask | (T, T) or (N·H, T, T) | the same | (T, T) or (H, T, T) |
/// | memory_mask | (T, S) or (N·H, T, S) | the same | (T, S) or (H, T, S) |
/// | tgt_key_padding_mask | (N, T) | (N, T) | (T) |
/// | memory_key_padding_mask | (N, S) | (N, S) | (S) |
///
/// In a bool or uint8 mask, true means ignore. A floating-point mask is added to the scores. Masks and is_causal can be
/// combined.
///
/// The parameters are those of TransformerEncoderLayer, those of a second attention `multihead_attn`, which has the
/// same parameters as `self_attn`, and those of a third norm `norm3`.
///
/// Differs from torch::nn::TransformerDecoderLayer in the same ways as TransformerEncoderLayer.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// attend::TransformerDecoderLayer layer(attend::TransformerDecoderLayerOptions(512, 8).batch_first(true));
/// torch::Tensor y = layer->forward(tgt, memory, {}, {}, {}, {}, /*tgt_is_causal=*/true);  // (N, T, 512)
/// @endcode
class TransformerDecoderLayerImpl : public torch::nn::Cloneable<TransformerDecoderLayerImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  /// @throws c10::ValueError for options out of range.
  TransformerDecoderLayerImpl(std::int64_t d_model, std::int64_t nhead)
      : TransformerDecoderLayerImpl(TransformerDecoderLayerOptions(d_model, nhead)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerDecoderLayerImpl(TransformerDecoderLayerOptions options_) : options(std::move(options_)) {
    reset();
  }

  /// Creates new submodules according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_transformer_options(kName, options);
    const std::int64_t width = options.d_model(), hidden = options.dim_feedforward();
    const auto attention = [this, width] {
      return MultiheadAttention(MultiheadAttentionOptions(width, options.nhead())
                                    .dropout(options.dropout())
                                    .bias(options.bias())
                                    .batch_first(options.batch_first()));
    };
    const auto linear = [this](std::int64_t in, std::int64_t out) {
      return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(options.bias()));
    };
    const auto norm = [this, width] {
      return LayerNorm(LayerNormOptions({width}).eps(options.layer_norm_eps()).bias(options.bias()));
    };
    // The order is torch's, so the same seed gives the same weights.
    self_attn = register_module("self_attn", attention());
    multihead_attn = register_module("multihead_attn", attention());
    linear1 = register_module("linear1", linear(width, hidden));
    dropout = register_module("dropout", torch::nn::Dropout(options.dropout()));
    linear2 = register_module("linear2", linear(hidden, width));
    norm1 = register_module("norm1", norm());
    norm2 = register_module("norm2", norm());
    norm3 = register_module("norm3", norm());
    dropout1 = register_module("dropout1", torch::nn::Dropout(options.dropout()));
    dropout2 = register_module("dropout2", torch::nn::Dropout(options.dropout()));
    dropout3 = register_module("dropout3", torch::nn::Dropout(options.dropout()));
  }

  /// Draws new initial weights, except out_proj->weight of both attentions, as torch's function of this name does. The
  /// order is torch's.
  void reset_parameters() {
    self_attn->_reset_parameters();
    multihead_attn->_reset_parameters();
    linear1->reset_parameters();
    linear2->reset_parameters();
    norm1->reset_parameters();
    norm2->reset_parameters();
    norm3->reset_parameters();
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive,
                          detail::transformer_parameters({"self_attn", "multihead_attn"}, /*norms=*/3));
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::TransformerDecoderLayer(" << options.d_model() << ", " << options.nhead() << ", ";
    detail::print_transformer_options(stream, options);
    stream << ")";
  }

  /// Computes the layer.
  ///
  /// @param tgt (T, N, E), with batch_first (N, T, E), or (T, E) without a batch.
  /// @param memory (S, N, E), with batch_first (N, S, E), or (S, E) without a batch: the output of an encoder.
  /// @param tgt_mask (T, T) or (N·H, T, T). Keys of the target that each query ignores, true = ignore, or numbers that
  /// are added to the scores. Default: none.
  /// @param memory_mask (T, S) or (N·H, T, S). The same for the memory. Default: none.
  /// @param tgt_key_padding_mask (N, T), or (T) without a batch. Keys of the target to ignore, true = ignore. Default:
  /// none.
  /// @param memory_key_padding_mask (N, S), or (S) without a batch. Keys of the memory to ignore. Default: none.
  /// @param tgt_is_causal Whether each position attends only to itself and to earlier positions of the target. Default:
  /// false.
  /// @param memory_is_causal Whether position i of the target attends only to the positions up to i + S − T of the
  /// memory. Default: false.
  /// @return The output, of the shape of tgt.
  /// @throws c10::ValueError if sizes or devices do not fit.
  /// @throws c10::TypeError if dtypes do not fit.
  torch::Tensor forward(const torch::Tensor& tgt, const torch::Tensor& memory, const torch::Tensor& tgt_mask = {},
                        const torch::Tensor& memory_mask = {}, const torch::Tensor& tgt_key_padding_mask = {},
                        const torch::Tensor& memory_key_padding_mask = {}, bool tgt_is_causal = false,
                        bool memory_is_causal = false) {
    for (const auto& [name, x] : {std::pair("tgt", tgt), std::pair("memory", memory)})
      detail::check_transformer_input(kName, name, x, options.d_model(), options.batch_first(), linear1->weight);
    detail::check_same_batch(kName, "memory", memory, "tgt", tgt, options.batch_first());
    const auto attention_to_itself = [&](const torch::Tensor& x) {
      return std::get<0>(self_attn(x, x, x, tgt_key_padding_mask, /*need_weights=*/false, tgt_mask,
                                   /*average_attn_weights=*/true, tgt_is_causal));
    };
    const auto attention_to_memory = [&](const torch::Tensor& x) {
      return std::get<0>(multihead_attn(x, memory, memory, memory_key_padding_mask, /*need_weights=*/false, memory_mask,
                                        /*average_attn_weights=*/true, memory_is_causal));
    };
    if (options.norm_first()) {
      const detail::AddedNorm y = detail::add_and_norm(tgt, attention_to_itself(norm1(tgt)), dropout1, norm2);
      const detail::AddedNorm z = detail::add_and_norm(y.sum, attention_to_memory(y.normed), dropout2, norm3);
      return detail::add(z.sum, feed_forward(z.normed), dropout3);
    }
    const torch::Tensor y = detail::add_and_norm(tgt, attention_to_itself(tgt), dropout1, norm1).normed;
    const torch::Tensor z = detail::add_and_norm(y, attention_to_memory(y), dropout2, norm2).normed;
    return detail::add_and_norm(z, feed_forward(z), dropout3, norm3).normed;
  }

  /// The options that the layer was made with.
  TransformerDecoderLayerOptions options;

  MultiheadAttention self_attn{nullptr},  ///< attention of the target to itself
      multihead_attn{nullptr};            ///< attention of the target to the memory
  /// The first linear layer of the feed-forward network.
  torch::nn::Linear linear1{nullptr};
  /// Dropout of the hidden numbers of the feed-forward network.
  torch::nn::Dropout dropout{nullptr};
  /// The second linear layer of the feed-forward network.
  torch::nn::Linear linear2{nullptr};
  LayerNorm norm1{nullptr},              ///< the norm of the self-attention
      norm2{nullptr},                    ///< the norm of the attention to the memory
      norm3{nullptr};                    ///< the norm of the feed-forward network
  torch::nn::Dropout dropout1{nullptr},  ///< dropout of the result of the self-attention
      dropout2{nullptr},                 ///< dropout of the result of the attention to the memory
      dropout3{nullptr};                 ///< dropout of the result of the feed-forward network

 protected:
  FORWARD_HAS_DEFAULT_ARGS({2, torch::nn::AnyValue(torch::Tensor())}, {3, torch::nn::AnyValue(torch::Tensor())},
                           {4, torch::nn::AnyValue(torch::Tensor())}, {5, torch::nn::AnyValue(torch::Tensor())},
                           {6, torch::nn::AnyValue(false)}, {7, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::TransformerDecoderLayer";

  torch::Tensor feed_forward(const torch::Tensor& x) {
    return detail::feed_forward(x, linear1, dropout, linear2, options.activation());
  }
};

TORCH_MODULE(TransformerDecoderLayer);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
