// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/fused_rms_norm.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of RMSNorm: those of Python's torch.nn.RMSNorm.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::RMSNormOptions(512).eps(1e-6)
/// @endcode
struct RMSNormOptions {
  /// Sets the option that has no default, for one dimension.
  ///
  /// @param size The size of the last dimension of x, at least 1.
  RMSNormOptions(std::int64_t size) : normalized_shape_({size}) {}
  /// Sets the option that has no default.
  ///
  /// @param normalized_shape As the option normalized_shape.
  RMSNormOptions(std::vector<std::int64_t> normalized_shape) : normalized_shape_(std::move(normalized_shape)) {}

  /// The sizes of the last dimensions of x, over which the mean is taken. At least one size, each at least 1. No
  /// default.
  TORCH_ARG(std::vector<std::int64_t>, normalized_shape);
  /// The number that is added to the mean of the squares, at least 0. Default: the machine epsilon of the dtype of the
  /// computation, which is 2⁻⁵² for float64, otherwise 2⁻²³.
  TORCH_ARG(std::optional<double>, eps);
  /// Whether there is a weight. Default: true.
  TORCH_ARG(bool, elementwise_affine) = true;
};

/// Root mean square normalization: divides by the root of the mean of the squares. torch::nn has no such layer.
///
/// y = x / √(mean(x²) + eps) · weight. The mean is taken over the last dimensions, whose sizes are normalized_shape.
///
/// Parameter: `weight`, of the sizes normalized_shape. Its initial values are 1. Parameters and results are those of
/// Python's torch.nn.RMSNorm.
///
/// Shapes: x (…, normalized_shape) → the same sizes.
///
/// The mean and the products are computed in float32, and in float64 for a float64 x. On the CPU, a kernel computes
/// float32, bfloat16 and float64, forward and backward.
///
/// Layers of other libraries with the same weights:
/// - Hugging Face's LlamaRMSNorm rounds to the dtype of x before it multiplies by the weight. In float32 the results
///   are equal.
/// - Gemma multiplies by 1 + weight: add 1 to the weights.
///
/// @throws c10::ValueError for options out of range, and if the last sizes of x are not normalized_shape or x is on
/// another device than the weight.
/// @throws c10::TypeError if x is not floating-point, or has another dtype than the weight.
///
/// Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.
///
/// @code
/// attend::RMSNorm norm(512);
/// torch::Tensor y = norm(x);  // (N, L, 512) → (N, L, 512)
/// @endcode
class RMSNormImpl : public torch::nn::Cloneable<RMSNormImpl> {
 public:
  /// The layer for one dimension, with default values of all other options.
  ///
  /// @param size The size of the last dimension of x, at least 1.
  /// @throws c10::ValueError for a size below 1.
  explicit RMSNormImpl(std::int64_t size) : RMSNormImpl(RMSNormOptions(size)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit RMSNormImpl(const RMSNormOptions& options_) : options(options_) { reset(); }

  /// Creates a new weight according to the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    TORCH_CHECK_VALUE(!options.normalized_shape().empty(), kName,
                      ": normalized_shape must have at least one size, got none");
    for (const std::int64_t size : options.normalized_shape())
      detail::check_positive(kName, "a size of normalized_shape", size);
    TORCH_CHECK_VALUE(!options.eps() || (*options.eps() >= 0.0 && std::isfinite(*options.eps())), kName, ": eps (",
                      options.eps().value_or(0.0), ") must be at least 0 and finite");
    // A missing parameter is registered as an undefined tensor, as in torch.
    weight = register_parameter(
        "weight", options.elementwise_affine() ? torch::empty(options.normalized_shape()) : torch::Tensor(),
        options.elementwise_affine());
    reset_parameters();
  }

  /// Sets the weight to 1.
  void reset_parameters() {
    if (weight.defined()) torch::nn::init::ones_(weight);
  }

  /// Loads the weight, and checks that it has the shape of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive,
                          {{"weight", std::vector<std::string>(options.normalized_shape().size(), "normalized_shape"),
                            "elementwise_affine"}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::RMSNorm(" << torch::IntArrayRef(options.normalized_shape()) << ", eps=";
    if (options.eps())
      stream << *options.eps();
    else
      stream << "None";
    stream << std::boolalpha << ", elementwise_affine=" << options.elementwise_affine() << std::noboolalpha << ")";
  }

  /// Normalizes x.
  ///
  /// @param x (…, normalized_shape)
  /// @return A tensor of the sizes and dtype of x, also under autocast.
  torch::Tensor forward(const torch::Tensor& x) {
    check(x);
    return detail::FusedRmsNorm::run(x, weight, options.normalized_shape(), options.eps());
  }

  /// The options that the layer was made with.
  RMSNormOptions options;

  /// The learned parameter, of the sizes normalized_shape; undefined without elementwise_affine.
  torch::Tensor weight;

 private:
  static constexpr const char* kName = "attend::RMSNorm";

  void check(const torch::Tensor& x) const {
    detail::check_tensor(kName, "x", x);
    TORCH_CHECK_TYPE(x.is_floating_point(), kName, ": x (", x.scalar_type(), ") must have a floating dtype");
    const torch::IntArrayRef shape = options.normalized_shape();
    const auto dims = static_cast<std::int64_t>(shape.size());
    TORCH_CHECK_VALUE(x.dim() >= dims && x.sizes().slice(static_cast<std::size_t>(x.dim() - dims)) == shape, kName,
                      ": the last sizes of x must be normalized_shape ", shape, ", got ", x.sizes());
    if (weight.defined()) detail::check_fits_weights(kName, "x", x, weight);
  }
};

TORCH_MODULE(RMSNorm);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
