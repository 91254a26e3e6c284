// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The type of kInverseSqrt.
struct InverseSqrt {};

/// The scale 1/√D, D being the width of one head: the usual choice, after Vaswani et al. 2017.
inline constexpr InverseSqrt kInverseSqrt;

/// The factor before q·k: a number, or kInverseSqrt.
class Scale {
 public:
  /// @param factor The scale as a number.
  Scale(double factor) : factor_(factor) {}
  /// The scale 1/√D.
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

/// The keys that a query sees, counted from its own position; both ends inclusive, −1 = unlimited.
///
/// Query i stands at key position p = i + S − L and sees the keys p − left … p + right.
struct Window {
  /// Keys before the query's position. Default: −1, unlimited.
  std::int64_t left = -1;
  /// Keys after the query's position. Default: −1, unlimited.
  std::int64_t right = -1;

  friend std::ostream& operator<<(std::ostream& stream, const Window& window) {
    return stream << "Window{" << window.left << ", " << window.right << "}";
  }
};

/// What a call of attention() may ask for beyond softmax(scale · q·kᵀ) v. All of it goes together.
///
/// A score is made in this order: scale · q·k, softcap, ALiBi, a float attn_mask; then whatever is_causal, window, a
/// bool attn_mask or the end of a packed sequence rules out counts as −∞; then softmax, then dropout.
///
/// Example:
/// @code
/// attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).window({256, 0}).scale(1.0));
/// @endcode
struct AttentionOptions {
  /// Query i, which stands at key position i + S − L, attends to the keys up to there. Default: false.
  ///
  /// Differs from torch for L ≠ S, where SDPA counts from the first key: a query that continues a longer row of keys
  /// sees all that came before it.
  TORCH_ARG(bool, is_causal) = false;

  /// Only the keys near the query: `.window({left, right})`. With is_causal nothing on the right. Default: unlimited.
  ///
  /// Source: Beltagy et al., "Longformer", 2020; the convention is FlashAttention's.
  TORCH_ARG(Window, window) = {};

  /// Bool (true = attend), or float64, float32, bfloat16 or float16 (added to the scaled scores; may need a gradient,
  /// which has the mask's dtype). A float mask of another dtype than the query's is read in float32, in float64 for a
  /// float64 query; a finite number of float64 stays finite. Differs from torch, which takes float32 and the query's
  /// dtype only.
  /// 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S); any size may be 1 and is then broadcast. Default: none.
  TORCH_ARG(at::Tensor, attn_mask);

  /// The factor before q·k. Default: kInverseSqrt.
  TORCH_ARG(Scale, scale) = kInverseSqrt;

  /// Keeps scores within ±softcap: softcap · tanh(score / softcap). Default: 0, which is none.
  ///
  /// Source: Gemma Team, "Gemma 2", 2024.
  TORCH_ARG(double, softcap) = 0.0;

  /// Attention with linear biases: −slope · |p − j| is added for the key j and the query's position p = i + S − L.
  /// One slope for each query head, (H) or (N, H), float32 or the query's dtype. Default: none.
  ///
  /// Source: Press et al., "Train short, test long", 2022.
  TORCH_ARG(at::Tensor, alibi_slopes);

  /// The probability with which a weight is set to 0, the others being multiplied by 1 / (1 − dropout). It is applied
  /// whenever it is not 0: pass 0 when evaluating, as a layer does by itself. Default: 0.
  ///
  /// Which weights are dropped is a function of one random number drawn from the device's generator, and of the
  /// weight's place: the same on every backend. Differs from torch, whose kernels drop other weights for the same seed.
  TORCH_ARG(double, dropout) = 0.0;

  /// Packed batches: sequences of any length laid one after the other in tensors of N = 1; a query attends within its
  /// own sequence only. Sequence b has the queries query_offsets[b] … query_offsets[b + 1] − 1, and its keys likewise
  /// by key_offsets; is_causal, window and ALiBi count positions within it. Both or none: int32, 1-d, one longer than
  /// there are sequences, from 0 to L and from 0 to S, never decreasing. Default: none.
  ///
  /// Known elsewhere as cu_seqlens. Their values are checked on the CPU only: reading them would stall a GPU.
  TORCH_ARG(at::Tensor, query_offsets);
  /// The same for the keys: see query_offsets().
  TORCH_ARG(at::Tensor, key_offsets);

  /// Who computes it. A backend asked for by name runs or throws. Default: kAuto, or what a BackendGuard says.
  TORCH_ARG(Backend, backend) = Backend::kAuto;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
