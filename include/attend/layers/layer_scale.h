// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of LayerScale.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::LayerScaleOptions(512).init(1e-4)
/// @endcode
struct LayerScaleOptions {
  /// Sets the option that has no default.
  ///
  /// @param dim As the option dim.
  LayerScaleOptions(std::int64_t dim) : dim_(dim) {}

  /// The size of the last dimension of x, at least 1. No default.
  TORCH_ARG(std::int64_t, dim);
  /// The initial value of all factors, finite. Default: 1e-5.
  TORCH_ARG(double, init) = 1e-5;
};

/// Multiplies each channel by a learned factor. Use it after a branch of a deep transformer: the factors start small,
/// so the branch contributes little at first.
///
/// y = x ∘ gamma.
///
/// Parameter: `gamma` (dim), as in timm. Shapes: x (…, dim) → the same sizes.
///
/// @throws c10::ValueError for options out of range, and if the last size of x is not dim or x is on another device
/// than gamma.
/// @throws c10::TypeError if x has another dtype than gamma.
///
/// Source: Touvron et al., "Going deeper with image transformers", 2021.
///
/// @code
/// attend::LayerScale scale(512);
/// torch::Tensor y = scale(x);  // (N, L, 512) → (N, L, 512)
/// @endcode
class LayerScaleImpl : public torch::nn::Cloneable<LayerScaleImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param dim As the option dim.
  /// @throws c10::ValueError for options out of range.
  explicit LayerScaleImpl(std::int64_t dim) : LayerScaleImpl(LayerScaleOptions(dim)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit LayerScaleImpl(const LayerScaleOptions& options_) : options(options_) { reset(); }

  /// Creates new factors according to the options. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_positive(kName, "dim", options.dim());
    TORCH_CHECK_VALUE(std::isfinite(options.init()), kName, ": init (", options.init(), ") must be finite");
    gamma = register_parameter("gamma", torch::empty({options.dim()}));
    reset_parameters();
  }

  /// Sets all factors to the option init.
  void reset_parameters() { torch::nn::init::constant_(gamma, options.init()); }

  /// Loads the factors, and checks that they have the shape of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive, {{"gamma", {"dim"}}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::LayerScale(" << options.dim() << ", init=" << options.init() << ")";
  }

  /// Multiplies each channel by its factor.
  ///
  /// @param x (…, dim)
  /// @return The same sizes and dtype.
  torch::Tensor forward(const torch::Tensor& x) {
    detail::check_tokens(kName, x, options.dim(), "dim", gamma);
    return x * gamma.to(x.scalar_type());
  }

  /// The options that the layer was made with.
  LayerScaleOptions options;

  /// The learned factors, (dim).
  torch::Tensor gamma;

 private:
  static constexpr const char* kName = "attend::LayerScale";
};

TORCH_MODULE(LayerScale);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
