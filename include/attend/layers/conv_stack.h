// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/activation.h>
#include <attend/layers/detail/convolution_stack.h>
#include <attend/layers/detail/cpu_convolution.h>
#include <attend/version.h>

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of ConvStack.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::ConvStackOptions(1, 64, 1).depth(5).kernel_size(5).activation(torch::kReLU)
/// @endcode
struct ConvStackOptions {
  /// Sets the three options that have no default.
  ///
  /// @param in_channels As the option in_channels.
  /// @param hidden_channels As the option hidden_channels.
  /// @param out_channels As the option out_channels.
  ConvStackOptions(std::int64_t in_channels, std::int64_t hidden_channels, std::int64_t out_channels)
      : in_channels_(in_channels), hidden_channels_(hidden_channels), out_channels_(out_channels) {}

  /// The number of channels of the input x, at least 1. No default.
  TORCH_ARG(std::int64_t, in_channels);
  /// The number of channels between the convolutions, at least 1. No default.
  TORCH_ARG(std::int64_t, hidden_channels);
  /// The number of channels of the output y, at least 1. No default.
  TORCH_ARG(std::int64_t, out_channels);
  /// The number of convolutions, at least 1. Default: 5.
  TORCH_ARG(std::int64_t, depth) = 5;
  /// The kernel_size of each convolution, in positions, at least 1. It may be odd or even. Default: 5.
  TORCH_ARG(std::int64_t, kernel_size) = 5;
  /// The activation after each convolution except the last. Default: torch::kReLU.
  TORCH_ARG(Activation, activation) = torch::kReLU;
  /// Whether the activation follows the last convolution as well. Default: false.
  TORCH_ARG(bool, activation_after_last) = false;
  /// Which implementation computes the layer. kReference means torch's convolutions, kCpu means attend's kernels. kAuto
  /// follows the active BackendGuard. Without a guard, or under a kSdpa guard, the faster implementation is used. The
  /// constructor throws c10::ValueError for other values. Default: kAuto.
  TORCH_ARG(Backend, backend) = Backend::kAuto;
};

/// A stack of convolutions of a 1-d signal, with an activation between them.
///
/// x → Conv1d(in → hidden) → activation → Conv1d(hidden → hidden) → … → Conv1d(hidden → out). Each convolution has a
/// bias and pads with zeros to keep the length. An even kernel_size pads one position more on the right. An output
/// position depends on depth · (kernel_size − 1) + 1 positions of the input.
///
/// Include `<attend/layers/conv_stack.h>`. `<attend/attend.h>` does not include it, so that only files that use the
/// layer compile its kernels.
///
/// Parameters: `0.weight`, `0.bias`, `2.weight`, `2.bias`, …. These are the names in a `torch.nn.Sequential` of
/// convolutions and activations, so the layer loads the state dict of such a Sequential.
///
/// Shapes: x (N, in_channels, L) → (N, out_channels, L). L ≥ 1; N may be 0.
///
/// Memory layout: the result of kCpu is channels-last, as y.transpose(1, 2).contiguous().transpose(1, 2) is. The next
/// layer of attend reads it without a copy.
///
/// attend's kernels run on a CPU with AVX2, AVX-512 or NEON. They can compute float32, and bfloat16 if the processor
/// has dot products of bfloat16, also under autocast. If the activation is torch::kReLU, they compute the whole stack
/// in one pass. Their results differ from those of torch only by rounding. torch computes all other calls. explain()
/// says which of the two is used.
///
/// @throws c10::ValueError if x is not 3-d, or its channels or device are not those of the weights.
/// @throws c10::TypeError if the dtype of x is not that of the weights.
/// @throws c10::NotImplementedError if kCpu is requested and cannot compute the call. The message has the reason.
///
/// @code
/// attend::ConvStack convolutions(attend::ConvStackOptions(1, 64, 1).depth(5));
/// torch::Tensor y = convolutions(x);
/// @endcode
class ConvStackImpl : public torch::nn::Cloneable<ConvStackImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param in_channels As the option in_channels.
  /// @param hidden_channels As the option hidden_channels.
  /// @param out_channels As the option out_channels.
  /// @throws c10::ValueError for options out of range.
  ConvStackImpl(std::int64_t in_channels, std::int64_t hidden_channels, std::int64_t out_channels)
      : ConvStackImpl(ConvStackOptions(in_channels, hidden_channels, out_channels)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit ConvStackImpl(const ConvStackOptions& options_) : options(options_) { reset(); }

  /// Creates new convolutions according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_positive("attend::ConvStack", "in_channels", options.in_channels());
    detail::check_positive("attend::ConvStack", "hidden_channels", options.hidden_channels());
    detail::check_positive("attend::ConvStack", "out_channels", options.out_channels());
    detail::check_positive("attend::ConvStack", "depth", options.depth());
    detail::check_positive("attend::ConvStack", "kernel_size", options.kernel_size());
    TORCH_CHECK_VALUE(options.backend() != Backend::kSdpa && options.backend() != Backend::kGiven,
                      "attend::ConvStack: backend (", options.backend(), ") must be kAuto, kReference or kCpu");
    convolutions.clear();
    for (std::int64_t i = 0; i < options.depth(); ++i) {
      const std::int64_t in = i == 0 ? options.in_channels() : options.hidden_channels();
      const std::int64_t out = i == options.depth() - 1 ? options.out_channels() : options.hidden_channels();
      const auto conv_options = torch::nn::Conv1dOptions(in, out, options.kernel_size()).padding(torch::kSame);
      const std::string name = std::to_string(2 * i);  // odd numbers belong to the activations
      convolutions.emplace_back(register_module(name, torch::nn::Conv1d(conv_options)));
    }
  }

  /// Draws new initial weights from the distribution of torch::nn::Conv1d.
  void reset_parameters() {
    for (auto& convolution : convolutions) convolution->reset_parameters();
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    std::vector<detail::ParameterOptions> parameters;
    for (std::int64_t i = 0; i < options.depth(); ++i) {
      const std::string name = std::to_string(2 * i);
      const char* const in = i == 0 ? "in_channels" : "hidden_channels";
      const char* const out = i == options.depth() - 1 ? "out_channels" : "hidden_channels";
      parameters.push_back({name + ".weight", {out, in, "kernel_size"}});
      parameters.push_back({name + ".bias", {out}});
    }
    detail::check_archive("attend::ConvStack", *this, archive, parameters, /*presence=*/"depth");
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::ConvStack(" << options.in_channels() << ", " << options.hidden_channels() << ", "
           << options.out_channels() << ", depth=" << options.depth() << ", kernel_size=" << options.kernel_size()
           << ", activation=" << options.activation() << std::boolalpha
           << ", activation_after_last=" << options.activation_after_last() << ")";
  }

  /// Applies the stack to a signal.
  ///
  /// @param x (N, in_channels, L)
  /// @return (N, out_channels, L)
  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_signal("attend::ConvStack", x, options.in_channels(), convolutions.front()->weight);
    if (options.activation().is_relu()) {
      const detail::ConvolutionStack all = stack(0, convolutions.size(), /*has_relu=*/true);
      return takes_kernels(all, x) ? detail::CpuConvolution::run(all, x) : detail::convolve_by_torch(all, x);
    }
    torch::Tensor y = x;  // (N, in_channels, L)
    for (std::size_t i = 0; i < convolutions.size(); ++i) {
      const detail::ConvolutionStack one = stack(i, i + 1, /*has_relu=*/false);
      y = takes_kernels(one, y) ? detail::CpuConvolution::run(one, y)
                                : detail::convolve_by_torch(one, y);  // (N, hidden_channels, L)
      if (i + 1 < convolutions.size() || options.activation_after_last()) y = options.activation()(y);
    }
    return y;
  }

  /// Says which backend forward() uses, kCpu or kReference (torch), and why not kCpu. Computes nothing and allocates no
  /// tensor.
  ///
  /// If the activation is torch::kReLU, there is one choice for the whole stack. With another activation there is one
  /// choice for each convolution: the answer is kReference if torch computes at least one of them. explain() assumes
  /// that the activation keeps the dtype.
  ///
  /// @param x (N, in_channels, L)
  /// @return The implementation and the reason.
  /// @throws c10::Error of the same kinds as forward().
  Explanation explain(const torch::Tensor& x) {
    detail::check_signal("attend::ConvStack", x, options.in_channels(), convolutions.front()->weight);
    std::string reason;
    bool is_cpu = true;
    if (options.activation().is_relu()) {
      is_cpu = takes_kernels(stack(0, convolutions.size(), /*has_relu=*/true), x, &reason);
    } else {
      for (std::size_t i = 0; i < convolutions.size() && is_cpu; ++i)
        is_cpu = takes_kernels(stack(i, i + 1, /*has_relu=*/false),
                               x.select(1, 0).unsqueeze(1).expand({-1, convolutions[i]->weight.size(1), -1}), &reason);
    }
    if (!is_cpu) {
      const bool is_partly_torch = !reason.empty() && !options.activation().is_relu() && convolutions.size() > 1;
      return {Backend::kReference, reason, "",
              is_partly_torch ? "kReference runs torch's convolutions for at least one convolution of the stack."
                              : "kReference runs torch's convolutions."};
    }
    return {Backend::kCpu, "", detail::CpuConvolution::copies(x), detail::CpuConvolution::how(x)};
  }

  /// The options that the layer was made with.
  ConvStackOptions options;

  /// The convolutions in order. Their names as submodules are "0", "2", "4", ….
  std::vector<torch::nn::Conv1d> convolutions;

 private:
  detail::ConvolutionStack stack(std::size_t begin, std::size_t end, bool has_relu) const {
    detail::ConvolutionStack stack;
    for (std::size_t i = begin; i < end; ++i) {
      stack.weights.push_back(convolutions[i]->weight);
      stack.biases.push_back(convolutions[i]->bias);
    }
    stack.has_relu = has_relu;
    stack.has_relu_after_last = has_relu && options.activation_after_last();
    return stack;
  }

  /// Whether attend's kernels compute the stack. If not, the reason is written to `reason`, unless it is null.
  bool takes_kernels(const detail::ConvolutionStack& stack, const torch::Tensor& x,
                     std::string* reason = nullptr) const {
    using Kernels = detail::CpuConvolution;
    const Backend asked = options.backend() == Backend::kAuto ? BackendGuard::current() : options.backend();
    if (asked == Backend::kReference) return false;
    const bool can_run = Kernels::can_run(stack, x, reason);
    const auto why_not = [&] {
      std::string text;
      Kernels::can_run(stack, x, &text);
      return text;
    };
    TORCH_CHECK_NOT_IMPLEMENTED(asked != Backend::kCpu || can_run || x.numel() == 0, "attend::ConvStack: ", why_not());
    return can_run && (asked == Backend::kCpu || Kernels::is_faster(stack, x, reason));
  }
};

TORCH_MODULE(ConvStack);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
