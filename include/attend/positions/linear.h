// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/positions/detail/joined.h>
#include <attend/positions/detail/table_cache.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Positions as one channel that rises from 0 towards 1.
///
/// t / length for t = 0 … length − 1. The value 1 is not reached.
///
/// @param length The number of positions, at least 1.
/// @return (1, length), float64 on the CPU.
/// @throws c10::ValueError if length is below 1.
///
/// @code
/// torch::Tensor ramp = attend::linear_positions(4);  // [[0, 0.25, 0.5, 0.75]]
/// @endcode
inline torch::Tensor linear_positions(std::int64_t length) {
  detail::check_positive("attend::linear_positions", "length", length);
  return (at::arange(length, torch::kDouble) / static_cast<double>(length)).unsqueeze(0);  // (1, length)
}

/// Options of LinearPositions.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::LinearPositionsOptions().combine(attend::Combine::kConcatenate)
/// @endcode
struct LinearPositionsOptions {
  /// How the channel is combined with those of x. Default: kConcatenate.
  TORCH_ARG(Combine, combine) = Combine::kConcatenate;
  /// Whether x is (N, L, C), a sequence as in transformers. Otherwise it is (N, C, L), a signal as in convolutions.
  /// Default: false.
  TORCH_ARG(bool, batch_first) = false;
};

/// Appends the channel of linear_positions() to a signal, or adds it to every channel. The layer has no parameters.
///
/// Shapes, with L ≥ 1; N may be 0. With batch_first the last two dimensions are exchanged.
/// - kConcatenate: x (N, C, L) → (N, C + 1, L)
/// - kAdd: x (N, C, L) → (N, C, L)
///
/// The output has the dtype of x.
///
/// @throws c10::ValueError if x is not 3-d.
/// @throws c10::TypeError if x is not floating-point.
///
/// @code
/// attend::LinearPositions positions;
/// torch::Tensor y = positions(x);
/// @endcode
class LinearPositionsImpl : public torch::nn::Cloneable<LinearPositionsImpl> {
 public:
  /// The layer with these options.
  ///
  /// @param options_ The options. Default: kConcatenate.
  explicit LinearPositionsImpl(const LinearPositionsOptions& options_ = {}) : options(options_) {}

  /// Does nothing: the layer has no parameters.
  void reset() override {}

  /// Loads nothing, because the layer has no parameters.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive has parameters, because then another layer has saved it.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::LinearPositions", *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::LinearPositions(combine=" << options.combine()
           << (options.batch_first() ? ", batch_first=true)" : ")");
  }

  /// Combines a signal with its positions, as the option combine says.
  ///
  /// @param x (N, C, L), or (N, L, C) with batch_first.
  /// @return (N, C + 1, L), or (N, C, L) with kAdd. With batch_first the last two dimensions are exchanged.
  torch::Tensor forward(const torch::Tensor& x) {
    const std::int64_t length = detail::length_of_signal("attend::LinearPositions", x, options.batch_first());
    const torch::Tensor positions =  // (1, L), in float64
        table_.get(length, x.options().dtype(torch::kDouble),
                   [](std::int64_t size) { return at::arange(size, torch::kDouble).unsqueeze(0); });
    const torch::Tensor ramp = positions.div(static_cast<double>(length)).to(x.scalar_type());
    return detail::joined("attend::LinearPositions", x, ramp, options.combine(), options.batch_first());
  }

  /// The options that the layer was made with.
  LinearPositionsOptions options;

 private:
  detail::TableCache table_;
};

TORCH_MODULE(LinearPositions);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
