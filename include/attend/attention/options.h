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

  /// The number itself.
  ///
  /// @param head_width The width D of one head.
  /// @return The number, or 1/√D for kInverseSqrt.
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

/// The keys that a query sees, counted from its own position. Both ends are inclusive, and −1 means unlimited.
///
/// Query i is at key position p = i + S − L, and sees the keys p − left … p + right.
struct Window {
  /// Keys before the query's position. Default: −1, unlimited.
  std::int64_t left = -1;
  /// Keys after the query's position. Default: −1, unlimited.
  std::int64_t right = -1;

  friend std::ostream& operator<<(std::ostream& stream, const Window& window) {
    return stream << "Window{" << window.left << ", " << window.right << "}";
  }
};

/// Options of attention(). All of them apply together.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// The order of the steps:
/// 1. scale · q·k
/// 2. softcap
/// 3. alibi_slopes
/// 4. a float attn_mask
/// 5. is_causal, window, a bool attn_mask, and the end of a packed sequence: scores that they rule out count as −∞
/// 6. softmax
/// 7. dropout
///
/// @code
/// attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).window({256, 0}).scale(1.0));
/// @endcode
struct AttentionOptions {
  /// Whether a query attends to no later key. Query i is at key position i + S − L. Default: false.
  ///
  /// Differs from torch for L ≠ S. SDPA counts from the first key; here the last query is at the last key, so a query
  /// that continues a longer row of keys sees all keys before it.
  TORCH_ARG(bool, is_causal) = false;

  /// Limits a query to keys near it: `.window({left, right})`. Together with is_causal, no keys on the right. Default:
  /// unlimited.
  ///
  /// Source: Beltagy et al., "Longformer", 2020; the convention is FlashAttention's.
  TORCH_ARG(Window, window) = {};

  /// A mask, (L, S), (H, L, S) or (N, H, L, S). Any size may be 1 and is then broadcast. Default: none.
  ///
  /// - bool: true = attend.
  /// - float64, float32, bfloat16 or float16: added to the scaled scores. It may require a gradient, which has the
  ///   mask's dtype. A mask of another dtype than the query's is read in float32, and in float64 for a float64 query. A
  ///   finite number of float64 stays finite.
  ///
  /// Differs from torch, which takes only float32 and the query's dtype.
  TORCH_ARG(at::Tensor, attn_mask);

  /// The factor before q·k: a number or kInverseSqrt. Default: kInverseSqrt.
  TORCH_ARG(Scale, scale) = kInverseSqrt;

  /// Keeps scores within ±softcap: softcap · tanh(score / softcap). Default: 0, no softcap.
  ///
  /// Source: Gemma Team, "Gemma 2", 2024.
  TORCH_ARG(double, softcap) = 0.0;

  /// Attention with linear biases: adds −slope · |p − j| for key j and the query's position p = i + S − L. One slope
  /// for each query head, (H) or (N, H), in float32 or the query's dtype. Default: none.
  ///
  /// Source: Press et al., "Train short, test long", 2022.
  TORCH_ARG(at::Tensor, alibi_slopes);

  /// The probability with which a weight is set to 0. The others are multiplied by 1 / (1 − dropout). Default: 0.
  ///
  /// It applies to every call: pass 0 for evaluation. (Layers do so by themselves.)
  ///
  /// One random number is drawn from the device's generator for each call. It and the place of a weight decide whether
  /// the weight is dropped, so every backend drops the same weights. Differs from torch, whose kernels drop other
  /// weights for the same seed.
  TORCH_ARG(double, dropout) = 0.0;

  /// Packed batches: sequences of any lengths one after the other, in tensors with N = 1. A query attends within its
  /// own sequence. Default: none.
  ///
  /// Sequence b has the queries query_offsets[b] … query_offsets[b + 1] − 1 and the keys key_offsets[b] … key_offsets[b
  /// + 1] − 1. Set both options or neither. Each is 1-d, int32, one longer than the number of sequences, never
  /// decreasing, from 0 to L and from 0 to S. is_causal, window and alibi_slopes count positions within a sequence.
  ///
  /// Other libraries call them cu_seqlens. Their values are checked on the CPU only, because reading them would stall a
  /// GPU.
  TORCH_ARG(at::Tensor, query_offsets);
  /// The offsets of the keys; see query_offsets(). Default: none.
  TORCH_ARG(at::Tensor, key_offsets);

  /// Which backend computes. A backend asked for by name runs or throws. Default: kAuto, or that of a BackendGuard.
  TORCH_ARG(Backend, backend) = Backend::kAuto;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
