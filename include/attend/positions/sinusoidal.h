// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/positions/detail/joined.h>
#include <attend/positions/detail/table_cache.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of sinusoidal_positions() and SinusoidalPositions.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::SinusoidalPositionsOptions(64).base(1000).sine_first(true)
/// @endcode
struct SinusoidalPositionsOptions {
  /// Sets the option that has no default.
  ///
  /// @param num_channels As the option num_channels.
  explicit SinusoidalPositionsOptions(std::int64_t num_channels) : num_channels_(num_channels) {}

  /// The number of channels, at least 1. It may be odd or even. No default.
  TORCH_ARG(std::int64_t, num_channels);
  /// The base of the frequencies, which go from 1 in the first channel towards 1/base in the last. Finite and above 0.
  /// Default: 10,000.
  TORCH_ARG(double, base) = 10000.0;
  /// Whether even channels have the sine and odd channels the cosine, as in the paper. If false, even channels have the
  /// cosine and odd channels the sine. Default: false.
  TORCH_ARG(bool, sine_first) = false;
  /// How the channels are combined with those of x. Default: kAdd.
  TORCH_ARG(Combine, combine) = Combine::kAdd;
  /// Whether x is (N, L, C), a sequence as in transformers. Otherwise it is (N, C, L), a signal as in convolutions.
  /// Default: false.
  TORCH_ARG(bool, batch_first) = false;
};

namespace detail {

inline void check_sinusoidal(const char* name, const SinusoidalPositionsOptions& options) {
  check_positive(name, "num_channels", options.num_channels());
  TORCH_CHECK_VALUE(std::isfinite(options.base()) && options.base() > 0.0, name, ": base (", options.base(),
                    ") must be above 0 and finite");
}

}  // namespace detail

/// Positions as cosines and sines of several frequencies.
///
/// Channel 2i is cos(t · f_i) and channel 2i + 1 is sin(t · f_i), with f_i = base^(−2i / num_channels) and t = 0 …
/// length − 1. If num_channels is odd, the last frequency has only the first of its two channels.
///
/// @param length The number of positions, at least 1.
/// @param options num_channels, base and sine_first.
/// @return (num_channels, length), float64 on the CPU.
/// @throws c10::ValueError if length or num_channels is below 1, or base is not above 0 and finite.
///
/// Differs from the paper: the cosine comes first, unless SinusoidalPositionsOptions::sine_first() is set.
///
/// Source: A. Vaswani et al., "Attention is all you need", 2017, section 3.5.
///
/// @code
/// torch::Tensor waves = attend::sinusoidal_positions(100, attend::SinusoidalPositionsOptions(64));  // (64, 100)
/// @endcode
inline torch::Tensor sinusoidal_positions(std::int64_t length, const SinusoidalPositionsOptions& options) {
  detail::check_positive("attend::sinusoidal_positions", "length", length);
  detail::check_sinusoidal("attend::sinusoidal_positions", options);
  const torch::Tensor channel = at::arange(options.num_channels(), torch::kLong).unsqueeze(1);  // (channels, 1)
  const torch::Tensor is_odd = channel.bitwise_and(1).to(torch::kBool);
  const torch::Tensor exponent = (channel - channel.bitwise_and(1)).to(torch::kDouble) / options.num_channels();
  const torch::Tensor angle =
      at::arange(length, torch::kDouble) * exponent.mul(-std::log(options.base())).exp();  // (channels, length)
  return at::where(options.sine_first() ? is_odd : is_odd.logical_not(), angle.cos(), angle.sin());
}

/// Adds the channels of sinusoidal_positions() to those of a signal, or appends them. The layer has no parameters.
///
/// Shapes, with L ≥ 1; N may be 0. With batch_first the last two dimensions are exchanged.
/// - kAdd: x (N, C, L) → (N, C, L). num_channels must be C or 1. A single channel is added to every channel of x.
/// - kConcatenate: x (N, C, L) → (N, C + num_channels, L)
///
/// The output has the dtype of x.
///
/// @throws c10::ValueError for options out of range, if x is not 3-d, or with kAdd if the numbers of channels do not
/// fit.
/// @throws c10::TypeError if x is not floating-point.
///
/// @code
/// attend::SinusoidalPositions positions(attend::SinusoidalPositionsOptions(64));
/// torch::Tensor y = positions(x);  // (N, 64, L) → (N, 64, L)
/// @endcode
class SinusoidalPositionsImpl : public torch::nn::Cloneable<SinusoidalPositionsImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param num_channels As the option num_channels.
  /// @throws c10::ValueError for options out of range.
  explicit SinusoidalPositionsImpl(std::int64_t num_channels)
      : SinusoidalPositionsImpl(SinusoidalPositionsOptions(num_channels)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit SinusoidalPositionsImpl(const SinusoidalPositionsOptions& options_) : options(options_) { reset(); }

  /// Checks the options. The constructor calls it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override { detail::check_sinusoidal("attend::SinusoidalPositions", options); }

  /// Loads nothing, because the layer has no parameters.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive has parameters, because then another layer has saved it.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::SinusoidalPositions", *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::SinusoidalPositions(" << options.num_channels() << ", base=" << options.base() << std::boolalpha
           << ", sine_first=" << options.sine_first() << ", combine=" << options.combine()
           << (options.batch_first() ? ", batch_first=true)" : ")");
  }

  /// Combines a signal with its positions, as the option combine says.
  ///
  /// @param x (N, C, L), or (N, L, C) with batch_first.
  /// @return (N, C, L), or (N, C + num_channels, L) with kConcatenate. With batch_first the last two dimensions are
  /// exchanged.
  torch::Tensor forward(const torch::Tensor& x) {
    const char* const kName = "attend::SinusoidalPositions";
    const std::int64_t length = detail::length_of_signal(kName, x, options.batch_first());
    const torch::Tensor waves =
        table_.get(length, x.options(), [this](std::int64_t size) { return sinusoidal_positions(size, options); });
    return detail::joined(kName, x, waves, options.combine(), options.batch_first());
  }

  /// The options that the layer was made with.
  SinusoidalPositionsOptions options;

 private:
  detail::TableCache table_;
};

TORCH_MODULE(SinusoidalPositions);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
