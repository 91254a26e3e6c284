// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <ostream>

/// The positional encodings of a net of the series.
enum class Positions { kNone, kLinear, kBinary, kSinusoidal, kLearned };

/// Options of ShapeNet.
struct ShapeNetOptions {
  /// Whether the third of five layers is attention instead of a convolution. Default: true.
  TORCH_ARG(bool, attention) = true;
  /// The positional encoding that is appended to the signal as channels. Default: kNone.
  TORCH_ARG(Positions, positions) = Positions::kNone;
  /// Length of a signal in positions. Default: 100.
  TORCH_ARG(std::int64_t, size) = 100;
  /// Heads of the attention layer. Default: 1.
  TORCH_ARG(std::int64_t, num_heads) = 1;
  /// The factor before q·k. Default: 1, as in the handout.
  TORCH_ARG(attend::Scale, scale) = 1.0;
  /// The activation after each convolution except the last. Default: ReLU.
  TORCH_ARG(attend::Activation, activation) = torch::kReLU;
  /// The mean and deviation of the training set. Default: 0 and 1, which does not change signals.
  TORCH_ARG(attend::StandardizeOptions, standardize) = {};
};

/// The nets of the series, from a signal (N, 1, size) to a signal (N, 1, size):
///
///   append positions → standardize → before → attention → after
///
/// `before` and `after` are two convolutions of width 5 each. The convolution net has five convolutions, all in
/// `before`. The positions are standardized like the signal, as in the handout's program. (Later notebooks add the
/// result of a second convolution, of the positions, to the first. One convolution of both together computes the same.)
class ShapeNetImpl : public torch::nn::Cloneable<ShapeNetImpl> {
 public:
  explicit ShapeNetImpl(const ShapeNetOptions& options_ = {}) : options(options_) { reset(); }

  void reset() override {
    constexpr std::int64_t kChannels = 64;
    std::int64_t channels = 1;
    positions = nullptr;
    const auto beside = [&](auto layer, std::int64_t more) {
      positions = register_module("positions", torch::nn::Sequential(layer));
      channels += more;
    };
    constexpr auto kConcatenate = attend::Combine::kConcatenate;
    const std::int64_t bits = attend::binary_positions(options.size()).size(0);
    switch (options.positions()) {
      case Positions::kNone:
        break;
      case Positions::kLinear:
        beside(attend::LinearPositions(), 1);
        break;
      case Positions::kBinary:
        beside(attend::BinaryPositions(), bits);
        break;
      case Positions::kSinusoidal:
        beside(attend::SinusoidalPositions(attend::SinusoidalPositionsOptions(bits).combine(kConcatenate)), bits);
        break;
      case Positions::kLearned:
        beside(attend::LearnedPositions(attend::LearnedPositionsOptions(bits, options.size()).combine(kConcatenate)),
               bits);
        break;
    }
    standardize = register_module("standardize", attend::Standardize(options.standardize()));
    const auto convolutions = [this](std::int64_t in, std::int64_t out, std::int64_t depth) {
      return attend::ConvStackOptions(in, kChannels, out).depth(depth).activation(options.activation());
    };
    if (!options.attention()) {
      before = register_module("before", attend::ConvStack(convolutions(channels, 1, 5)));
      return;
    }
    before =
        register_module("before", attend::ConvStack(convolutions(channels, kChannels, 2).activation_after_last(true)));
    attention = register_module("attention",
                                attend::SelfAttention1d(attend::SelfAttention1dOptions(kChannels, kChannels, kChannels)
                                                            .num_heads(options.num_heads())
                                                            .scale(options.scale())));
    after = register_module("after", attend::ConvStack(convolutions(kChannels, 1, 2)));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor y = before(standardized(x));  // (N, 64, size)
    return options.attention() ? after(attention(y)) : y;
  }

  /// The attention weights of each position: (N, num_heads, size, size). The net must have attention.
  torch::Tensor attention_map(const torch::Tensor& x) {
    TORCH_CHECK_VALUE(options.attention(), "ShapeNet: attention_map() needs a net with attention");
    return attention->attention_map(before(standardized(x)));
  }

  ShapeNetOptions options;
  torch::nn::Sequential positions{nullptr};
  attend::Standardize standardize{nullptr};
  attend::ConvStack before{nullptr}, after{nullptr};
  attend::SelfAttention1d attention{nullptr};

 private:
  torch::Tensor standardized(const torch::Tensor& x) {
    return standardize(positions ? positions->forward(x) : x);  // (N, 1 + channels of the positions, size)
  }
};

TORCH_MODULE(ShapeNet);
