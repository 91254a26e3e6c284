// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/activation.h>
#include <attend/layers/detail/feed_forward.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/version.h>

#include <ATen/ops/dropout.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The names of the parameters of FeedForward.
enum class FeedForwardNames {
  kTorch,  ///< `linear1` and `linear2`, as in torch.nn.TransformerEncoderLayer
  kLlama,  ///< `gate_proj`, `up_proj` and `down_proj`, as in Hugging Face's Llama
};

/// Writes the name, for example "kTorch".
inline std::ostream& operator<<(std::ostream& stream, FeedForwardNames names) {
  return stream << (names == FeedForwardNames::kTorch ? "kTorch" : "kLlama");
}

/// Options of FeedForward.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::FeedForwardOptions(512, 1376).activation(attend::kSiLU).gated(true).bias(false)
/// @endcode
struct FeedForwardOptions {
  /// Sets the two options that have no default.
  ///
  /// @param embed_dim As the option embed_dim.
  /// @param hidden_dim As the option hidden_dim.
  FeedForwardOptions(std::int64_t embed_dim, std::int64_t hidden_dim)
      : embed_dim_(embed_dim), hidden_dim_(hidden_dim) {}

  /// Width E of x and of the output, at least 1. No default.
  TORCH_ARG(std::int64_t, embed_dim);
  /// Width F of the hidden layer, at least 1. No default.
  TORCH_ARG(std::int64_t, hidden_dim);
  /// The activation: torch::kReLU, torch::kGELU, attend::kGELUTanh, attend::kSiLU, attend::kReLUSquared, torch::kTanh,
  /// or a function; see Activation. Default: torch::kReLU, as in torch.
  TORCH_ARG(Activation, activation) = torch::kReLU;
  /// Whether a second projection of x multiplies the hidden layer: SwiGLU with kSiLU, GEGLU with torch::kGELU. Default:
  /// false.
  TORCH_ARG(bool, gated) = false;
  /// Whether the projections have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
  /// The probability with which a hidden number is set to 0 in training mode, from 0 to 1. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// The names of the parameters. Default: kTorch.
  TORCH_ARG(FeedForwardNames, names) = FeedForwardNames::kTorch;
  /// Which backend computes the projections. kReference: torch. Other values: attend's kernels where they are faster.
  /// Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;
};

/// The feed-forward network of a transformer: two projections with an activation between them, applied to each token
/// separately.
///
/// y = W₂ dropout(σ(W₁ x + b₁)) + b₂. With gated: y = W₂ dropout(σ(W_g x + b_g) ∘ (W_u x + b_u)) + b₂.
///
/// | Parameters | with kTorch | with kLlama | Shape |
/// | --- | --- | --- | --- |
/// | W₁, b₁ | `linear1.weight`, `linear1.bias` | `up_proj.weight`, `up_proj.bias` | (F, E), (F) |
/// | W_g, b_g | the first half of `linear1` | `gate_proj.weight`, `gate_proj.bias` | (F, E), (F) |
/// | W_u, b_u | the second half of `linear1` | `up_proj.weight`, `up_proj.bias` | (F, E), (F) |
/// | W₂, b₂ | `linear2.weight`, `linear2.bias` | `down_proj.weight`, `down_proj.bias` | (E, F), (E) |
///
/// With kTorch and gated, `linear1` has 2F outputs, in the order of Phi-3's `gate_up_proj`. Initial weights are those
/// of torch::nn::Linear.
///
/// Shapes: x (…, E) → the same sizes.
///
/// @throws c10::ValueError for options out of range, and if the width or device of x does not fit.
/// @throws c10::TypeError if x has another dtype than the weights.
///
/// Source: Vaswani et al., "Attention is all you need", 2017. Gated: Shazeer, "GLU variants improve transformer", 2020.
///
/// @code
/// attend::FeedForward swiglu(attend::FeedForwardOptions(512, 1376).activation(attend::kSiLU).gated(true).bias(false));
/// torch::Tensor y = swiglu(x);  // (N, L, 512) → (N, L, 512)
/// @endcode
class FeedForwardImpl : public torch::nn::Cloneable<FeedForwardImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param embed_dim As the option embed_dim.
  /// @param hidden_dim As the option hidden_dim.
  /// @throws c10::ValueError for options out of range.
  FeedForwardImpl(std::int64_t embed_dim, std::int64_t hidden_dim)
      : FeedForwardImpl(FeedForwardOptions(embed_dim, hidden_dim)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit FeedForwardImpl(const FeedForwardOptions& options_) : options(options_) { reset(); }

  /// Creates new projections according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_positive(kName, "embed_dim", options.embed_dim());
    detail::check_positive(kName, "hidden_dim", options.hidden_dim());
    TORCH_CHECK_VALUE(options.dropout() >= 0.0 && options.dropout() <= 1.0, kName, ": dropout (", options.dropout(),
                      ") must be a probability from 0 to 1");
    const auto projection = [this](const char* name, std::int64_t from, std::int64_t to) {
      return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(options.bias())));
    };
    const std::int64_t width = options.embed_dim(), hidden = options.hidden_dim();
    gate = nullptr;
    if (options.names() == FeedForwardNames::kTorch) {
      up = projection("linear1", width, has_joint_gate() ? 2 * hidden : hidden);
      down = projection("linear2", hidden, width);
    } else {
      if (options.gated()) gate = projection("gate_proj", width, hidden);
      up = projection("up_proj", width, hidden);
      down = projection("down_proj", hidden, width);
    }
  }

  /// Draws new initial weights, of the same distribution as those of torch::nn::Linear.
  void reset_parameters() {
    for (torch::nn::Linear* layer : {&gate, &up, &down})
      if (!layer->is_empty()) (*layer)->reset_parameters();
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    const std::string presence = "names, gated or bias";
    std::vector<detail::ParameterOptions> parameters;
    for (const char* name : {"linear1", "gate_proj", "up_proj"}) {
      const std::string sizes = name == std::string("linear1") ? "hidden_dim or gated" : "hidden_dim";
      parameters.push_back({std::string(name) + ".weight", {sizes, "embed_dim"}, presence});
      parameters.push_back({std::string(name) + ".bias", {sizes}, presence});
    }
    for (const char* name : {"linear2", "down_proj"}) {
      parameters.push_back({std::string(name) + ".weight", {"embed_dim", "hidden_dim"}, presence});
      parameters.push_back({std::string(name) + ".bias", {"embed_dim"}, presence});
    }
    detail::check_archive(kName, *this, archive, parameters, presence);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::FeedForward(" << options.embed_dim() << ", " << options.hidden_dim()
           << ", activation=" << options.activation() << std::boolalpha << ", gated=" << options.gated()
           << ", bias=" << options.bias() << std::noboolalpha << ", dropout=" << options.dropout()
           << ", names=" << options.names() << ")";
  }

  /// Applies the network to each token.
  ///
  /// @param x (…, E)
  /// @return (…, E)
  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_tokens(kName, x, options.embed_dim(), "embed_dim", down->weight);
    const double dropout = is_training() ? options.dropout() : 0.0;
    if (!options.gated())
      return detail::feed_forward(x, {up->weight, up->bias}, options.activation(), dropout, {down->weight, down->bias},
                                  options.backend());
    torch::Tensor hidden;
    if (has_joint_gate()) {
      const std::vector<torch::Tensor> halves = project(x, {up})[0].chunk(2, -1);
      hidden = options.activation()(halves[0]) * halves[1];
    } else {
      const std::vector<torch::Tensor> both = project(x, {gate, up});
      hidden = options.activation()(both[0]) * both[1];
    }
    return project(at::dropout(hidden, dropout, /*train=*/true), {down})[0];
  }

  /// The options that the layer was made with.
  FeedForwardOptions options;

  torch::nn::Linear up{nullptr},  ///< the projection to the hidden layer: `linear1` or `up_proj`
      down{nullptr},              ///< the projection back: `linear2` or `down_proj`
      gate{nullptr};              ///< the projection inside the activation: `gate_proj`; empty unless gated and kLlama

 private:
  static constexpr const char* kName = "attend::FeedForward";

  /// Whether one projection computes the gate and the numbers that it multiplies.
  bool has_joint_gate() const { return options.gated() && options.names() == FeedForwardNames::kTorch; }

  std::vector<torch::Tensor> project(const torch::Tensor& x, const std::vector<torch::nn::Linear>& layers) const {
    std::vector<detail::Linear> linear;
    for (const torch::nn::Linear& layer : layers) linear.push_back({layer->weight, layer->bias});
    return detail::FusedLinear::run(x, linear, options.backend());
  }
};

TORCH_MODULE(FeedForward);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
