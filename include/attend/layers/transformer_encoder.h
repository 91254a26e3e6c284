// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/layers/transformer_encoder_layer.h>
#include <attend/version.h>

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of TransformerEncoder: those of torch::nn::TransformerEncoderOptions, then an option that torch has in
/// Python only.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TransformerEncoderOptions(attend::TransformerEncoderLayerOptions(512, 8), 6)
///     .norm(torch::nn::AnyModule(attend::LayerNorm(attend::LayerNormOptions({512}))))
/// @endcode
struct TransformerEncoderOptions {
  /// The options for clones of a layer.
  ///
  /// @param encoder_layer As the option encoder_layer.
  /// @param num_layers As the option num_layers.
  TransformerEncoderOptions(TransformerEncoderLayer encoder_layer, std::int64_t num_layers)
      : encoder_layer_(std::move(encoder_layer)), num_layers_(num_layers) {}

  /// The options for clones of a new layer.
  ///
  /// @param encoder_layer_options The options of the layer.
  /// @param num_layers As the option num_layers.
  TransformerEncoderOptions(const TransformerEncoderLayerOptions& encoder_layer_options, std::int64_t num_layers)
      : TransformerEncoderOptions(TransformerEncoderLayer(encoder_layer_options), num_layers) {}

  /// Each layer of the encoder is a clone of this layer, so all layers have the same initial weights. No default.
  TORCH_ARG(TransformerEncoderLayer, encoder_layer) = nullptr;
  /// The number of layers, at least 0. No default.
  TORCH_ARG(std::int64_t, num_layers);
  /// A module that is applied to the last layer's output. The encoder holds a clone of it. Default: none.
  TORCH_ARG(torch::nn::AnyModule, norm);
  /// Whether the encoder may leave padding out; see TransformerEncoder. The name is that of Python's option. Default:
  /// true.
  TORCH_ARG(bool, enable_nested_tensor) = true;
};

/// Several TransformerEncoderLayers, one after the other, and a last norm if one is given.
///
/// Replaces torch::nn::TransformerEncoder. Options, forward(), results, public members, names and shapes of parameters
/// are the same. After the same torch::manual_seed the initial weights are the same. With the same options, each of the
/// two modules loads the files that torch::save wrote for the other.
///
/// The shapes are those of TransformerEncoderLayer. The parameters are `layers.0.self_attn.in_proj_weight` and so on,
/// and those of the norm: `norm.weight`, `norm.bias`.
///
/// Padding: the encoder packs a batch without its padding if all of these are true:
/// - the option enable_nested_tensor is on, and the layers have batch_first;
/// - src is (N, L, E) on the CPU, src_key_padding_mask is bool or uint8, and there is no src_mask;
/// - the encoder is in evaluation mode, and no gradient is recorded.
///
/// With packing, the layers compute nothing for padded positions. The rows of these positions in the last layer's
/// output are 0. The norm is applied to these rows too: a LayerNorm turns them into its bias. Without packing, the
/// layers compute the padded rows, as in torch::nn. Packing does not change the other rows.
///
/// Differs from torch::nn::TransformerEncoder:
/// - The argument is_causal, the option enable_nested_tensor, and all differences of TransformerEncoderLayer.
/// - Without layers and without a norm the output is src. torch returns an undefined tensor.
///
/// Differs from Python's module: Python packs on other devices too. Python does not pack in these cases:
/// - with norm_first, without bias, or with an activation that is a function;
/// - with an odd number of heads;
/// - under autocast;
/// - if padding comes before a token.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// auto layer_options = attend::TransformerEncoderLayerOptions(512, 8).batch_first(true);
/// attend::TransformerEncoder encoder(attend::TransformerEncoderOptions(layer_options, 6));
/// torch::Tensor y = encoder(x, /*src_mask=*/torch::Tensor(), key_padding_mask);  // (N, L, 512)
/// @endcode
class TransformerEncoderImpl : public torch::nn::Cloneable<TransformerEncoderImpl> {
 public:
  /// The encoder with clones of a layer, without a norm.
  ///
  /// @param encoder_layer As the option encoder_layer.
  /// @param num_layers As the option num_layers.
  /// @throws c10::ValueError for options out of range.
  TransformerEncoderImpl(TransformerEncoderLayer encoder_layer, std::int64_t num_layers)
      : TransformerEncoderImpl(TransformerEncoderOptions(std::move(encoder_layer), num_layers)) {}

  /// The encoder with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerEncoderImpl(TransformerEncoderOptions options_) : options(std::move(options_)) { reset(); }

  /// Creates the layers and the norm as clones of those in the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    TORCH_CHECK_VALUE(!options.encoder_layer().is_empty(), kName, ": encoder_layer must be a layer, got an empty one");
    TORCH_CHECK_VALUE(options.num_layers() >= 0, kName, ": num_layers (", options.num_layers(), ") must be at least 0");
    layers = register_module("layers", torch::nn::ModuleList());
    for (std::int64_t i = 0; i < options.num_layers(); ++i) layers->push_back(options.encoder_layer()->clone());
    if (options.norm().is_empty()) return;
    norm = options.norm().clone();
    register_module("norm", norm.ptr());
  }

  /// Draws new initial weights in each layer, and replaces the norm by a clone of the option norm, as torch does.
  void reset_parameters() {
    for (std::size_t i = 0; i < layers->size(); ++i) layer(i).reset_parameters();
    if (!norm.is_empty()) unregister_module("norm");
    norm = options.norm().is_empty() ? torch::nn::AnyModule() : options.norm().clone();
    if (!norm.is_empty()) register_module("norm", norm.ptr());
  }

  /// Loads the parameters, and checks that they have the shapes of this module.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The module is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The module is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive, {}, "num_layers, bias or norm");
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the number of layers, as `std::cout << encoder` shows them before the layers.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::TransformerEncoder(num_layers=" << options.num_layers() << std::boolalpha
           << ", enable_nested_tensor=" << options.enable_nested_tensor() << std::noboolalpha << ")";
  }

  /// Computes all layers, then the norm.
  ///
  /// @param src (L, N, E), with batch_first (N, L, E), or (L, E) without a batch.
  /// @param src_mask As in TransformerEncoderLayer, for every layer. Default: none.
  /// @param src_key_padding_mask As in TransformerEncoderLayer, for every layer. Default: none.
  /// @param is_causal As in TransformerEncoderLayer, for every layer. Default: false.
  /// @return The output, of the shape of src.
  /// @throws c10::ValueError if sizes or devices do not fit.
  /// @throws c10::TypeError if dtypes do not fit.
  torch::Tensor forward(const torch::Tensor& src, const torch::Tensor& src_mask = {},
                        const torch::Tensor& src_key_padding_mask = {}, bool is_causal = false) {
    torch::Tensor output = src;
    if (packs(src, src_mask, src_key_padding_mask))
      output = packed_forward(src, src_key_padding_mask, is_causal);
    else
      for (std::size_t i = 0; i < layers->size(); ++i)
        output = layer(i).forward(output, src_mask, src_key_padding_mask, is_causal);
    return norm.is_empty() ? output : norm.forward<torch::Tensor>(output);
  }

  /// The options that the encoder was made with.
  TransformerEncoderOptions options;
  /// The layers.
  torch::nn::ModuleList layers{nullptr};
  /// The last norm, or empty.
  torch::nn::AnyModule norm;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(torch::Tensor())}, {2, torch::nn::AnyValue(torch::Tensor())},
                           {3, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::TransformerEncoder";

  bool packs(const torch::Tensor& src, const torch::Tensor& src_mask, const torch::Tensor& padding) {
    if (!options.enable_nested_tensor() || layers->is_empty() || !layer(0).options.batch_first() || is_training() ||
        src_mask.defined() || !src.defined() || !padding.defined() || src.dim() != 3 || src.numel() == 0 ||
        !src.is_cpu() || !padding.is_cpu() || padding.sizes() != src.sizes().slice(0, 2) ||
        (padding.scalar_type() != torch::kBool && padding.scalar_type() != torch::kByte))
      return false;
    if (!c10::GradMode::is_enabled()) return true;
    const std::vector<torch::Tensor> all = parameters();
    const auto needs_gradient = [](const torch::Tensor& tensor) { return tensor.requires_grad(); };
    return !needs_gradient(src) && std::none_of(all.begin(), all.end(), needs_gradient);
  }

  torch::Tensor packed_forward(const torch::Tensor& src, const torch::Tensor& padding, bool is_causal) {
    const torch::Tensor is_token = padding.eq(0);  // (N, L)
    const torch::Tensor places = is_token.flatten().nonzero().squeeze(1);
    const torch::Tensor ends = is_token.sum(1).cumsum(0).to(torch::kInt);  // (N)
    const torch::Tensor offsets = torch::cat({torch::zeros({1}, ends.options()), ends});
    const auto call = MultiheadAttentionCall().query_offsets(offsets).is_causal(is_causal);
    torch::Tensor rows = src.flatten(0, 1).index_select(0, places);  // (tokens, E)
    for (std::size_t i = 0; i < layers->size(); ++i) rows = layer(i).forward_with(rows, call);
    return torch::zeros({src.size(0) * src.size(1), src.size(2)}, rows.options())
        .index_copy_(0, places, rows)
        .view(src.sizes());
  }

  TransformerEncoderLayerImpl& layer(std::size_t i) { return layers->at<TransformerEncoderLayerImpl>(i); }
};

TORCH_MODULE(TransformerEncoder);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
