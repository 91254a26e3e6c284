// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of DropPath.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::DropPathOptions(0.1)
/// @endcode
struct DropPathOptions {
  /// Sets the option.
  ///
  /// @param p As the option p. Default: 0.
  DropPathOptions(double p = 0.0) : p_(p) {}

  /// The probability with which a batch entry is set to 0, from 0 to 1. Default: 0.
  TORCH_ARG(double, p);
};

/// Stochastic depth: in training mode it sets whole batch entries to 0, and divides the others by 1 − p. Use it after
/// a branch of a residual network: the branch is left out for these entries. In evaluation mode the output is x.
///
/// The layer has no parameters. Shapes: x (N, …) → the same sizes. After the same seed, it drops the same entries as
/// torchvision.ops.StochasticDepth(p, "row") and timm's DropPath in Python.
///
/// @throws c10::ValueError for options out of range, and if x has no dimensions.
/// @throws c10::TypeError if x is not floating-point.
///
/// Source: Huang et al., "Deep networks with stochastic depth", 2016.
///
/// @code
/// attend::DropPath drop_path(0.1);
/// torch::Tensor y = x + drop_path(x);
/// @endcode
class DropPathImpl : public torch::nn::Cloneable<DropPathImpl> {
 public:
  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit DropPathImpl(const DropPathOptions& options_ = {}) : options(options_) { reset(); }

  /// Checks the options. The constructor calls it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    TORCH_CHECK_VALUE(options.p() >= 0.0 && options.p() <= 1.0, kName, ": p (", options.p(),
                      ") must be a probability from 0 to 1");
  }

  /// Loads nothing, because the layer has no parameters.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive has parameters, because then another layer has saved it.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override { stream << "attend::DropPath(p=" << options.p() << ")"; }

  /// Drops batch entries.
  ///
  /// @param x (N, …)
  /// @return The same sizes and dtype.
  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_tensor(kName, "x", x);
    TORCH_CHECK_TYPE(x.is_floating_point(), kName, ": x (", x.scalar_type(), ") must have a floating dtype");
    TORCH_CHECK_VALUE(x.dim() >= 1, kName, ": x must have a batch dimension, got 0-d");
    if (!is_training() || options.p() == 0.0) return x;
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(x.dim()), 1);
    sizes[0] = x.size(0);
    const double kept = 1.0 - options.p();
    torch::Tensor factors = at::empty(sizes, x.options()).bernoulli_(kept);
    if (kept > 0.0) factors.div_(kept);
    return x * factors;
  }

  /// The options that the layer was made with.
  DropPathOptions options;

 private:
  static constexpr const char* kName = "attend::DropPath";
};

TORCH_MODULE(DropPath);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
