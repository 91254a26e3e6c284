// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/transformer_decoder.h>
#include <attend/layers/transformer_encoder.h>
#include <attend/layers/transformer_layer_options.h>
#include <attend/version.h>

#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/options/transformerlayer.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <ostream>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of Transformer: those of torch::nn::TransformerOptions, then options that torch has in Python only.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TransformerOptions(512, 8, 6, 6).dim_feedforward(1024).batch_first(true)
/// @endcode
struct TransformerOptions {
  /// All options have defaults.
  TransformerOptions() = default;
  /// Sets two options.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  TransformerOptions(std::int64_t d_model, std::int64_t nhead) : d_model_(d_model), nhead_(nhead) {}
  /// Sets four options.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  /// @param num_encoder_layers As the option num_encoder_layers.
  /// @param num_decoder_layers As the option num_decoder_layers.
  TransformerOptions(std::int64_t d_model, std::int64_t nhead, std::int64_t num_encoder_layers,
                     std::int64_t num_decoder_layers)
      : d_model_(d_model),
        nhead_(nhead),
        num_encoder_layers_(num_encoder_layers),
        num_decoder_layers_(num_decoder_layers) {}

  /// Width E of the inputs and of the output, at least 1. Default: 512.
  TORCH_ARG(std::int64_t, d_model) = 512;
  /// The number of heads. It must divide d_model. Default: 8.
  TORCH_ARG(std::int64_t, nhead) = 8;
  /// The number of encoder layers, at least 0. Default: 6.
  TORCH_ARG(std::int64_t, num_encoder_layers) = 6;
  /// The number of decoder layers, at least 0. Default: 6.
  TORCH_ARG(std::int64_t, num_decoder_layers) = 6;
  /// Width of the feed-forward networks' hidden layer, at least 1. Default: 2048.
  TORCH_ARG(std::int64_t, dim_feedforward) = 2048;
  /// The probability of dropout in training mode, from 0 to 1. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// The function in the feed-forward networks: torch::kReLU, torch::kGELU, or a function from tensor to tensor.
  /// Default: torch::kReLU.
  TORCH_ARG(torch::nn::activation_t, activation) = torch::kReLU;
  /// A module that replaces the encoder. It gets src, src_mask and src_key_padding_mask. If src_is_causal is true, the
  /// module gets this argument too. The Transformer holds a clone of the module. Default: none.
  TORCH_ARG(torch::nn::AnyModule, custom_encoder);
  /// A module that replaces the decoder. It gets the first six arguments of TransformerDecoder. If one of the last two
  /// arguments is true, the module gets all eight. The Transformer holds a clone of the module. Default: none.
  TORCH_ARG(torch::nn::AnyModule, custom_decoder);

  /// The number that layer normalization adds to the variance, at least 0. Default: 1e-5.
  TORCH_ARG(double, layer_norm_eps) = 1e-5;
  /// Whether tensors are (N, L, E). Otherwise they are (L, N, E). Default: false, as in torch.
  TORCH_ARG(bool, batch_first) = false;
  /// Whether the norm comes before each sublayer. Otherwise it comes after the sum. Default: false.
  TORCH_ARG(bool, norm_first) = false;
  /// Whether linear layers and norms have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
};

/// A TransformerEncoder and a TransformerDecoder. Each ends with a layer norm.
///
/// output = decoder(tgt, encoder(src)).
///
/// Replaces torch::nn::Transformer. Options, forward(), results, public members, names and shapes of parameters are the
/// same. After the same torch::manual_seed the initial weights are the same. With the same options, each of the two
/// modules loads the files that torch::save wrote for the other.
///
/// Shapes: N batch entries, S positions of the source, T positions of the target, E = d_model, H = nhead.
///
/// | Tensor | Shape | with batch_first | without a batch |
/// | --- | --- | --- | --- |
/// | src | (S, N, E) | (N, S, E) | (S, E) |
/// | tgt, output | (T, N, E) | (N, T, E) | (T, E) |
/// | src_mask | (S, S) or (N·H, S, S) | the same | (S, S) or (H, S, S) |
/// | tgt_mask | (T, T) or (N·H, T, T) | the same | (T, T) or (H, T, T) |
/// | memory_mask | (T, S) or (N·H, T, S) | the same | (T, S) or (H, T, S) |
/// | src_key_padding_mask, memory_key_padding_mask | (N, S) | (N, S) | (S) |
/// | tgt_key_padding_mask | (N, T) | (N, T) | (T) |
///
/// In a bool or uint8 mask, true means ignore. A floating-point mask is added to the scores.
///
/// Differs from torch::nn::Transformer: options batch_first, norm_first, layer_norm_eps and bias; arguments
/// src_is_causal, tgt_is_causal and memory_is_causal; and all differences of TransformerEncoder and TransformerDecoder.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// attend::Transformer transformer(attend::TransformerOptions(512, 8).batch_first(true));
/// torch::Tensor y = transformer->forward(src, tgt, {}, {}, {}, src_padding, {}, src_padding, /*src_is_causal=*/false,
///                                        /*tgt_is_causal=*/true);  // (N, T, 512)
/// @endcode
class TransformerImpl : public torch::nn::Cloneable<TransformerImpl> {
 public:
  /// The transformer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerImpl(TransformerOptions options_) : options(std::move(options_)) { reset(); }

  /// Creates encoder and decoder according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_transformer_options(kName, options);
    // The order is torch's, so the same seed gives the same weights.
    encoder = options.custom_encoder().is_empty()
                  ? torch::nn::AnyModule(
                        TransformerEncoder(TransformerEncoderOptions(layer_options<TransformerEncoderLayerOptions>(),
                                                                     options.num_encoder_layers())
                                               .norm(last_norm())))
                  : options.custom_encoder().clone();
    register_module("encoder", encoder.ptr());
    decoder = options.custom_decoder().is_empty()
                  ? torch::nn::AnyModule(
                        TransformerDecoder(TransformerDecoderOptions(layer_options<TransformerDecoderLayerOptions>(),
                                                                     options.num_decoder_layers())
                                               .norm(last_norm())))
                  : options.custom_decoder().clone();
    register_module("decoder", decoder.ptr());
    reset_parameters();
  }

  /// Draws new initial weights: all parameters with more than one dimension by Xavier's uniform distribution. The other
  /// parameters stay, as in torch.
  void reset_parameters() {
    for (torch::Tensor& parameter : parameters())
      if (parameter.dim() > 1) torch::nn::init::xavier_uniform_(parameter);
  }

  /// Loads the parameters, and checks that they have the shapes of this module.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The module is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The module is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive, {}, "num_encoder_layers, num_decoder_layers, bias or custom module");
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << transformer` shows them before encoder and decoder.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::Transformer(" << options.d_model() << ", " << options.nhead() << ", "
           << options.num_encoder_layers() << ", " << options.num_decoder_layers() << ", ";
    detail::print_transformer_options(stream, options);
    stream << ")";
  }

  /// Computes encoder and decoder.
  ///
  /// @param src (S, N, E), with batch_first (N, S, E), or (S, E) without a batch.
  /// @param tgt (T, N, E), with batch_first (N, T, E), or (T, E) without a batch.
  /// @param src_mask (S, S) or (N·H, S, S). Keys that each query of the encoder ignores, true = ignore, or numbers that
  /// are added to the scores. Default: none.
  /// @param tgt_mask (T, T) or (N·H, T, T). The same for the decoder's self-attention. Default: none.
  /// @param memory_mask (T, S) or (N·H, T, S). The same for the decoder's attention to the encoder's output. Default:
  /// none.
  /// @param src_key_padding_mask (N, S), or (S) without a batch. Keys of the encoder to ignore, true = ignore. Default:
  /// none.
  /// @param tgt_key_padding_mask (N, T), or (T) without a batch. The same for the decoder's self-attention. Default:
  /// none.
  /// @param memory_key_padding_mask (N, S), or (S) without a batch. The same for the decoder's attention to the
  /// encoder's output. Usually src_key_padding_mask. Default: none.
  /// @param src_is_causal Whether each position of the encoder attends only to itself and to earlier positions.
  /// Default: false.
  /// @param tgt_is_causal The same for the decoder's self-attention. Default: false.
  /// @param memory_is_causal Whether position i of the target attends only to the positions up to i + S − T of the
  /// source. Default: false.
  /// @return The output, of the shape of tgt.
  /// @throws c10::ValueError if sizes or devices do not fit.
  /// @throws c10::TypeError if dtypes do not fit.
  torch::Tensor forward(const torch::Tensor& src, const torch::Tensor& tgt, const torch::Tensor& src_mask = {},
                        const torch::Tensor& tgt_mask = {}, const torch::Tensor& memory_mask = {},
                        const torch::Tensor& src_key_padding_mask = {}, const torch::Tensor& tgt_key_padding_mask = {},
                        const torch::Tensor& memory_key_padding_mask = {}, bool src_is_causal = false,
                        bool tgt_is_causal = false, bool memory_is_causal = false) {
    for (const auto& [name, x] : {std::pair("src", src), std::pair("tgt", tgt)}) {
      detail::check_tensor(kName, name, x);
      TORCH_CHECK_VALUE(x.dim() == 2 || x.dim() == 3, kName, ": ", name, " must be 3-d ",
                        options.batch_first() ? "(N, length, d_model)" : "(length, N, d_model)",
                        ", or 2-d (length, d_model) without a batch, got ", x.dim(), "-d ", x.sizes());
      TORCH_CHECK_VALUE(x.size(-1) == options.d_model(), kName, ": the width of ", name, " must be d_model (",
                        options.d_model(), "), got ", x.sizes());
    }
    detail::check_same_batch(kName, "tgt", tgt, "src", src, options.batch_first());
    using torch::Tensor;
    const Tensor memory = src_is_causal ? encoder.forward<Tensor>(src, src_mask, src_key_padding_mask, src_is_causal)
                                        : encoder.forward<Tensor>(src, src_mask, src_key_padding_mask);
    if (!tgt_is_causal && !memory_is_causal)
      return decoder.forward<Tensor>(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask);
    return decoder.forward<Tensor>(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                                   tgt_is_causal, memory_is_causal);
  }

  /// The causal mask (sz, sz) that is added to scores: 0 for a key up to the query's position, −∞ after it. float32, on
  /// the CPU. The arguments src_is_causal and tgt_is_causal of forward() have the same effect, and need no (sz, sz)
  /// tensor.
  ///
  /// @param sz The length, at least 0.
  /// @return The mask.
  /// @throws c10::ValueError for a negative length.
  static torch::Tensor generate_square_subsequent_mask(std::int64_t sz) {
    TORCH_CHECK_VALUE(sz >= 0, kName, ": sz (", sz, ") must be at least 0");
    return at::full({sz, sz}, -std::numeric_limits<float>::infinity(), torch::kFloat).triu_(1);
  }

  /// The options that the transformer was made with.
  TransformerOptions options;
  torch::nn::AnyModule encoder,  ///< a TransformerEncoder, or a clone of custom_encoder
      decoder;                   ///< a TransformerDecoder, or a clone of custom_decoder

 protected:
  FORWARD_HAS_DEFAULT_ARGS({2, torch::nn::AnyValue(torch::Tensor())}, {3, torch::nn::AnyValue(torch::Tensor())},
                           {4, torch::nn::AnyValue(torch::Tensor())}, {5, torch::nn::AnyValue(torch::Tensor())},
                           {6, torch::nn::AnyValue(torch::Tensor())}, {7, torch::nn::AnyValue(torch::Tensor())},
                           {8, torch::nn::AnyValue(false)}, {9, torch::nn::AnyValue(false)},
                           {10, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::Transformer";

  template <class Options>
  Options layer_options() const {
    return Options(options.d_model(), options.nhead())
        .dim_feedforward(options.dim_feedforward())
        .dropout(options.dropout())
        .activation(options.activation())
        .layer_norm_eps(options.layer_norm_eps())
        .batch_first(options.batch_first())
        .norm_first(options.norm_first())
        .bias(options.bias());
  }

  torch::nn::AnyModule last_norm() const {
    return torch::nn::AnyModule(
        LayerNorm(LayerNormOptions({options.d_model()}).eps(options.layer_norm_eps()).bias(options.bias())));
  }
};

TORCH_MODULE(Transformer);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
