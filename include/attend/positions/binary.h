// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/positions/detail/joined.h>
#include <attend/positions/detail/table_cache.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <bit>
#include <cstdint>
#include <optional>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

inline void check_bits(const char* name, std::int64_t num_channels) {
  TORCH_CHECK_VALUE(num_channels >= 1 && num_channels <= 62, name, ": num_channels (", num_channels,
                    ") must be between 1 and 62");
}

/// The number of channels, after checks.
inline std::int64_t num_bits(const char* name, std::int64_t length, std::optional<std::int64_t> num_channels) {
  check_positive(name, "length", length);
  const auto bits =
      static_cast<std::int64_t>(std::bit_width(static_cast<std::uint64_t>(length - 1) | 1));  // at least one
  const std::int64_t channels = num_channels.value_or(bits);
  check_bits(name, channels);
  TORCH_CHECK_VALUE(channels >= bits, name, ": length (", length, ") must be at most ", std::int64_t{1} << channels,
                    ", the number of positions that num_channels (", channels, ") can represent");
  return channels;
}

inline torch::Tensor binary_positions(const char* name, std::int64_t length, std::optional<std::int64_t> num_channels) {
  const std::int64_t channels = num_bits(name, length, num_channels);
  const torch::Tensor weights = at::arange(channels, torch::kLong).unsqueeze(1);  // (channels, 1)
  return at::arange(length, torch::kLong).bitwise_right_shift(weights).bitwise_and(1).to(torch::kDouble);
}

}  // namespace detail

/// Positions as binary numbers, one bit in each channel.
///
/// Channel c has bit c of the position t = 0 … length − 1. Channel 0 has the least significant bit.
///
/// @param length The number of positions, at least 1.
/// @param num_channels The number of bits, from 1 to 62. Default: max(1, ⌈log₂ length⌉), the least number that
/// distinguishes all positions.
/// @return (num_channels, length) of 0 and 1, float64 on the CPU.
/// @throws c10::ValueError if length is below 1, or if num_channels is below 1, above 62, or too few to distinguish the
/// positions.
///
/// Source: F. Fleuret, Deep Learning course, handout 13.2.
///
/// @code
/// torch::Tensor bits = attend::binary_positions(4);  // [[0, 1, 0, 1], [0, 0, 1, 1]]
/// @endcode
inline torch::Tensor binary_positions(std::int64_t length, std::optional<std::int64_t> num_channels = std::nullopt) {
  return detail::binary_positions("attend::binary_positions", length, num_channels);
}

/// Options of BinaryPositions.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::BinaryPositionsOptions().combine(attend::Combine::kConcatenate)
/// @endcode
struct BinaryPositionsOptions {
  /// The number of bits, from 1 to 62. Default: the least number that distinguishes the positions of x. It depends on
  /// the length of x.
  TORCH_ARG(std::optional<std::int64_t>, num_channels) = std::nullopt;
  /// How the channels are combined with those of x. Default: kConcatenate.
  TORCH_ARG(Combine, combine) = Combine::kConcatenate;
  /// Whether x is (N, L, C), a sequence as in transformers. Otherwise it is (N, C, L), a signal as in convolutions.
  /// Default: false.
  TORCH_ARG(bool, batch_first) = false;
};

/// Appends the channels of binary_positions() to a signal, or adds them to its channels. The layer has no parameters.
///
/// Shapes, with L ≥ 1; N may be 0. With batch_first the last two dimensions are exchanged.
/// - kConcatenate: x (N, C, L) → (N, C + num_channels, L)
/// - kAdd: x (N, C, L) → (N, C, L). num_channels must be C or 1. A single channel is added to every channel of x.
///
/// The output has the dtype of x.
///
/// @throws c10::ValueError if x is not 3-d, if it has more positions than num_channels bits can represent, or with kAdd
/// if the numbers of channels do not fit.
/// @throws c10::TypeError if x is not floating-point.
///
/// @code
/// attend::BinaryPositions positions(attend::BinaryPositionsOptions().num_channels(7));
/// torch::Tensor y = positions(x);  // (N, 1, 100) → (N, 8, 100)
/// @endcode
class BinaryPositionsImpl : public torch::nn::Cloneable<BinaryPositionsImpl> {
 public:
  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit BinaryPositionsImpl(const BinaryPositionsOptions& options_ = {}) : options(options_) { reset(); }

  /// Checks the options. The constructor calls it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override { detail::check_bits("attend::BinaryPositions", options.num_channels().value_or(1)); }

  /// Loads nothing, because the layer has no parameters.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive has parameters, because then another layer has saved it.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::BinaryPositions", *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::BinaryPositions(";
    if (options.num_channels()) stream << "num_channels=" << *options.num_channels() << ", ";
    stream << "combine=" << options.combine() << (options.batch_first() ? ", batch_first=true)" : ")");
  }

  /// Combines a signal with its positions, as the option combine says.
  ///
  /// @param x (N, C, L), or (N, L, C) with batch_first.
  /// @return (N, C + num_channels, L), or (N, C, L) with kAdd. With batch_first the last two dimensions are exchanged.
  torch::Tensor forward(const torch::Tensor& x) {
    const char* const kName = "attend::BinaryPositions";
    const std::int64_t length = detail::length_of_signal(kName, x, options.batch_first());
    detail::num_bits(kName, length, options.num_channels());
    const torch::Tensor bits = table_.get(length, x.options(), [&](std::int64_t size) {
      return detail::binary_positions(kName, size, options.num_channels());
    });
    return detail::joined(kName, x, bits, options.combine(), options.batch_first());
  }

  /// The options that the layer was made with.
  BinaryPositionsOptions options;

 private:
  detail::TableCache table_;
};

TORCH_MODULE(BinaryPositions);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
