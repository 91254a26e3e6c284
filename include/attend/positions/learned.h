// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/positions/combine.h>
#include <attend/positions/detail/joined.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The first positions of a learned table.
///
/// @param table (num_channels, max_length)
/// @param length The number of positions, from 1 to max_length.
/// @return (num_channels, length), a view of the table.
/// @throws c10::ValueError if the table is not 2-d, or length is below 1 or above max_length.
///
/// @code
/// torch::Tensor positions = attend::learned_positions(table, 100);
/// @endcode
inline torch::Tensor learned_positions(const torch::Tensor& table, std::int64_t length) {
  const char* const kName = "attend::learned_positions";
  TORCH_CHECK_VALUE(table.defined(), kName,
                    ": table must be a tensor (num_channels, max_length), got an undefined one");
  TORCH_CHECK_VALUE(table.dim() == 2, kName, ": table must be 2-d (num_channels, max_length), got ", table.dim(), "-d ",
                    table.sizes());
  detail::check_positive(kName, "length", length);
  TORCH_CHECK_VALUE(length <= table.size(1), kName, ": length (", length, ") must be at most the max_length (",
                    table.size(1), ") of the table");
  return table.slice(1, 0, length);
}

/// Options of LearnedPositions.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::LearnedPositionsOptions(64, 512).combine(attend::Combine::kConcatenate)
/// @endcode
struct LearnedPositionsOptions {
  /// Sets the two options that have no default.
  ///
  /// @param num_channels As the option num_channels.
  /// @param max_length As the option max_length.
  LearnedPositionsOptions(std::int64_t num_channels, std::int64_t max_length)
      : num_channels_(num_channels), max_length_(max_length) {}

  /// The number of channels, at least 1. No default.
  TORCH_ARG(std::int64_t, num_channels);
  /// The number of positions in the table, at least 1. No default. forward() throws for a longer signal.
  TORCH_ARG(std::int64_t, max_length);
  /// How the channels are combined with those of x. Default: kAdd.
  TORCH_ARG(Combine, combine) = Combine::kAdd;
  /// Whether x is (N, L, C), a sequence as in transformers. Otherwise it is (N, C, L), a signal as in convolutions.
  /// The weight has the same order. Default: false.
  TORCH_ARG(bool, batch_first) = false;
};

/// Adds a learned vector for each position to the channels of a signal, or appends it.
///
/// Parameter: `weight` (num_channels, max_length), or (max_length, num_channels) with batch_first. Its initial values
/// are normal with mean 0 and standard deviation 0.02, as in BERT and GPT-2.
///
/// Shapes, with L from 1 to max_length; N may be 0. With batch_first the last two dimensions are exchanged.
/// - kAdd: x (N, C, L) → (N, C, L). num_channels must be C or 1. A single channel is added to every channel of x.
/// - kConcatenate: x (N, C, L) → (N, C + num_channels, L)
///
/// @throws c10::ValueError for options out of range, and if x is not 3-d, is longer than max_length, is on another
/// device than the weight, or with kAdd if the numbers of channels do not fit.
/// @throws c10::TypeError if x has another dtype than the weight.
///
/// Differs from torch.nn.Embedding: there are no indices. Channels come first, as in signals, unless batch_first is
/// set. With it, the weight is that of the torch.nn.Embedding that BERT and GPT-2 have for positions.
///
/// @code
/// attend::LearnedPositions positions(attend::LearnedPositionsOptions(64, 100));
/// torch::Tensor y = positions(x);  // (N, 64, L) → (N, 64, L)
/// @endcode
class LearnedPositionsImpl : public torch::nn::Cloneable<LearnedPositionsImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param num_channels As the option num_channels.
  /// @param max_length As the option max_length.
  /// @throws c10::ValueError for options out of range.
  LearnedPositionsImpl(std::int64_t num_channels, std::int64_t max_length)
      : LearnedPositionsImpl(LearnedPositionsOptions(num_channels, max_length)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit LearnedPositionsImpl(const LearnedPositionsOptions& options_) : options(options_) { reset(); }

  /// Creates a new weight according to the options, with initial values. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_positive("attend::LearnedPositions", "num_channels", options.num_channels());
    detail::check_positive("attend::LearnedPositions", "max_length", options.max_length());
    const std::int64_t channels = options.num_channels(), length = options.max_length();
    weight = register_parameter(
        "weight", options.batch_first() ? torch::empty({length, channels}) : torch::empty({channels, length}));
    reset_parameters();
  }

  /// Draws new initial values of the weight.
  void reset_parameters() { torch::nn::init::normal_(weight, 0.0, 0.02); }

  /// Loads the weight, and checks that it has the shape of this layer.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::ParameterOptions parameter{"weight", {"num_channels", "max_length"}};
    if (options.batch_first()) std::swap(parameter.sizes[0], parameter.sizes[1]);
    detail::check_archive("attend::LearnedPositions", *this, archive, {parameter});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::LearnedPositions(" << options.num_channels() << ", " << options.max_length()
           << ", combine=" << options.combine() << (options.batch_first() ? ", batch_first=true)" : ")");
  }

  /// Combines a signal with its positions, as the option combine says.
  ///
  /// @param x (N, C, L), or (N, L, C) with batch_first.
  /// @return (N, C, L), or (N, C + num_channels, L) with kConcatenate. With batch_first the last two dimensions are
  /// exchanged.
  torch::Tensor forward(const torch::Tensor& x) {
    const char* const kName = "attend::LearnedPositions";
    const std::int64_t length = detail::length_of_signal(kName, x, options.batch_first());
    detail::check_fits_weights(kName, "x", x, weight);
    TORCH_CHECK_VALUE(length <= options.max_length(), kName, ": x (length ", length,
                      ") must be no longer than max_length (", options.max_length(), ")");
    const torch::Tensor table = options.batch_first() ? weight.t() : weight;  // (num_channels, max_length)
    return detail::joined(kName, x, learned_positions(table, length).to(x.scalar_type()), options.combine(),
                          options.batch_first());
  }

  /// The options that the layer was made with.
  LearnedPositionsOptions options;

  /// The learned parameter: (num_channels, max_length), or (max_length, num_channels) with batch_first.
  torch::Tensor weight;
};

TORCH_MODULE(LearnedPositions);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
