// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/fused_layer_norm.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of LayerNorm: those of torch::nn::LayerNormOptions, then `bias`, which torch has only in Python.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::LayerNormOptions({512}).eps(1e-6).bias(false)
/// @endcode
struct LayerNormOptions {
  /// Sets the option that has no default.
  ///
  /// @param normalized_shape As the option normalized_shape.
  /* implicit */ LayerNormOptions(std::vector<std::int64_t> normalized_shape)
      : normalized_shape_(std::move(normalized_shape)) {}

  /// The sizes of the last dimensions, over which the mean is taken. At least one size, each at least 1. No default.
  TORCH_ARG(std::vector<std::int64_t>, normalized_shape);
  /// The number that is added to the variance, at least 0. Default: 1e-5.
  TORCH_ARG(double, eps) = 1e-5;
  /// Whether the layer has learned parameters. Default: true.
  TORCH_ARG(bool, elementwise_affine) = true;
  /// Whether the learned parameters include a bias. Without elementwise_affine there is none. Default: true.
  TORCH_ARG(bool, bias) = true;
};

/// Layer normalization: each vector gets mean 0 and variance 1, and is then scaled and shifted.
///
/// y = (x − E[x]) / √(Var[x] + eps) · weight + bias. Mean and variance are those of the last dimensions.
///
/// Replaces torch::nn::LayerNorm. Options, forward(), results, names and shapes of parameters are the same. Each of the
/// two layers loads the files that torch::save wrote for the other.
///
/// | Tensor | Shape |
/// | --- | --- |
/// | x, output | (…, normalized_shape) |
/// | `weight` | normalized_shape, if elementwise_affine; initially 1 |
/// | `bias` | normalized_shape, if elementwise_affine and bias; initially 0 |
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Differs from torch::nn::LayerNorm: the option `bias`, as in Python.
///
/// Source: Ba, Kiros and Hinton, "Layer normalization", 2016.
///
/// @code
/// attend::LayerNorm norm(attend::LayerNormOptions({512}).bias(false));
/// torch::Tensor y = norm(x);  // (…, 512)
/// @endcode
class LayerNormImpl : public torch::nn::Cloneable<LayerNormImpl> {
 public:
  /// The layer with these options.
  ///
  /// @param options_ The options. A list of sizes converts to options.
  /// @throws c10::ValueError for options out of range.
  explicit LayerNormImpl(LayerNormOptions options_) : options(std::move(options_)) { reset(); }

  /// Creates new parameters according to the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    TORCH_CHECK_VALUE(!options.normalized_shape().empty(), kName, ": normalized_shape must have at least one size");
    for (const std::int64_t size : options.normalized_shape()) detail::check_positive(kName, "normalized_shape", size);
    TORCH_CHECK_VALUE(std::isfinite(options.eps()) && options.eps() >= 0.0, kName, ": eps (", options.eps(),
                      ") must be finite and at least 0");
    const auto parameter = [this](const char* name, bool is_there) {
      return register_parameter(name, is_there ? torch::empty(options.normalized_shape()) : torch::Tensor(), is_there);
    };
    weight = parameter("weight", options.elementwise_affine());
    bias = parameter("bias", options.elementwise_affine() && options.bias());
    reset_parameters();
  }

  /// Sets weight to 1 and bias to 0.
  void reset_parameters() {
    if (weight.defined()) torch::nn::init::ones_(weight);
    if (bias.defined()) torch::nn::init::zeros_(bias);
  }

  /// Loads the parameters, and checks that they have the shapes of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    const std::vector<std::string> sizes(options.normalized_shape().size(), "normalized_shape");
    detail::check_archive(kName, *this, archive,
                          {{"weight", sizes, "elementwise_affine"}, {"bias", sizes, "bias or elementwise_affine"}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::LayerNorm(" << torch::IntArrayRef(options.normalized_shape()) << ", eps=" << options.eps()
           << std::boolalpha << ", elementwise_affine=" << options.elementwise_affine() << ", bias=" << options.bias()
           << std::noboolalpha << ")";
  }

  /// Normalizes the last dimensions.
  ///
  /// @param x (…, normalized_shape).
  /// @return The result, of the shape of x.
  /// @throws c10::ValueError if the size or device of x does not fit.
  /// @throws c10::TypeError if its dtype does not fit.
  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_tensor(kName, "x", x);
    const torch::IntArrayRef shape = options.normalized_shape();
    TORCH_CHECK_VALUE(x.sizes().size() >= shape.size() && x.sizes().slice(x.sizes().size() - shape.size()) == shape,
                      kName, ": the last sizes of x must be normalized_shape ", shape, ", got ", x.sizes());
    if (weight.defined()) detail::check_fits_weights(kName, "x", x, weight);
    return detail::FusedLayerNorm::run(x, {shape, weight, bias, options.eps()});
  }

  /// The options that the layer was made with.
  LayerNormOptions options;
  torch::Tensor weight,  ///< the factor; undefined without elementwise_affine
      bias;              ///< the summand; undefined without elementwise_affine or without bias

 private:
  static constexpr const char* kName = "attend::LayerNorm";
};

TORCH_MODULE(LayerNorm);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
