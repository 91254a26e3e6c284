// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/enum.h>
#include <torch/nn/options/transformerlayer.h>

#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of TransformerEncoderLayer: those of torch::nn::TransformerEncoderLayerOptions, then options that torch has
/// in Python only.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TransformerEncoderLayerOptions(512, 8).activation(torch::kGELU).batch_first(true).norm_first(true)
/// @endcode
struct TransformerEncoderLayerOptions {
  /// Sets the two options that have no default.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  TransformerEncoderLayerOptions(std::int64_t d_model, std::int64_t nhead) : d_model_(d_model), nhead_(nhead) {}

  /// Width E of the input and of the output, at least 1. No default.
  TORCH_ARG(std::int64_t, d_model);
  /// The number of heads. It must divide d_model. No default.
  TORCH_ARG(std::int64_t, nhead);
  /// Width of the feed-forward network's hidden layer, at least 1. Default: 2048.
  TORCH_ARG(std::int64_t, dim_feedforward) = 2048;
  /// The probability with which attention weights, hidden numbers and results of sublayers are set to 0 in training
  /// mode, from 0 to 1. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// The function between the two linear layers: torch::kReLU, torch::kGELU, or a function from tensor to tensor.
  /// Default: torch::kReLU.
  TORCH_ARG(torch::nn::activation_t, activation) = torch::kReLU;

  /// The number that layer normalization adds to the variance, at least 0. Default: 1e-5.
  TORCH_ARG(double, layer_norm_eps) = 1e-5;
  /// Whether tensors are (N, L, E). Otherwise they are (L, N, E). Default: false, as in torch.
  TORCH_ARG(bool, batch_first) = false;
  /// Whether the norm comes before each sublayer. Otherwise it comes after the sum. Default: false.
  TORCH_ARG(bool, norm_first) = false;
  /// Whether linear layers and norms have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
};

/// Options of TransformerDecoderLayer: those of torch::nn::TransformerDecoderLayerOptions, then options that torch has
/// in Python only.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::TransformerDecoderLayerOptions(512, 8).dim_feedforward(1024).batch_first(true)
/// @endcode
struct TransformerDecoderLayerOptions {
  /// Sets the two options that have no default.
  ///
  /// @param d_model As the option d_model.
  /// @param nhead As the option nhead.
  TransformerDecoderLayerOptions(std::int64_t d_model, std::int64_t nhead) : d_model_(d_model), nhead_(nhead) {}

  /// Width E of the inputs and of the output, at least 1. No default.
  TORCH_ARG(std::int64_t, d_model);
  /// The number of heads of both attentions. It must divide d_model. No default.
  TORCH_ARG(std::int64_t, nhead);
  /// Width of the feed-forward network's hidden layer, at least 1. Default: 2048.
  TORCH_ARG(std::int64_t, dim_feedforward) = 2048;
  /// The probability with which attention weights, hidden numbers and results of sublayers are set to 0 in training
  /// mode, from 0 to 1. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// The function between the two linear layers: torch::kReLU, torch::kGELU, or a function from tensor to tensor.
  /// Default: torch::kReLU.
  TORCH_ARG(torch::nn::activation_t, activation) = torch::kReLU;

  /// The number that layer normalization adds to the variance, at least 0. Default: 1e-5.
  TORCH_ARG(double, layer_norm_eps) = 1e-5;
  /// Whether tensors are (N, L, E). Otherwise they are (L, N, E). Default: false, as in torch.
  TORCH_ARG(bool, batch_first) = false;
  /// Whether the norm comes before each sublayer. Otherwise it comes after the sum. Default: false.
  TORCH_ARG(bool, norm_first) = false;
  /// Whether linear layers and norms have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
};

namespace detail {

/// The rules for the options that encoder and decoder layers share. Transformer has the same options.
template <class Options>
void check_transformer_options(const char* layer, const Options& options) {
  check_positive(layer, "d_model", options.d_model());
  check_positive(layer, "nhead", options.nhead());
  check_positive(layer, "dim_feedforward", options.dim_feedforward());
  TORCH_CHECK_VALUE(options.d_model() % options.nhead() == 0, layer, ": d_model (", options.d_model(),
                    ") must be divisible by nhead (", options.nhead(), ")");
  TORCH_CHECK_VALUE(options.dropout() >= 0.0 && options.dropout() <= 1.0, layer, ": dropout (", options.dropout(),
                    ") must be a probability from 0 to 1");
  TORCH_CHECK_VALUE(std::isfinite(options.layer_norm_eps()) && options.layer_norm_eps() >= 0.0, layer,
                    ": layer_norm_eps (", options.layer_norm_eps(), ") must be finite and at least 0");
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
