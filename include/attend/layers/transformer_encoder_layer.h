// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/detail/transformer_parts.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/transformer_layer_options.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
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

/// Self-attention and a feed-forward network, each with a residual connection and a layer norm.
///
/// With x the input and feed_forward(x) = linear2(dropout(activation(linear1(x)))):
/// - by default: y = norm1(x + dropout1(self_attn(x))), output = norm2(y + dropout2(feed_forward(y)));
/// - with norm_first: y = x + dropout1(self_attn(norm1(x))), output = y + dropout2(feed_forward(norm2(y))).
///
/// Replaces torch::nn::TransformerEncoderLayer. Options, forward(), results, public members, names and shapes of
/// parameters are the same. After the same torch::manual_seed the initial weights are the same. With the same options,
/// each of the two layers loads the files that torch::save wrote for the other.
///
/// Shapes: N batch entries, L positions, E = d_model, H = nhead, F = dim_feedforward.
///
/// | Tensor | Shape | with batch_first | without a batch |
/// | --- | --- | --- | --- |
/// | src, output | (L, N, E) | (N, L, E) | (L, E) |
/// | src_mask | (L, L) or (N·H, L, L) | the same | (L, L) or (H, L, L) |
/// | src_key_padding_mask | (N, L) | (N, L) | (L) |
///
/// In a bool or uint8 mask, true means ignore. A floating-point mask is added to the scores. Masks and is_causal can be
/// combined.
///
/// | Parameter | Shape |
/// | --- | --- |
/// | `self_attn.in_proj_weight`, `self_attn.in_proj_bias` | (3E, E), (3E) |
/// | `self_attn.out_proj.weight`, `self_attn.out_proj.bias` | (E, E), (E) |
/// | `linear1.weight`, `linear1.bias` | (F, E), (F) |
/// | `linear2.weight`, `linear2.bias` | (E, F), (E) |
/// | `norm1.weight`, `norm1.bias`, `norm2.weight`, `norm2.bias` | (E) |
///
/// Differs from torch::nn::TransformerEncoderLayer:
/// - Options batch_first, norm_first, layer_norm_eps and bias; the argument is_causal; inputs without a batch.
/// - A bool mask excludes keys. torch adds it to the scores as 0 and 1.
/// - The attention weights are not computed. torch computes and discards them.
/// - self_attn is an attend::MultiheadAttention, and norm1 and norm2 are attend::LayerNorm.
/// - With the same seed, dropout drops different numbers.
///
/// Differs from Python's module, where is_causal is a hint that src_mask is the causal mask: here is_causal needs no
/// src_mask. A call that is correct in Python gives the same results.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// auto options = attend::TransformerEncoderLayerOptions(512, 8).batch_first(true).norm_first(true);
/// attend::TransformerEncoderLayer layer(options);
/// torch::Tensor y = layer(x, /*src_mask=*/torch::Tensor(), key_padding_mask);  // (N, L, 512)
/// @endcode
class TransformerEncoderLayerImpl : public torch::nn::Cloneable<TransformerEncoderLayerImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  /// @throws c10::ValueError for options out of range.
  TransformerEncoderLayerImpl(std::int64_t d_model, std::int64_t nhead)
      : TransformerEncoderLayerImpl(TransformerEncoderLayerOptions(d_model, nhead)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerEncoderLayerImpl(TransformerEncoderLayerOptions options_) : options(std::move(options_)) {
    reset();
  }

  /// Creates new submodules according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_transformer_options(kName, options);
    const std::int64_t width = options.d_model(), hidden = options.dim_feedforward();
    const auto linear = [this](std::int64_t in, std::int64_t out) {
      return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(options.bias()));
    };
    const auto norm = [this, width] {
      return LayerNorm(LayerNormOptions({width}).eps(options.layer_norm_eps()).bias(options.bias()));
    };
    // The order is torch's, so the same seed gives the same weights.
    self_attn = register_module("self_attn", MultiheadAttention(MultiheadAttentionOptions(width, options.nhead())
                                                                    .dropout(options.dropout())
                                                                    .bias(options.bias())
                                                                    .batch_first(options.batch_first())));
    linear1 = register_module("linear1", linear(width, hidden));
    dropout = register_module("dropout", torch::nn::Dropout(options.dropout()));
    linear2 = register_module("linear2", linear(hidden, width));
    norm1 = register_module("norm1", norm());
    norm2 = register_module("norm2", norm());
    dropout1 = register_module("dropout1", torch::nn::Dropout(options.dropout()));
    dropout2 = register_module("dropout2", torch::nn::Dropout(options.dropout()));
  }

  /// Draws new initial weights, except self_attn->out_proj->weight, as torch's function of this name does. The order is
  /// torch's.
  void reset_parameters() {
    self_attn->_reset_parameters();
    linear1->reset_parameters();
    linear2->reset_parameters();
    norm1->reset_parameters();
    norm2->reset_parameters();
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive, detail::transformer_parameters({"self_attn"}, /*norms=*/2));
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::TransformerEncoderLayer(" << options.d_model() << ", " << options.nhead() << ", ";
    detail::print_transformer_options(stream, options);
    stream << ")";
  }

  /// Computes the layer.
  ///
  /// @param src (L, N, E), with batch_first (N, L, E), or (L, E) without a batch.
  /// @param src_mask (L, L) or (N·H, L, L). Keys that each query ignores, true = ignore, or numbers that are added to
  /// the scores. Default: none.
  /// @param src_key_padding_mask (N, L), or (L) without a batch. Keys to ignore, true = ignore. Default: none.
  /// @param is_causal Whether each position attends only to itself and to earlier positions. Default: false.
  /// @return The output, of the shape of src.
  /// @throws c10::ValueError if sizes or devices do not fit.
  /// @throws c10::TypeError if dtypes do not fit.
  torch::Tensor forward(const torch::Tensor& src, const torch::Tensor& src_mask = {},
                        const torch::Tensor& src_key_padding_mask = {}, bool is_causal = false) {
    detail::check_transformer_input(kName, "src", src, options.d_model(), options.batch_first(), linear1->weight);
    return with_attention(src, [&](const torch::Tensor& x) {
      return std::get<0>(self_attn(x, x, x, src_key_padding_mask, /*need_weights=*/false, src_mask,
                                   /*average_attn_weights=*/true, is_causal));
    });
  }

  /// Computes the layer with the arguments of MultiheadAttention::self_attention(): a packed batch, a cache, positions.
  ///
  /// @param src (L, N, E), with batch_first (N, L, E), or (L, E) without a batch. A packed batch is (T, E), where T
  /// is the sum of the lengths.
  /// @param call Passed to MultiheadAttention::self_attention().
  /// @return The output, of the shape of src.
  /// @throws c10::Error of the same kinds as MultiheadAttention::self_attention().
  ///
  /// @code
  /// attend::TransformerEncoderLayer layer(attend::TransformerEncoderLayerOptions(512, 8));
  /// torch::Tensor y = layer->forward_with(x, attend::MultiheadAttentionCall().is_causal(true));  // (L, N, 512)
  /// @endcode
  torch::Tensor forward_with(const torch::Tensor& src, const MultiheadAttentionCall& call) {
    detail::check_transformer_input(kName, "src", src, options.d_model(), options.batch_first(), linear1->weight);
    return with_attention(src, [&](const torch::Tensor& x) { return self_attn->self_attention(x, call); });
  }

  /// The options that the layer was made with.
  TransformerEncoderLayerOptions options;

  /// Self-attention.
  MultiheadAttention self_attn{nullptr};
  /// The first linear layer of the feed-forward network.
  torch::nn::Linear linear1{nullptr};
  /// Dropout of the hidden numbers of the feed-forward network.
  torch::nn::Dropout dropout{nullptr};
  /// The second linear layer of the feed-forward network.
  torch::nn::Linear linear2{nullptr};
  LayerNorm norm1{nullptr},              ///< the norm of the attention
      norm2{nullptr};                    ///< the norm of the feed-forward network
  torch::nn::Dropout dropout1{nullptr},  ///< dropout of the result of the attention
      dropout2{nullptr};                 ///< dropout of the result of the feed-forward network

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(torch::Tensor())}, {2, torch::nn::AnyValue(torch::Tensor())},
                           {3, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::TransformerEncoderLayer";

  template <class Attention>
  torch::Tensor with_attention(const torch::Tensor& src, const Attention& attention) {
    if (options.norm_first()) {
      const detail::AddedNorm y = detail::add_and_norm(src, attention(norm1(src)), dropout1, norm2);
      return detail::add(y.sum, feed_forward(y.normed), dropout2);
    }
    const torch::Tensor y = detail::add_and_norm(src, attention(src), dropout1, norm1).normed;
    return detail::add_and_norm(y, feed_forward(y), dropout2, norm2).normed;
  }

  torch::Tensor feed_forward(const torch::Tensor& x) {
    return detail::feed_forward(x, linear1, dropout, linear2, options.activation());
  }
};

TORCH_MODULE(TransformerEncoderLayer);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
