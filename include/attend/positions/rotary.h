// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/rotary_tables.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/positions/detail/table_cache.h>
#include <attend/positions/rotary_scaling.h>
#include <attend/positions/rotate.h>
#include <attend/version.h>

#include <ATen/OpMathType.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <ostream>
#include <variant>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of RotaryEmbedding.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::RotaryEmbeddingOptions(128).theta(500000).scaling(attend::Llama3RotaryScaling(8))
/// @endcode
struct RotaryEmbeddingOptions {
  /// Sets the option that has no default.
  ///
  /// @param head_dim As the option head_dim.
  RotaryEmbeddingOptions(std::int64_t head_dim) : head_dim_(head_dim) {}

  /// Width D of one head, at least 2. No default.
  TORCH_ARG(std::int64_t, head_dim);
  /// The base of the frequencies, above 1. Default: 10000.
  TORCH_ARG(double, theta) = 10000.0;
  /// The number R of channels of a head that are rotated: the first R. It is a multiple of 2 · axes, and at most
  /// head_dim. Default: head_dim.
  TORCH_ARG(std::optional<std::int64_t>, rotary_dim);
  /// Which two numbers form a pair. Default: kHalfSplit.
  TORCH_ARG(RotaryLayout, layout) = RotaryLayout::kHalfSplit;
  /// Changes the frequencies for sequences longer than those of the training: LinearRotaryScaling,
  /// DynamicRotaryScaling, YarnRotaryScaling or Llama3RotaryScaling. Default: none.
  TORCH_ARG(RotaryScaling, scaling);
  /// The number of axes of a position: 1 for a sequence, 2 for rows and columns, 3 for depth, rows and columns. Each
  /// axis has an equal share of the pairs, in this order. Default: 1.
  TORCH_ARG(std::int64_t, axes) = 1;
};

/// Rotary position embedding: rotates the queries and keys of attention by angles that grow with the position. A score
/// then depends on the positions only through the distance of query and key.
///
/// At position p, pair i of a head is rotated by the angle p · θᵢ with θᵢ = theta^(−2i/R) for i = 0 … R/2 − 1; see
/// rotate(). With several axes, each axis has R/axes numbers: θᵢ = theta^(−2i·axes/R), and p is the position on the
/// axis.
///
/// The layer has no parameters and no buffers, so a state dict has no entry for it.
///
/// Shapes: x (N, H, L, D) → (N, H, L, D). N may be 0.
///
/// Positions: by default 0 … L − 1, plus an offset. Otherwise a tensor of any integer or floating dtype, (L) or (N, L).
/// With several axes it is (L, axes) or (N, L, axes), and there is no default; see grid_positions(). In a packed batch
/// pass packed_positions().
///
/// @throws c10::ValueError for options out of range, and if sizes or devices of x and the positions do not fit.
/// @throws c10::TypeError if x is not floating-point or the positions are bool or complex.
///
/// Differs from Hugging Face's layers: angles are computed in float64. cos and sin are rounded once, to float32; for a
/// float64 x they stay in float64. Hugging Face computes angles in float32 for every dtype. At position p the two
/// tables differ by up to p · 6e-8.
///
/// Source: Su et al., "RoFormer", 2021. Several axes: Wang et al., "Qwen2-VL", 2024.
///
/// @code
/// attend::RotaryEmbedding rotary(attend::RotaryEmbeddingOptions(64));
/// torch::Tensor y = attend::attention(rotary(q), rotary(k), v, attend::AttentionOptions().is_causal(true));
/// @endcode
class RotaryEmbeddingImpl : public torch::nn::Cloneable<RotaryEmbeddingImpl> {
 public:
  /// The layer with default values of all other options.
  ///
  /// @param head_dim As the option head_dim.
  /// @throws c10::ValueError for options out of range.
  explicit RotaryEmbeddingImpl(std::int64_t head_dim) : RotaryEmbeddingImpl(RotaryEmbeddingOptions(head_dim)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit RotaryEmbeddingImpl(const RotaryEmbeddingOptions& options_) : options(options_) { reset(); }

  /// Checks the options. The constructor calls it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_positive(kName, "head_dim", options.head_dim());
    TORCH_CHECK_VALUE(options.axes() >= 1 && options.axes() <= 3, kName, ": axes (", options.axes(),
                      ") must be from 1 to 3");
    TORCH_CHECK_VALUE(
        rotary_dim() >= 2 && rotary_dim() <= options.head_dim() && rotary_dim() % (2 * options.axes()) == 0, kName,
        ": rotary_dim (", rotary_dim(), ") must be a multiple of 2 · axes (", 2 * options.axes(),
        ") and at most head_dim (", options.head_dim(), ")");
    TORCH_CHECK_VALUE(options.theta() > 1.0 && std::isfinite(options.theta()), kName, ": theta (", options.theta(),
                      ") must be above 1 and finite");
    std::visit(detail::CheckRotaryScaling(kName, dim_of_axis()), options.scaling());
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
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::RotaryEmbedding(" << options.head_dim() << ", theta=" << options.theta()
           << ", rotary_dim=" << rotary_dim() << ", layout=" << options.layout();
    detail::print_rotary_scaling(stream, options.scaling());
    if (options.axes() > 1) stream << ", axes=" << options.axes();
    stream << ")";
  }

  /// Rotates queries or keys.
  ///
  /// @param x (N, H, L, D)
  /// @param positions (L) or (N, L), with several axes (L, axes) or (N, L, axes). Default: offset … offset + L − 1.
  /// @param offset The first position, at least 0. It must be 0 if `positions` is given. Default: 0.
  /// @return (N, H, L, D), with the dtype of x.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& positions = {}, std::int64_t offset = 0) {
    const RotaryTables tables = cos_sin(x, positions, offset);
    return rotate(x, tables.cos, tables.sin, options.layout());
  }

  /// The tables with which forward() rotates x. Use them with AttentionOptions::rotary(), or with rotate() if queries
  /// and keys have the same positions.
  ///
  /// @param x As in forward(). Only its sizes, dtype and device are used.
  /// @param positions As in forward().
  /// @param offset As in forward().
  /// @return (L, R/2), or (N, L, R/2) for positions of each batch entry. The dtype is float32, or float64 for a float64
  /// x.
  RotaryTables cos_sin(const torch::Tensor& x, const torch::Tensor& positions = {}, std::int64_t offset = 0) {
    check(x, positions, offset);
    const torch::TensorOptions table_options = x.options().dtype(at::toOpMathType(x.scalar_type()));
    const std::int64_t end = offset + x.size(2);
    torch::Tensor both;  // (L, R) or (N, L, R): cos, then sin
    if (positions.defined()) {
      const std::int64_t length = is_dynamic() && positions.numel() > 0 ? positions.max().item<std::int64_t>() + 1 : 0;
      both = tables_at(positions, length).to(table_options.dtype());
    } else if (depends_on(end) || end > kLongestKept) {
      both = tables_at(at::arange(offset, end, torch::kLong), end).to(table_options);
    } else {
      const torch::Tensor kept = kept_.get(end, table_options, [&](std::int64_t size) {
        return tables_at(at::arange(size, torch::kLong), end).unsqueeze(0);
      });  // (1, end, R)
      both = kept[0].narrow(0, offset, x.size(2));
    }
    const std::int64_t pairs = rotary_dim() / 2;
    return {both.narrow(-1, 0, pairs), both.narrow(-1, pairs, pairs), options.layout()};
  }

  /// The options that the layer was made with.
  RotaryEmbeddingOptions options;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(torch::Tensor())}, {2, torch::nn::AnyValue(std::int64_t{0})})

 private:
  static constexpr const char* kName = "attend::RotaryEmbedding";
  static constexpr std::int64_t kLongestKept = 1 << 17;  // tables of more positions are computed in each call

  std::int64_t rotary_dim() const { return options.rotary_dim().value_or(options.head_dim()); }
  std::int64_t dim_of_axis() const { return rotary_dim() / options.axes(); }
  bool is_dynamic() const { return std::holds_alternative<DynamicRotaryScaling>(options.scaling()); }
  /// Whether the frequencies depend on the length of the sequence.
  bool depends_on(std::int64_t length) const {
    return is_dynamic() && length > std::get<DynamicRotaryScaling>(options.scaling()).max_length();
  }

  void check(const torch::Tensor& x, const torch::Tensor& positions, std::int64_t offset) const {
    detail::check_tensor(kName, "x", x);
    TORCH_CHECK_TYPE(x.is_floating_point(), kName, ": x (", x.scalar_type(), ") must have a floating dtype");
    TORCH_CHECK_VALUE(x.dim() == 4 && x.size(3) == options.head_dim(), kName, ": x must be 4-d (N, H, L, ",
                      options.head_dim(), "), got ", x.dim(), "-d ", x.sizes());
    TORCH_CHECK_VALUE(offset >= 0, kName, ": offset (", offset, ") must be at least 0");
    const bool has_axes = options.axes() > 1;
    if (!positions.defined()) {
      TORCH_CHECK_VALUE(!has_axes, kName, ": positions must be given for ", options.axes(),
                        " axes, for example grid_positions({height, width})");
      return;
    }
    TORCH_CHECK_VALUE(offset == 0, kName, ": offset (", offset, ") must be 0 if positions are given");
    detail::check_dense(kName, "positions", positions);
    TORCH_CHECK_TYPE(positions.scalar_type() != torch::kBool && !positions.is_complex(), kName, ": positions (",
                     positions.scalar_type(), ") must have an integer or floating dtype");
    TORCH_CHECK_VALUE(positions.device() == x.device(), kName, ": positions (", positions.device(),
                      ") must be on the device of x (", x.device(), ")");
    torch::IntArrayRef sizes = positions.sizes();
    TORCH_CHECK_VALUE(!has_axes || (!sizes.empty() && sizes.back() == options.axes()), kName, ": positions ", sizes,
                      " must be (L, ", options.axes(), ") or (N, L, ", options.axes(), ")");
    if (has_axes) sizes = sizes.slice(0, sizes.size() - 1);
    const bool fits = (sizes.size() == 1 && sizes[0] == x.size(2)) ||
                      (sizes.size() == 2 && sizes[1] == x.size(2) && (sizes[0] == x.size(0) || sizes[0] == 1));
    TORCH_CHECK_VALUE(fits, kName, ": positions ", positions.sizes(), " must have one position for each of x ",
                      x.sizes(), ": L = ", x.size(2), " or (N, L) = (", x.size(0), ", ", x.size(2), ")");
  }

  /// cos and sin side by side: positions (…) to (…, R), or (…, axes) to (…, R), in float64 on the device of positions.
  torch::Tensor tables_at(const torch::Tensor& positions, std::int64_t length) const {
    detail::RotaryFrequencies frequencies(options.theta(), dim_of_axis());
    frequencies.scale(options.scaling(), length);
    torch::Tensor places = positions.to(torch::kDouble).unsqueeze(-1);  // (…, 1) or (…, axes, 1)
    const torch::Tensor of_axis = at::tensor(frequencies.values(), torch::kDouble).to(positions.device());
    torch::Tensor angles = places * of_axis;  // (…, R/2), or (…, axes, R/2/axes)
    if (options.axes() > 1) angles = angles.flatten(-2);
    const torch::Tensor both = at::cat({at::cos(angles), at::sin(angles)}, -1);
    return frequencies.factor() == 1.0 ? both : both * frequencies.factor();
  }

  detail::TableCache kept_;
};

TORCH_MODULE(RotaryEmbedding);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
