// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/detail/torch/without_data.h>
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

/// Which positions of an image each position attends to.
enum class ImageAxis {
  kBoth,    ///< all positions of the image
  kHeight,  ///< those of its column
  kWidth,   ///< those of its row
};

/// Writes the name, for example "kHeight".
inline std::ostream& operator<<(std::ostream& stream, ImageAxis axis) {
  return stream << (axis == ImageAxis::kBoth ? "kBoth" : axis == ImageAxis::kHeight ? "kHeight" : "kWidth");
}

/// Options of SelfAttention2d.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::SelfAttention2dOptions(64, 64, 64).num_heads(4).scale(attend::kInverseSqrt).axis(attend::ImageAxis::kWidth)
/// @endcode
struct SelfAttention2dOptions {
  /// Sets the three options that have no default.
  ///
  /// @param in_channels As the option in_channels.
  /// @param out_channels As the option out_channels.
  /// @param key_channels As the option key_channels.
  SelfAttention2dOptions(std::int64_t in_channels, std::int64_t out_channels, std::int64_t key_channels)
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
  /// The positions that a position attends to: all, those of its column, or those of its row. Default: kBoth.
  TORCH_ARG(ImageAxis, axis) = ImageAxis::kBoth;
  /// Which backend computes the attention; see SelfAttention1dOptions::backend(). Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;
};

/// Self-attention over the positions of an image: each output position is an average of the values, weighted by how
/// well its query matches each key.
///
/// The formula is that of SelfAttention1d, over all height · width positions. With the option axis each column or each
/// row is a signal of its own. Two layers in sequence, one for each axis, are axial attention: the cost for each
/// position then grows with height + width instead of height · width.
///
/// | Parameter | Shape |
/// | --- | --- |
/// | `query.weight`, `key.weight` | (key_channels, in_channels, 1, 1) |
/// | `value.weight` | (out_channels, in_channels, 1, 1) |
///
/// Shapes: x (N, in_channels, height, width) → (N, out_channels, height, width). Height and width are at least 1; N may
/// be 0.
///
/// @throws c10::ValueError if x is not 4-d, or its channels or device are not those of the weights.
/// @throws c10::TypeError if the dtype of x is not that of the weights.
/// @throws c10::NotImplementedError if the requested backend cannot compute the attention. The message has the reason.
///
/// Source: Wang et al., "Non-local neural networks", 2018; one axis: Ho et al., "Axial attention in multidimensional
/// transformers", 2019.
///
/// @code
/// auto options = attend::SelfAttention2dOptions(64, 64, 64).num_heads(4).scale(attend::kInverseSqrt);
/// torch::nn::Sequential axial(attend::SelfAttention2d(options.axis(attend::ImageAxis::kHeight)),
///                             attend::SelfAttention2d(options.axis(attend::ImageAxis::kWidth)));
/// torch::Tensor y = axial->forward(x);
/// @endcode
class SelfAttention2dImpl : public torch::nn::Cloneable<SelfAttention2dImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param in_channels As the option in_channels.
  /// @param out_channels As the option out_channels.
  /// @param key_channels As the option key_channels.
  /// @throws c10::ValueError for options out of range.
  SelfAttention2dImpl(std::int64_t in_channels, std::int64_t out_channels, std::int64_t key_channels)
      : SelfAttention2dImpl(SelfAttention2dOptions(in_channels, out_channels, key_channels)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit SelfAttention2dImpl(const SelfAttention2dOptions& options_) : options(options_) { reset(); }

  /// Creates new projections according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_self_attention_options("attend::SelfAttention2d", options);
    query = register_module("query", projection(options.key_channels()));
    key = register_module("key", projection(options.key_channels()));
    value = register_module("value", projection(options.out_channels()));
  }

  /// Draws new initial weights, of the same distribution as those of torch::nn::Conv2d.
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
    detail::check_archive("attend::SelfAttention2d", *this, archive,
                          {{"query.weight", {"key_channels", "in_channels"}},
                           {"key.weight", {"key_channels", "in_channels"}},
                           {"value.weight", {"out_channels", "in_channels"}}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::SelfAttention2d(" << options.in_channels() << ", " << options.out_channels() << ", "
           << options.key_channels() << ", num_heads=" << options.num_heads() << ", scale=" << options.scale()
           << ", axis=" << options.axis() << ")";
  }

  /// Applies self-attention to an image.
  ///
  /// @param x (N, in_channels, height, width)
  /// @return (N, out_channels, height, width)
  torch::Tensor forward(const torch::Tensor& x) {
    check(x);
    const torch::Tensor y = image_attention().output(rows_of(x));
    const std::int64_t batch = x.size(0), height = x.size(2), width = x.size(3), channels = options.out_channels();
    if (options.axis() == ImageAxis::kHeight) return y.reshape({batch, width, height, channels}).permute({0, 3, 2, 1});
    return y.reshape({batch, height, width, channels}).permute({0, 3, 1, 2});
  }

  /// The weights with which each position averages all positions, computed by the dense formula.
  ///
  /// @param x (N, in_channels, height, width)
  /// @return (N, num_heads, L, L) with L = height · width, query positions first, counted row by row. With kHeight it
  /// is (N · width, num_heads, height, height), and with kWidth (N · height, num_heads, width, width). Each row sums
  /// to 1.
  /// @throws c10::Error of the same kinds as forward().
  torch::Tensor attention_map(const torch::Tensor& x) {
    check(x);
    return image_attention().weights(rows_of(x));
  }

  /// Says which backend forward() uses, and why not a faster one. Computes nothing and allocates no tensor.
  ///
  /// @param x (N, in_channels, height, width)
  /// @return The backend and the reasons, as attend::explain() returns them.
  /// @throws c10::Error of the same kinds as forward().
  Explanation explain(const torch::Tensor& x) {
    check(x);
    const bool is_column = options.axis() == ImageAxis::kHeight, is_row = options.axis() == ImageAxis::kWidth;
    const std::int64_t signals = x.size(0) * (is_column ? x.size(3) : is_row ? x.size(2) : 1);
    const std::int64_t positions = (is_row ? 1 : x.size(2)) * (is_column ? 1 : x.size(3));
    return image_attention().explain(
        detail::without_data({signals, positions, x.size(1)}, x.options(), x.requires_grad()));
  }

  /// The options that the layer was made with.
  SelfAttention2dOptions options;

  torch::nn::Conv2d query{nullptr},  ///< the projection of x to queries, a convolution of kernel_size 1
      key{nullptr},                  ///< the projection of x to keys
      value{nullptr};                ///< the projection of x to values

 private:
  torch::nn::Conv2d projection(std::int64_t channels) const {
    return torch::nn::Conv2d(torch::nn::Conv2dOptions(options.in_channels(), channels, 1).bias(false));
  }

  void check(const torch::Tensor& x) const {
    detail::check_image("attend::SelfAttention2d", x, options.in_channels(), query->weight);
  }

  detail::SignalSelfAttention image_attention() const {
    const auto matrix = [](const torch::nn::Conv2d& layer) { return layer->weight.squeeze(3).squeeze(2); };
    return {matrix(query), matrix(key), matrix(value), options.num_heads(),
            AttentionOptions().scale(options.scale()).backend(options.backend())};
  }

  /// The signals whose positions attend to each other, (signals, positions, in_channels): images, columns or rows.
  torch::Tensor rows_of(const torch::Tensor& x) const {
    if (options.axis() == ImageAxis::kBoth) return x.flatten(2).transpose(1, 2);
    const torch::Tensor lines =
        options.axis() == ImageAxis::kHeight ? x.permute({0, 3, 2, 1}) : x.permute({0, 2, 3, 1});
    return lines.flatten(0, 1);
  }
};

TORCH_MODULE(SelfAttention2d);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
