// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <optional>
#include <ostream>
#include <variant>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

// Scalings of the frequencies θᵢ = theta^(−2i/R) let a model rotate sequences that are longer than those of its
// training. Each struct has the parameters that Hugging Face's configuration has under `rope_scaling` or
// `rope_parameters`. RotaryEmbedding throws c10::ValueError if they are out of range.

/// Divides all frequencies by a factor: `"rope_type": "linear"`. Source: Chen et al., "Position interpolation", 2023.
struct LinearRotaryScaling {
  /// Sets the options that have no default.
  ///
  /// @param factor As the option factor.
  explicit LinearRotaryScaling(double factor) : factor_(factor) {}
  /// How many times longer the sequences are than those of the training, positive. No default.
  TORCH_ARG(double, factor);
};

/// Raises theta for sequences that are longer than those of the training: `"rope_type": "dynamic"`.
///
/// For a sequence of length L > max_length, theta becomes theta · (factor · L / max_length − factor + 1)^(R/(R − 2)).
/// L is the largest position of the call plus 1. Shorter sequences are not scaled.
///
/// Differs from Hugging Face, whose layer also remembers the longest sequence of earlier calls.
///
/// Source: "NTK-aware scaled RoPE", 2023.
struct DynamicRotaryScaling {
  /// Sets the options that have no default.
  ///
  /// @param factor As the option factor.
  /// @param max_length As the option max_length.
  DynamicRotaryScaling(double factor, std::int64_t max_length) : factor_(factor), max_length_(max_length) {}
  /// The factor in the formula, at least 1. No default.
  TORCH_ARG(double, factor);
  /// The longest sequence of the training, in tokens, positive: `max_position_embeddings`. No default.
  TORCH_ARG(std::int64_t, max_length);
};

/// YaRN: divides low frequencies by a factor, keeps high frequencies, and interpolates for those between:
/// `"rope_type": "yarn"`. It also multiplies cos and sin by attention_factor.
///
/// Source: Peng et al., "YaRN", 2023.
struct YarnRotaryScaling {
  /// Sets the options that have no default.
  ///
  /// @param factor As the option factor.
  /// @param original_max_length As the option original_max_length.
  YarnRotaryScaling(double factor, std::int64_t original_max_length)
      : factor_(factor), original_max_length_(original_max_length) {}
  /// How many times longer the sequences are than those of the training, positive. No default.
  TORCH_ARG(double, factor);
  /// The longest sequence of the training, in tokens, positive: `original_max_position_embeddings`. No default.
  TORCH_ARG(std::int64_t, original_max_length);
  /// Frequencies that turn at least this many times in original_max_length are kept. At least beta_slow. Default: 32.
  TORCH_ARG(double, beta_fast) = 32.0;
  /// Frequencies that turn at most this many times in original_max_length are divided. Positive. Default: 1.
  TORCH_ARG(double, beta_slow) = 1.0;
  /// The factor of cos and sin, positive. Default: m(mscale) / m(mscale_all_dim) if both are given and not 0, otherwise
  /// m(1), with m(s) = 0.1 · s · ln(factor) + 1, and 1 for a factor of at most 1.
  TORCH_ARG(std::optional<double>, attention_factor);
  /// See attention_factor. Default: none.
  TORCH_ARG(std::optional<double>, mscale);
  /// See attention_factor. Default: none.
  TORCH_ARG(std::optional<double>, mscale_all_dim);
  /// Whether the bounds of the range of interpolated frequencies are rounded outwards to whole numbers. Default: true.
  TORCH_ARG(bool, truncate) = true;
};

/// The scaling of Llama 3.1: divides low frequencies by a factor, keeps high frequencies, and interpolates for those
/// between: `"rope_type": "llama3"`. Source: Llama Team, "The Llama 3 herd of models", 2024.
struct Llama3RotaryScaling {
  /// Sets the options that have no default.
  ///
  /// @param factor As the option factor.
  explicit Llama3RotaryScaling(double factor) : factor_(factor) {}
  /// How many times longer the sequences are than those of the training, positive. No default.
  TORCH_ARG(double, factor);
  /// Frequencies with a wavelength above original_max_length / low_freq_factor are divided. Positive. Default: 1.
  TORCH_ARG(double, low_freq_factor) = 1.0;
  /// Frequencies with a wavelength below original_max_length / high_freq_factor are kept. Above low_freq_factor.
  /// Default: 4.
  TORCH_ARG(double, high_freq_factor) = 4.0;
  /// The longest sequence of the training, in tokens, positive: `original_max_position_embeddings`. Default: 8192.
  TORCH_ARG(std::int64_t, original_max_length) = 8192;
};

/// One of the scalings, or none.
using RotaryScaling =
    std::variant<std::monostate, LinearRotaryScaling, DynamicRotaryScaling, YarnRotaryScaling, Llama3RotaryScaling>;

namespace detail {

/// The frequencies of a rotary embedding, and the factor of cos and sin.
class RotaryFrequencies {
 public:
  /// @param dim The numbers that are rotated, even.
  RotaryFrequencies(double theta, std::int64_t dim) : theta_(theta), dim_(dim) { set(theta); }

  /// @param length The length of the sequence; only DynamicRotaryScaling reads it.
  void scale(const RotaryScaling& scaling, std::int64_t length) {
    std::visit([&](const auto& each) { scale(each, length); }, scaling);
  }

  const std::vector<double>& values() const { return values_; }
  double factor() const { return factor_; }

 private:
  void set(double theta) {
    values_.clear();
    for (std::int64_t i = 0; i < dim_; i += 2)
      values_.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(dim_)));
  }

  void scale(const std::monostate&, std::int64_t) {}

  void scale(const LinearRotaryScaling& scaling, std::int64_t) {
    for (double& value : values_) value /= scaling.factor();
  }

  void scale(const DynamicRotaryScaling& scaling, std::int64_t length) {
    if (length <= scaling.max_length()) return;
    const auto dim = static_cast<double>(dim_);
    const double ratio = static_cast<double>(length) / static_cast<double>(scaling.max_length());
    set(theta_ * std::pow(scaling.factor() * ratio - (scaling.factor() - 1), dim / (dim - 2)));
  }

  void scale(const YarnRotaryScaling& scaling, std::int64_t) {
    const auto dim = static_cast<double>(dim_);
    const auto index_of = [&](double turns) {  // the frequency that turns so many times in original_max_length
      const double wavelength = static_cast<double>(scaling.original_max_length()) / turns;
      return dim * std::log(wavelength / (2 * std::numbers::pi)) / (2 * std::log(theta_));
    };
    double low = index_of(scaling.beta_fast()), high = index_of(scaling.beta_slow());
    if (scaling.truncate()) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1);
    if (low == high) high += 0.001;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const double divided = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      values_[i] = values_[i] / scaling.factor() * divided + values_[i] * (1 - divided);
    }
    const auto m = [&](double s) { return scaling.factor() <= 1 ? 1.0 : 0.1 * s * std::log(scaling.factor()) + 1.0; };
    const bool has_scales = scaling.mscale().value_or(0.0) != 0.0 && scaling.mscale_all_dim().value_or(0.0) != 0.0;
    factor_ =
        scaling.attention_factor().value_or(has_scales ? m(*scaling.mscale()) / m(*scaling.mscale_all_dim()) : m(1.0));
  }

  void scale(const Llama3RotaryScaling& scaling, std::int64_t) {
    const auto length = static_cast<double>(scaling.original_max_length());
    for (double& value : values_) {
      const double turns = length * value / (2 * std::numbers::pi);
      const double kept =
          (turns - scaling.low_freq_factor()) / (scaling.high_freq_factor() - scaling.low_freq_factor());
      if (turns < scaling.low_freq_factor())
        value /= scaling.factor();
      else if (turns <= scaling.high_freq_factor())
        value = (1 - kept) * value / scaling.factor() + kept * value;
    }
  }

  double theta_;
  std::int64_t dim_;
  std::vector<double> values_;
  double factor_ = 1.0;
};

/// Checks the parameters and throws c10::ValueError.
class CheckRotaryScaling {
 public:
  CheckRotaryScaling(const char* name, std::int64_t dim) : name_(name), dim_(dim) {}

  void operator()(const std::monostate&) const {}
  void operator()(const LinearRotaryScaling& scaling) const {
    positive("LinearRotaryScaling::factor", scaling.factor());
  }
  void operator()(const DynamicRotaryScaling& scaling) const {
    TORCH_CHECK_VALUE(scaling.factor() >= 1.0, name_, ": DynamicRotaryScaling::factor (", scaling.factor(),
                      ") must be at least 1");
    positive("DynamicRotaryScaling::max_length", static_cast<double>(scaling.max_length()));
    TORCH_CHECK_VALUE(dim_ > 2, name_, ": DynamicRotaryScaling needs a rotary_dim above 2 for each axis, got ", dim_);
  }
  void operator()(const YarnRotaryScaling& scaling) const {
    positive("YarnRotaryScaling::factor", scaling.factor());
    positive("YarnRotaryScaling::original_max_length", static_cast<double>(scaling.original_max_length()));
    positive("YarnRotaryScaling::beta_slow", scaling.beta_slow());
    TORCH_CHECK_VALUE(scaling.beta_fast() >= scaling.beta_slow(), name_, ": YarnRotaryScaling::beta_fast (",
                      scaling.beta_fast(), ") must be at least beta_slow (", scaling.beta_slow(), ")");
    if (scaling.attention_factor()) positive("YarnRotaryScaling::attention_factor", *scaling.attention_factor());
  }
  void operator()(const Llama3RotaryScaling& scaling) const {
    positive("Llama3RotaryScaling::factor", scaling.factor());
    positive("Llama3RotaryScaling::original_max_length", static_cast<double>(scaling.original_max_length()));
    positive("Llama3RotaryScaling::low_freq_factor", scaling.low_freq_factor());
    TORCH_CHECK_VALUE(scaling.high_freq_factor() > scaling.low_freq_factor(), name_,
                      ": Llama3RotaryScaling::high_freq_factor (", scaling.high_freq_factor(),
                      ") must be above low_freq_factor (", scaling.low_freq_factor(), ")");
  }

 private:
  void positive(const char* what, double value) const {
    TORCH_CHECK_VALUE(value > 0.0 && std::isfinite(value), name_, ": ", what, " (", value,
                      ") must be positive and finite");
  }

  const char* name_;
  std::int64_t dim_;
};

/// Writes ", scaling=kind(factor=f)", or nothing without a scaling.
inline void print_rotary_scaling(std::ostream& stream, const RotaryScaling& scaling) {
  constexpr const char* kNames[] = {"", "linear", "dynamic", "yarn", "llama3"};
  std::visit(
      [&](const auto& each) {
        if constexpr (requires { each.factor(); })
          stream << ", scaling=" << kNames[scaling.index()] << "(factor=" << each.factor() << ")";
      },
      scaling);
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
