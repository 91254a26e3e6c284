// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of Standardize.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::StandardizeOptions().mean(0.5).deviation(0.25)
/// @endcode
struct StandardizeOptions {
  StandardizeOptions() = default;

  /// Sets both options from data: the mean and the standard deviation of all elements, computed in float64. The
  /// variance of n elements is divided by n − 1.
  ///
  /// @param data Of any shape, with at least 2 elements.
  /// @throws c10::ValueError for fewer elements. Equal or infinite elements are not checked here: the constructor of
  /// Standardize throws for them.
  explicit StandardizeOptions(const torch::Tensor& data) {
    TORCH_CHECK_VALUE(data.defined() && data.numel() >= 2, "attend::Standardize: data (",
                      data.defined() ? data.numel() : 0, " elements) must have at least 2 elements");
    const torch::Tensor values = data.detach().to(torch::kDouble);
    mean_ = values.mean().item<double>();
    deviation_ = values.std().item<double>();
  }

  /// The value that is mapped to 0. Default: 0.
  TORCH_ARG(double, mean) = 0.0;
  /// The standard deviation. The value mean + deviation is mapped to 1. It must be above 0. Default: 1.
  TORCH_ARG(double, deviation) = 1.0;
};

/// Scales data to mean 0 and standard deviation 1.
///
/// y = (x − mean) / deviation, with the mean and the standard deviation of the data that a model is trained with.
///
/// Buffers: `mean` and `deviation`, 0-d float32. They are saved, loaded and moved with the model, but not trained. One
/// pair of numbers is used for all channels and positions.
///
/// Shapes: x of any shape → the same shape.
///
/// @throws c10::ValueError for options out of range: in float32, mean and deviation must be finite, and deviation must
/// be above 0. forward() and inverse() throw it if the buffers are not on the CPU and the tensor is on another device.
///
/// @code
/// attend::Standardize standardize(train_set.inputs());
/// torch::Tensor y = standardize(x);                  // the input of the model
/// torch::Tensor back = standardize->inverse(y);      // in the units of x
/// @endcode
class StandardizeImpl : public torch::nn::Cloneable<StandardizeImpl> {
 public:
  /// The layer with the mean and the standard deviation of all elements of data.
  ///
  /// @param data Of any shape, with at least 2 elements.
  /// @throws c10::ValueError for fewer elements, if all elements are equal, or if an element is not finite.
  explicit StandardizeImpl(const torch::Tensor& data) : StandardizeImpl(StandardizeOptions(data)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options. Default: mean 0 and deviation 1, which change nothing.
  /// @throws c10::ValueError for options out of range.
  explicit StandardizeImpl(const StandardizeOptions& options_ = {}) : options(options_) { reset(); }

  /// Creates the buffers with the values of the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    const auto mean_of_data = static_cast<float>(options.mean());
    const auto deviation_of_data = static_cast<float>(options.deviation());
    TORCH_CHECK_VALUE(std::isfinite(mean_of_data), "attend::Standardize: mean (", options.mean(),
                      ") must be finite in float32");
    TORCH_CHECK_VALUE(std::isfinite(deviation_of_data) && deviation_of_data > 0.0f, "attend::Standardize: deviation (",
                      options.deviation(), ") must be above 0 and finite in float32");
    mean = register_buffer("mean", torch::tensor(mean_of_data));
    deviation = register_buffer("deviation", torch::tensor(deviation_of_data));
  }

  /// Loads the buffers.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if another layer saved the archive. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::Standardize", *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the values of the buffers, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::Standardize(mean=" << mean.item<double>() << ", deviation=" << deviation.item<double>() << ")";
  }

  /// Scales a tensor.
  ///
  /// @param x Of any shape.
  /// @return (x − mean) / deviation, of the same shape.
  torch::Tensor forward(const torch::Tensor& x) {
    check("x", x);
    return (x - mean) / deviation;
  }

  /// The inverse of forward().
  ///
  /// @param y Of any shape.
  /// @return y · deviation + mean, of the same shape.
  torch::Tensor inverse(const torch::Tensor& y) const {
    check("y", y);
    return y * deviation + mean;
  }

  /// The options that the layer was made with. Loading changes the buffers, but not the options.
  StandardizeOptions options;

  torch::Tensor mean,  ///< the buffer with the mean, 0-d float32
      deviation;       ///< the buffer with the standard deviation, 0-d float32

 private:
  /// Any dtype is accepted. Buffers on the CPU can be used with tensors on every device, because they are 0-d.
  void check(const char* name, const torch::Tensor& tensor) const {
    detail::check_tensor("attend::Standardize", name, tensor);
    if (!mean.is_cpu()) detail::check_device("attend::Standardize", name, tensor, mean);
  }
};

TORCH_MODULE(Standardize);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
