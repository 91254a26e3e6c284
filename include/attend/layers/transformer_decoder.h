// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/layers/transformer_decoder_layer.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of TransformerDecoder: those of torch::nn::TransformerDecoderOptions.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TransformerDecoderOptions(attend::TransformerDecoderLayerOptions(512, 8), 6)
///     .norm(torch::nn::AnyModule(attend::LayerNorm(attend::LayerNormOptions({512}))))
/// @endcode
struct TransformerDecoderOptions {
  /// The options for clones of a layer.
  ///
  /// @param decoder_layer As the option decoder_layer.
  /// @param num_layers As the option num_layers.
  TransformerDecoderOptions(TransformerDecoderLayer decoder_layer, std::int64_t num_layers)
      : decoder_layer_(std::move(decoder_layer)), num_layers_(num_layers) {}

  /// The options for clones of a new layer.
  ///
  /// @param decoder_layer_options The options of the layer.
  /// @param num_layers As the option num_layers.
  TransformerDecoderOptions(const TransformerDecoderLayerOptions& decoder_layer_options, std::int64_t num_layers)
      : TransformerDecoderOptions(TransformerDecoderLayer(decoder_layer_options), num_layers) {}

  /// Each layer of the decoder is a clone of this layer, so all layers have the same initial weights. No default.
  TORCH_ARG(TransformerDecoderLayer, decoder_layer) = nullptr;
  /// The number of layers, at least 0. No default.
  TORCH_ARG(std::int64_t, num_layers);
  /// A module that is applied to the last layer's output. The decoder holds a clone of it. Default: none.
  TORCH_ARG(torch::nn::AnyModule, norm);
};

/// Several TransformerDecoderLayers, one after the other, and a last norm if one is given.
///
/// Replaces torch::nn::TransformerDecoder. Options, forward(), results, public members, names and shapes of parameters
/// are the same. After the same torch::manual_seed the initial weights are the same. With the same options, each of the
/// two modules loads the files that torch::save wrote for the other.
///
/// The shapes are those of TransformerDecoderLayer. The parameters are `layers.0.self_attn.in_proj_weight` and so on,
/// and those of the norm: `norm.weight`, `norm.bias`.
///
/// Differs from torch::nn::TransformerDecoder:
/// - The arguments tgt_is_causal and memory_is_causal, and all differences of TransformerDecoderLayer.
/// - Without layers and without a norm the output is tgt. torch returns an undefined tensor.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// auto layer_options = attend::TransformerDecoderLayerOptions(512, 8).batch_first(true);
/// attend::TransformerDecoder decoder(attend::TransformerDecoderOptions(layer_options, 6));
/// torch::Tensor y = decoder->forward(tgt, memory, {}, {}, {}, {}, /*tgt_is_causal=*/true);  // (N, T, 512)
/// @endcode
class TransformerDecoderImpl : public torch::nn::Cloneable<TransformerDecoderImpl> {
 public:
  /// The decoder with clones of a layer, without a norm.
  ///
  /// @param decoder_layer As the option decoder_layer.
  /// @param num_layers As the option num_layers.
  /// @throws c10::ValueError for options out of range.
  TransformerDecoderImpl(TransformerDecoderLayer decoder_layer, std::int64_t num_layers)
      : TransformerDecoderImpl(TransformerDecoderOptions(std::move(decoder_layer), num_layers)) {}

  /// The decoder with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerDecoderImpl(TransformerDecoderOptions options_) : options(std::move(options_)) { reset(); }

  /// Creates the layers and the norm as clones of those in the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    TORCH_CHECK_VALUE(!options.decoder_layer().is_empty(), kName, ": decoder_layer must be a layer, got an empty one");
    TORCH_CHECK_VALUE(options.num_layers() >= 0, kName, ": num_layers (", options.num_layers(), ") must be at least 0");
    layers = register_module("layers", torch::nn::ModuleList());
    for (std::int64_t i = 0; i < options.num_layers(); ++i) layers->push_back(options.decoder_layer()->clone());
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

  /// Writes the name and the number of layers, as `std::cout << decoder` shows them before the layers.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::TransformerDecoder(num_layers=" << options.num_layers() << ")";
  }

  /// Computes all layers, then the norm. The masks and flags apply to every layer, as in TransformerDecoderLayer.
  ///
  /// @param tgt (T, N, E), with batch_first (N, T, E), or (T, E) without a batch.
  /// @param memory (S, N, E), with batch_first (N, S, E), or (S, E) without a batch: the output of an encoder.
  /// @param tgt_mask As in TransformerDecoderLayer. Default: none.
  /// @param memory_mask As in TransformerDecoderLayer. Default: none.
  /// @param tgt_key_padding_mask As in TransformerDecoderLayer. Default: none.
  /// @param memory_key_padding_mask As in TransformerDecoderLayer. Default: none.
  /// @param tgt_is_causal As in TransformerDecoderLayer. Default: false.
  /// @param memory_is_causal As in TransformerDecoderLayer. Default: false.
  /// @return The output, of the shape of tgt.
  /// @throws c10::ValueError if sizes or devices do not fit.
  /// @throws c10::TypeError if dtypes do not fit.
  torch::Tensor forward(const torch::Tensor& tgt, const torch::Tensor& memory, const torch::Tensor& tgt_mask = {},
                        const torch::Tensor& memory_mask = {}, const torch::Tensor& tgt_key_padding_mask = {},
                        const torch::Tensor& memory_key_padding_mask = {}, bool tgt_is_causal = false,
                        bool memory_is_causal = false) {
    torch::Tensor output = tgt;
    for (std::size_t i = 0; i < layers->size(); ++i)
      output = layer(i).forward(output, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                                tgt_is_causal, memory_is_causal);
    return norm.is_empty() ? output : norm.forward<torch::Tensor>(output);
  }

  /// The options that the decoder was made with.
  TransformerDecoderOptions options;
  /// The layers.
  torch::nn::ModuleList layers{nullptr};
  /// The last norm, or empty.
  torch::nn::AnyModule norm;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({2, torch::nn::AnyValue(torch::Tensor())}, {3, torch::nn::AnyValue(torch::Tensor())},
                           {4, torch::nn::AnyValue(torch::Tensor())}, {5, torch::nn::AnyValue(torch::Tensor())},
                           {6, torch::nn::AnyValue(false)}, {7, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::TransformerDecoder";

  TransformerDecoderLayerImpl& layer(std::size_t i) { return layers->at<TransformerDecoderLayerImpl>(i); }
};

TORCH_MODULE(TransformerDecoder);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
