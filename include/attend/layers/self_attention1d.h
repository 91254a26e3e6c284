// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/signal_self_attention.h>
#include <attend/version.h>

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of SelfAttention1d.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::SelfAttention1dOptions(64, 64, 64).num_heads(4).scale(attend::kInverseSqrt)
/// @endcode
struct SelfAttention1dOptions {
  /// Sets the three options that have no default.
  ///
  /// @param in_channels As the option in_channels.
  /// @param out_channels As the option out_channels.
  /// @param key_channels As the option key_channels.
  SelfAttention1dOptions(std::int64_t in_channels, std::int64_t out_channels, std::int64_t key_channels)
      : in_channels_(in_channels), out_channels_(out_channels), key_channels_(key_channels) {}

  /// The number of channels of the input x, at least 1. No default.
  TORCH_ARG(std::int64_t, in_channels);
  /// The number of channels of the values and of the output y, all heads together, at least 1. No default.
  TORCH_ARG(std::int64_t, out_channels);
  /// The number of channels of the queries and of the keys, all heads together, at least 1. No default.
  TORCH_ARG(std::int64_t, key_channels);
  /// The number of heads H. It must divide key_channels and out_channels. Default: 1.
  TORCH_ARG(std::int64_t, num_heads) = 1;
  /// The factor by which q·k is multiplied: a number, or kInverseSqrt for 1/√(key_channels / num_heads). Default: 1.
  TORCH_ARG(Scale, scale) = 1.0;
  /// Which backend computes the attention; see AttentionOptions::backend(). With kReference torch computes the
  /// projections too. With the other values attend's kernels compute them where they are faster. Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;
};

/// Self-attention over the positions of a 1-d signal. Each output position is an average of the values. A value has a
/// large weight if its key matches the query of the position.
///
/// yᵀ = softmax(scale · QᵀK) Vᵀ with Q = W_q x, K = W_k x, V = W_v x. The three projections are convolutions of
/// kernel_size 1 without bias. With H heads, head h has the h-th of H equal parts of the channels of Q, K and V.
///
/// | Parameter | Shape |
/// | --- | --- |
/// | `query.weight`, `key.weight` | (key_channels, in_channels, 1) |
/// | `value.weight` | (out_channels, in_channels, 1) |
///
/// Shapes: x (N, in_channels, L) → (N, out_channels, L). L ≥ 1; N may be 0.
///
/// Differs from torch.nn.MultiheadAttention:
/// - Channels come first.
/// - There is no output projection and no bias.
/// - scale is 1 by default, as in the source below.
/// - A permutation of the positions of x permutes the positions of y in the same way. Code that splits the heads by
///   viewing (N, C, L) as (N, H, L, C / H) mixes channels with positions, and does not have this property.
///
/// @throws c10::ValueError if x is not 3-d, or its channels or device are not those of the weights.
/// @throws c10::TypeError if the dtype of x is not that of the weights.
/// @throws c10::NotImplementedError if the requested backend cannot compute the attention. The message has the reason.
///
/// Source: F. Fleuret, Deep Learning course, handout 13.2.
///
/// @code
/// attend::SelfAttention1d layer(attend::SelfAttention1dOptions(64, 64, 64));
/// torch::Tensor y = layer(x);
/// @endcode
class SelfAttention1dImpl : public torch::nn::Cloneable<SelfAttention1dImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param in_channels As the option in_channels.
  /// @param out_channels As the option out_channels.
  /// @param key_channels As the option key_channels.
  /// @throws c10::ValueError for options out of range.
  SelfAttention1dImpl(std::int64_t in_channels, std::int64_t out_channels, std::int64_t key_channels)
      : SelfAttention1dImpl(SelfAttention1dOptions(in_channels, out_channels, key_channels)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit SelfAttention1dImpl(const SelfAttention1dOptions& options_) : options(options_) { reset(); }

  /// Creates new projections according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_self_attention_options("attend::SelfAttention1d", options);
    query = register_module("query", projection(options.key_channels()));
    key = register_module("key", projection(options.key_channels()));
    value = register_module("value", projection(options.out_channels()));
  }

  /// Draws new initial weights from the distribution of torch::nn::Conv1d.
  void reset_parameters() {
    query->reset_parameters();
    key->reset_parameters();
    value->reset_parameters();
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::SelfAttention1d", *this, archive,
                          {{"query.weight", {"key_channels", "in_channels"}},
                           {"key.weight", {"key_channels", "in_channels"}},
                           {"value.weight", {"out_channels", "in_channels"}}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::SelfAttention1d(" << options.in_channels() << ", " << options.out_channels() << ", "
           << options.key_channels() << ", num_heads=" << options.num_heads() << ", scale=" << options.scale() << ")";
  }

  /// Applies self-attention to a signal.
  ///
  /// @param x (N, in_channels, L)
  /// @return (N, out_channels, L)
  torch::Tensor forward(const torch::Tensor& x) {
    check(x);
    return rows_attention().output(x.transpose(1, 2)).transpose(1, 2);
  }

  /// The attention weights: the weights with which each position averages all positions. The dense formula computes
  /// them.
  ///
  /// @param x (N, in_channels, L)
  /// @return (N, num_heads, L, L), query positions first. Each row sums to 1.
  /// @throws c10::Error of the same kinds as forward().
  torch::Tensor attention_map(const torch::Tensor& x) {
    check(x);
    return rows_attention().weights(x.transpose(1, 2));
  }

  /// Says which backend forward() uses, and why not a faster one. Computes nothing and allocates no tensor.
  ///
  /// @param x (N, in_channels, L)
  /// @return The backend and the reasons, as attend::explain() returns them.
  /// @throws c10::Error of the same kinds as forward().
  Explanation explain(const torch::Tensor& x) {
    check(x);
    return rows_attention().explain(x.transpose(1, 2));
  }

  /// The options that the layer was made with.
  SelfAttention1dOptions options;

  torch::nn::Conv1d query{nullptr},  ///< the projection of x to queries, a convolution of kernel_size 1
      key{nullptr},                  ///< the projection of x to keys
      value{nullptr};                ///< the projection of x to values

 private:
  torch::nn::Conv1d projection(std::int64_t channels) const {
    return torch::nn::Conv1d(torch::nn::Conv1dOptions(options.in_channels(), channels, 1).bias(false));
  }

  void check(const torch::Tensor& x) const {
    detail::check_signal("attend::SelfAttention1d", x, options.in_channels(), query->weight);
  }

  /// The attention of rows (N, L, in_channels).
  detail::SignalSelfAttention rows_attention() const {
    return {query->weight.squeeze(2), key->weight.squeeze(2), value->weight.squeeze(2), options.num_heads(),
            AttentionOptions().scale(options.scale()).backend(options.backend())};
  }
};

TORCH_MODULE(SelfAttention1d);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
