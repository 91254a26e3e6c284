// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/rotary_tables.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The type of kInverseSqrt.
struct InverseSqrt {};

/// The scale 1/√D, where D is the width of one head (head_dim): the usual choice.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
inline constexpr InverseSqrt kInverseSqrt;

/// The factor by which q·k is multiplied: a number, or kInverseSqrt. Each of the two converts to a Scale: write
/// `.scale(0.5)` or `.scale(attend::kInverseSqrt)`.
class Scale {
 public:
  /// A number as the scale.
  ///
  /// @param factor The number. attention() throws c10::ValueError if it is not finite.
  Scale(double factor) : factor_(factor) {}
  /// The scale 1/√D, by attend::kInverseSqrt.
  Scale(InverseSqrt) : is_inverse_sqrt_(true) {}

  /// The scale for heads of this width.
  ///
  /// @param head_dim The width D of one head, at least 1.
  /// @return The number, or 1/√D for kInverseSqrt.
  double factor(std::int64_t head_dim) const {
    return is_inverse_sqrt_ ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : factor_;
  }

  /// Writes the number, or "kInverseSqrt".
  friend std::ostream& operator<<(std::ostream& stream, const Scale& scale) {
    return scale.is_inverse_sqrt_ ? stream << "kInverseSqrt" : stream << scale.factor_;
  }

 private:
  double factor_ = 0.0;
  bool is_inverse_sqrt_ = false;
};

/// The keys that a query may attend to, counted from its own position. Both ends are inclusive, and −1 means unlimited.
///
/// Query i is at key position p = i + S − L, and may attend to the keys p − left … p + right. attention() throws
/// c10::ValueError for a side below −1.
struct Window {
  /// The number of keys before the query's position. Default: −1, unlimited.
  std::int64_t left = -1;
  /// The number of keys after the query's position. Default: −1, unlimited.
  std::int64_t right = -1;

  /// Writes "Window{left, right}".
  friend std::ostream& operator<<(std::ostream& stream, const Window& window) {
    return stream << "Window{" << window.left << ", " << window.right << "}";
  }
};

/// Options of attention(). All of them can be combined. Exceptions: key_lengths and block_table with offsets, and
/// rotary with block_table.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// The order of the steps:
/// 1. scale · q·k; with rotary, q and k are rotated first
/// 2. softcap
/// 3. alibi_slopes
/// 4. a float attn_mask
/// 5. is_causal, window, a bool attn_mask, the bounds of a packed sequence and key_lengths: masked scores count as −∞
/// 6. softmax
/// 7. dropout
///
/// @code
/// attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).window({256, 0}).scale(1.0));
/// @endcode
struct AttentionOptions {
  /// Whether a query attends only to the keys up to its own position. Query i is at key position i + S − L. Default:
  /// false.
  ///
  /// Differs from torch for L ≠ S. Torch aligns the first query with the first key. attend aligns the last query with
  /// the last key, as decoding with cached keys needs it.
  TORCH_ARG(bool, is_causal) = false;

  /// Limits a query to the keys near its position: `.window({left, right})`, −1 = unlimited. With is_causal, `right`
  /// counts as 0. Default: unlimited.
  ///
  /// Source: Beltagy et al., "Longformer", 2020. The two numbers mean what they mean in FlashAttention.
  TORCH_ARG(Window, window) = {};

  /// A mask, (L, S), (H, L, S) or (N, H, L, S), on the device of query. Any size may be 1 and is then broadcast.
  /// Default: none.
  ///
  /// - bool: true = attend.
  /// - float64, float32, bfloat16 or float16: added to the scaled scores. −∞ masks a key. The mask may require a
  ///   gradient, which has the mask's dtype.
  ///
  /// A float mask whose dtype differs from the query's is converted to float32, and to float64 for a float64 query. A
  /// finite float64 value beyond float32's range becomes the largest value of float32.
  ///
  /// Differs from torch, whose float masks must be float32 or have the query's dtype.
  TORCH_ARG(at::Tensor, attn_mask);

  /// The factor by which q·k is multiplied: a finite number, or kInverseSqrt. Default: kInverseSqrt, 1/√D.
  TORCH_ARG(Scale, scale) = kInverseSqrt;

  /// Keeps scores within ±softcap: softcap · tanh(score / softcap). Positive and finite, or 0 for no softcap. Default:
  /// 0.
  ///
  /// Source: Gemma Team, "Gemma 2", 2024.
  TORCH_ARG(double, softcap) = 0.0;

  /// Attention with linear biases: adds −slope · |p − j| for key j and the query's position p = i + S − L. The tensor
  /// has one slope for each query head, (H) or (N, H), in float32 or the query's dtype, on the device of query. It may
  /// require a gradient. Default: none.
  ///
  /// Source: Press et al., "Train short, test long", 2022.
  TORCH_ARG(at::Tensor, alibi_slopes);

  /// The probability with which a weight is set to 0, from 0 to 1. The other weights are multiplied by 1 / (1 −
  /// dropout). Default: 0.
  ///
  /// It applies to every call: pass 0 for evaluation. Layers pass 0 in evaluation mode.
  ///
  /// Each call draws one random number from the device's generator. This number and the index of a weight decide
  /// whether the weight is dropped, so every backend drops the same weights. Exception: `.backend(Backend::kSdpa)` on a
  /// GPU draws as ATen does.
  ///
  /// Differs from torch, which drops other weights for the same seed.
  TORCH_ARG(double, dropout) = 0.0;

  /// Packed batches: sequences of any lengths one after the other, in tensors with N = 1. A query attends within its
  /// own sequence. Default: none.
  ///
  /// Sequence b has the queries query_offsets[b] … query_offsets[b + 1] − 1. It has the keys key_offsets[b] …
  /// key_offsets[b + 1] − 1. Set both options or neither. is_causal, window and alibi_slopes count positions within a
  /// sequence.
  ///
  /// - Both are 1-d int32 tensors with B + 1 elements for B sequences, on the device of query.
  /// - query_offsets goes from 0 to L, key_offsets from 0 to S. Neither decreases.
  /// - The values are checked on the CPU only: to read them from a GPU, the program would have to wait for the GPU.
  ///
  /// Other libraries call such a tensor cu_seqlens.
  TORCH_ARG(at::Tensor, query_offsets);
  /// The offsets of the keys in a packed batch, int32 (B + 1); see query_offsets(). Default: none.
  TORCH_ARG(at::Tensor, key_offsets);

  /// The number of keys of each batch entry, int32 (N) on the device of query: entry n attends to its keys 0 …
  /// key_lengths[n] − 1, and no other key is read. Its query i is at key position i + key_lengths[n] − L. Default:
  /// none, S keys for every entry.
  ///
  /// - Each number is from 0 to S. The values are checked on the CPU only.
  /// - An entry without keys gives zeros.
  /// - It cannot be combined with query_offsets and key_offsets.
  /// - The Coordinate of a score_mod or mask_mod has key_lengths[n] as its key_length.
  ///
  /// For queries of different lengths, pad them on the left.
  TORCH_ARG(at::Tensor, key_lengths);
  /// Keys and values in pages, as a cache allocates them: int32 (N, P) on the device of query. query must be 4-d. key
  /// then is (num_pages, G, page_size, D), and value is (num_pages, G, page_size, Dv). Key j of batch entry n is row j
  /// mod page_size of page block_table[n][j / page_size]. Default: none.
  ///
  /// - S = P · page_size, and key_lengths must be set.
  /// - Only the pages that key_lengths needs are looked up: the first ⌈key_lengths[n] / page_size⌉ of row n. Their
  ///   numbers are checked on the CPU only. The rest of the row may be anything.
  /// - Entries may share pages.
  /// - On the CPU the kernels read the pages in place. Pages of float16 are converted to float32 first. The dense
  ///   formula copies the pages, and only it has gradients.
  ///
  /// KeyValueCache sets block_table and key_lengths.
  ///
  /// Source: Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.
  TORCH_ARG(at::Tensor, block_table);

  /// A rotary embedding: queries and keys are rotated in pairs before q·k, as rotate() does. Key j is rotated by row j
  /// of the tables, so they are (S, R/2) or (N, S, R/2) with R ≤ D, floating-point, on the device of query. Default:
  /// none.
  ///
  /// - The queries are rotated by query_rotary. Without that option, query i is rotated by row i + S − L.
  /// - The result is that of attention() with rotated tensors. attend::cuda::backend() rotates float16 and bfloat16
  ///   while it loads them, if R is a multiple of 16, so that no rotated tensor is written. In all other calls queries
  ///   and keys are rotated first.
  /// - Pairs are rotated in the dtype that autocast gives the query, with products in float32 or float64.
  /// - Gradients reach the tables; then queries and keys are rotated first.
  /// - It cannot be combined with block_table. A KeyValueCache holds rotated keys.
  ///
  /// RotaryEmbedding::cos_sin() makes the tables:
  /// @code
  /// attend::RotaryEmbedding rotary(64);
  /// attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).rotary(rotary->cos_sin(k)));
  /// @endcode
  ///
  /// Source: Su et al., "RoFormer", 2021.
  TORCH_ARG(RotaryTables, rotary);
  /// The tables of the queries, (L, R/2) or (N, L, R/2): query i is rotated by row i. They have the layout and the
  /// number of columns of rotary. Default: the last L rows of rotary. query_rotary must be set if L > S, in a packed
  /// batch, and with key_lengths.
  TORCH_ARG(RotaryTables, query_rotary);

  /// Which backend computes the call: a Backend, or a backend object, see BackendChoice. kAuto follows the active
  /// BackendGuard, and without one takes the fastest backend. Any other backend computes the call or throws
  /// c10::NotImplementedError. Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;
};

namespace detail {

/// The backend object that computes a call with this option: that of the option or of a guard; null for a built-in
/// backend.
inline std::shared_ptr<const AttentionBackend> given_backend(const BackendChoice& choice) {
  return choice == Backend::kAuto ? BackendGuard::current_object() : choice.object();
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
