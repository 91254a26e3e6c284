// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/relative_grid_bias.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/flex_attention.h>
#include <attend/layers/position_bias.h>
#include <attend/layers/window_partition.h>
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

/// Options of RelativePositionBias.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::RelativePositionBiasOptions(3, {7, 7})
/// @endcode
struct RelativePositionBiasOptions {
  /// Sets the two options, which have no default.
  ///
  /// @param num_heads As the option num_heads.
  /// @param window_size As the option window_size.
  RelativePositionBiasOptions(std::int64_t num_heads, std::vector<std::int64_t> window_size)
      : num_heads_(num_heads), window_size_(std::move(window_size)) {}

  /// The number of query heads H, at least 1. No default.
  TORCH_ARG(std::int64_t, num_heads);
  /// The sizes of the window, 1 to 3 numbers, each at least 1. No default.
  TORCH_ARG(std::vector<std::int64_t>, window_size);
};

/// The relative position bias of the Swin Transformer, in 1 to 3 dimensions: a learned number for each head and each
/// offset from a key to a query of a window.
///
/// The formula is that of RelativeGridBias. On the CPU, the kernel of attention computes it: no (L, L) tensor is
/// allocated.
///
/// Parameter: `relative_position_bias_table` (Π (2Mᵈ − 1), H) for windows of M¹ × … × Mⁿ. The initial values are normal
/// with mean 0 and standard deviation 0.02.
///
/// Differs from Hugging Face's SwinSelfAttention: there is no buffer relative_position_index.
///
/// Source: Liu et al., "Swin Transformer", 2021; 3 dimensions: "Video Swin Transformer", 2022.
///
/// @code
/// attend::RelativePositionBias bias(3, std::vector<std::int64_t>{7, 7});
/// attend::ShiftedWindowMask mask({56, 56}, {7, 7}, {3, 3});
/// torch::Tensor y = attend::flex_attention(q, k, v, bias->score_mod(), mask);  // q: (N · 64, 3, 49, D)
/// @endcode
class RelativePositionBiasImpl : public torch::nn::Cloneable<RelativePositionBiasImpl>, public PositionBias {
 public:
  /// The bias for a number of heads and a window.
  ///
  /// @param num_heads As the option num_heads.
  /// @param window_size As the option window_size.
  /// @throws c10::ValueError for options out of range.
  RelativePositionBiasImpl(std::int64_t num_heads, std::vector<std::int64_t> window_size)
      : RelativePositionBiasImpl(RelativePositionBiasOptions(num_heads, std::move(window_size))) {}

  /// The bias with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit RelativePositionBiasImpl(const RelativePositionBiasOptions& options_) : options(options_) { reset(); }

  /// Creates a new table according to the options, with initial values. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    const char* const kName = "attend::RelativePositionBias";
    detail::check_positive(kName, "num_heads", options.num_heads());
    const torch::IntArrayRef window = options.window_size();
    TORCH_CHECK_VALUE(!window.empty() && window.size() <= 3, kName, ": window_size must have 1 to 3 numbers, got ",
                      window);
    std::int64_t offsets = 1;
    for (const std::int64_t size : window) {
      detail::check_positive(kName, "window_size", size);
      offsets *= 2 * size - 1;
    }
    relative_position_bias_table =
        register_parameter("relative_position_bias_table", torch::empty({offsets, options.num_heads()}));
    reset_parameters();
  }

  /// Draws new initial values of the table.
  void reset_parameters() { torch::nn::init::normal_(relative_position_bias_table, 0.0, 0.02); }

  /// Loads the table, and checks that it has the shape of this module.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The module is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The module is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::RelativePositionBias", *this, archive,
                          {{"relative_position_bias_table", {"window_size", "num_heads"}}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::RelativePositionBias(" << options.num_heads()
           << ", window_size=" << torch::IntArrayRef(options.window_size()) << ")";
  }

  std::int64_t num_heads() const override { return options.num_heads(); }

  /// The bias as a score_mod for flex_attention(). It can be combined with another score_mod or with a mask.
  RelativeGridBias score_mod() const { return RelativeGridBias(relative_position_bias_table, options.window_size()); }

  /// As PositionBias::attention(). L and S must be the number of positions of the window.
  ///
  /// @throws c10::Error of the same kinds as flex_attention().
  torch::Tensor attention(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                          const AttentionOptions& attention_options = {}) override {
    return flex_attention(query, key, value, score_mod(), EveryKey{}, attention_options);
  }

  Explanation explain(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                      const AttentionOptions& attention_options = {}) override {
    return explain_flex(query, key, value, score_mod(), EveryKey{}, attention_options);
  }

  /// The bias as a tensor, to look at, or to compute weights with. Differentiable.
  ///
  /// @param query_length The number of positions of the window.
  /// @param key_length The same number.
  /// @return (H, L, S)
  /// @throws c10::ValueError for other lengths.
  torch::Tensor dense(std::int64_t query_length, std::int64_t key_length) override {
    const std::int64_t positions = detail::product_of(options.window_size());
    TORCH_CHECK_VALUE(
        query_length == positions && key_length == positions, "attend::RelativePositionBias: window_size (", positions,
        " positions) must fit the number of queries and keys, got L = ", query_length, " and S = ", key_length);
    const torch::TensorOptions indices = torch::dtype(torch::kLong).device(relative_position_bias_table.device());
    torch::Tensor rest = torch::arange(positions, indices), entry = torch::zeros({positions, positions}, indices);
    std::int64_t step = 1;
    for (auto size = options.window_size().rbegin(); size != options.window_size().rend(); ++size) {
      const torch::Tensor coordinate = rest.remainder(*size);
      entry += (coordinate.unsqueeze(1) - coordinate + (*size - 1)) * step;
      rest = rest.div(*size, "floor");
      step *= 2 * *size - 1;
    }
    return relative_position_bias_table.index_select(0, entry.flatten()).t().unflatten(1, {positions, positions});
  }

  /// The options that the module was made with.
  RelativePositionBiasOptions options;

  /// The learned parameter: (Π (2Mᵈ − 1), H).
  torch::Tensor relative_position_bias_table;
};

TORCH_MODULE(RelativePositionBias);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
