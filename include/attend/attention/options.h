// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace attend {

/// The type of kInverseSqrt.
struct InverseSqrt {};

/// The scale 1/√D, D being the width of one head: the usual choice, after Vaswani et al. 2017.
inline constexpr InverseSqrt kInverseSqrt;

/// The factor before q·k: a number, or kInverseSqrt.
class Scale {
 public:
  Scale(double factor) : factor_(factor) {}
  Scale(InverseSqrt) : is_inverse_sqrt_(true) {}

  /// The number itself, for heads of this width.
  double factor(std::int64_t head_width) const {
    return is_inverse_sqrt_ ? 1.0 / std::sqrt(static_cast<double>(head_width)) : factor_;
  }

  friend std::ostream& operator<<(std::ostream& stream, const Scale& scale) {
    return scale.is_inverse_sqrt_ ? stream << "kInverseSqrt" : stream << scale.factor_;
  }

 private:
  double factor_ = 0.0;
  bool is_inverse_sqrt_ = false;
};

/// What a call of attention() may ask for beyond softmax(scale · q·kᵀ) v.
///
/// Example:
///   attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).scale(1.0));
struct AttentionOptions {
  /// Query i, which stands at key position i + S − L, attends to the keys up to there. Default: false.
  ///
  /// Differs from torch for L ≠ S, where SDPA counts from the first key: a query that continues a longer row of keys
  /// sees all that came before it.
  TORCH_ARG(bool, is_causal) = false;

  /// Bool (true = attend), or of the query's dtype (added to the scaled scores; may need a gradient).
  /// 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S); any size may be 1 and is then broadcast. Default: none.
  TORCH_ARG(at::Tensor, attn_mask);

  /// The factor before q·k. Default: kInverseSqrt.
  TORCH_ARG(Scale, scale) = kInverseSqrt;

  /// Who computes it. A backend asked for by name runs or throws. Default: kAuto.
  TORCH_ARG(Backend, backend) = Backend::kAuto;
};

}  // namespace attend
