// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/activation.h>
#include <attend/layers/detail/checks.h>

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace attend {

/// Options of ConvStack.
///
/// Example:
///   attend::ConvStackOptions(1, 64, 1).depth(5).kernel_size(5).activation(torch::kReLU)
struct ConvStackOptions {
  ConvStackOptions(std::int64_t in_channels, std::int64_t hidden_channels, std::int64_t out_channels)
      : in_channels_(in_channels), hidden_channels_(hidden_channels), out_channels_(out_channels) {}

  /// Channels of x.
  TORCH_ARG(std::int64_t, in_channels);
  /// Channels between the convolutions.
  TORCH_ARG(std::int64_t, hidden_channels);
  /// Channels of y.
  TORCH_ARG(std::int64_t, out_channels);
  /// How many convolutions. Default: 5.
  TORCH_ARG(std::int64_t, depth) = 5;
  /// Width of each convolution in positions, odd or even. Default: 5.
  TORCH_ARG(std::int64_t, kernel_size) = 5;
  /// What follows each convolution but the last. Default: torch::kReLU.
  TORCH_ARG(Activation, activation) = torch::kReLU;
  /// Whether the activation follows the last convolution as well. Default: false.
  TORCH_ARG(bool, activation_after_last) = false;
};

/// Convolutions of a 1-d signal one after the other, with an activation between them.
///
/// x → Conv1d(in → hidden) → activation → Conv1d(hidden → hidden) → … → Conv1d(hidden → out). Every convolution has a
/// bias and pads with zeros to keep the length; an even kernel pads one position more on the right. An output sees
/// depth · (kernel_size − 1) + 1 positions of the input and nothing beyond.
///
/// Parameters: `0.weight`, `0.bias`, `2.weight`, `2.bias`, …: the names in a `torch.nn.Sequential` of convolutions and
/// activations, so that its state dict fits.
/// Shapes: x (N, in_channels, L) → (N, out_channels, L). Any L ≥ 1; N may be 0.
/// Throws c10::ValueError, c10::TypeError if x is not 3-d or differs from the weights in channels, dtype or device.
///
/// Example:
///   attend::ConvStack convolutions(attend::ConvStackOptions(1, 64, 1).depth(5));
///   torch::Tensor y = convolutions(x);
class ConvStackImpl : public torch::nn::Cloneable<ConvStackImpl> {
 public:
  ConvStackImpl(std::int64_t in_channels, std::int64_t hidden_channels, std::int64_t out_channels)
      : ConvStackImpl(ConvStackOptions(in_channels, hidden_channels, out_channels)) {}

  explicit ConvStackImpl(const ConvStackOptions& options_) : options(options_) { reset(); }

  void reset() override {
    detail::check_positive("attend::ConvStack", "in_channels", options.in_channels());
    detail::check_positive("attend::ConvStack", "hidden_channels", options.hidden_channels());
    detail::check_positive("attend::ConvStack", "out_channels", options.out_channels());
    detail::check_positive("attend::ConvStack", "depth", options.depth());
    detail::check_positive("attend::ConvStack", "kernel_size", options.kernel_size());
    convolutions.clear();
    for (std::int64_t i = 0; i < options.depth(); ++i) {
      const std::int64_t in = i == 0 ? options.in_channels() : options.hidden_channels();
      const std::int64_t out = i == options.depth() - 1 ? options.out_channels() : options.hidden_channels();
      const auto conv_options = torch::nn::Conv1dOptions(in, out, options.kernel_size()).padding(torch::kSame);
      const std::string name = std::to_string(2 * i);  // the odd numbers are the activations'
      convolutions.emplace_back(register_module(name, torch::nn::Conv1d(conv_options)));
    }
  }

  /// Draws new weights, as Conv1d does.
  void reset_parameters() {
    for (auto& convolution : convolutions) convolution->reset_parameters();
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "attend::ConvStack(" << options.in_channels() << ", " << options.hidden_channels() << ", "
           << options.out_channels() << ", depth=" << options.depth() << ", kernel_size=" << options.kernel_size()
           << ", activation=" << options.activation() << std::boolalpha
           << ", activation_after_last=" << options.activation_after_last() << ")";
  }

  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_signal("attend::ConvStack", x, options.in_channels(), convolutions.front()->weight);
    torch::Tensor y = x;  // (N, in_channels, L)
    for (std::size_t i = 0; i < convolutions.size(); ++i) {
      y = convolutions[i]->forward(y);  // (N, hidden_channels, L), at last (N, out_channels, L)
      if (i + 1 < convolutions.size() || options.activation_after_last()) y = options.activation()(y);
    }
    return y;
  }

  /// The options that the layer was made with.
  ConvStackOptions options;

  /// The convolutions in order; also the children "0", "2", "4", ….
  std::vector<torch::nn::Conv1d> convolutions;
};

TORCH_MODULE(ConvStack);

}  // namespace attend
