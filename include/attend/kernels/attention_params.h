// SPDX-License-Identifier: MIT
#pragma once

#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The number types of tensors in memory.
enum class NumberType {
  kFloat32,   ///< float
  kBFloat16,  ///< the upper 16 bits of a float, as std::uint16_t; computed in float32
  kFloat64,   ///< double
  kFloat16,   ///< IEEE 754 binary16, as std::uint16_t; computed in float32; only on a GPU
};

/// A tensor (N, H, rows, columns) in memory that is read. Entry (n, h, i, d) is
/// n · strides[0] + h · strides[1] + i · strides[2] + d · strides[3] numbers after `data`.
///
/// A stride may be 0, which broadcasts, or negative.
struct ConstTensorView4d {
  const void* data = nullptr;    ///< entry (0, 0, 0, 0), aligned as its number type needs
  std::int64_t strides[4] = {};  ///< in numbers, not bytes
};

/// A tensor (N, H, rows, columns) in memory that is written. No two entries may share memory.
struct TensorView4d {
  void* data = nullptr;          ///< entry (0, 0, 0, 0), aligned as its number type needs
  std::int64_t strides[4] = {};  ///< in numbers, not bytes

  /// The same tensor, to be read.
  operator ConstTensorView4d() const { return {data, {strides[0], strides[1], strides[2], strides[3]}}; }
};

/// The view of a contiguous tensor (N, H, rows, columns).
///
/// @param data Its numbers.
/// @param heads H
/// @param rows L or S
/// @param columns D, Dv or S
/// @return The view, to be read.
inline ConstTensorView4d contiguous(const void* data, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  return {data, {heads * rows * columns, rows * columns, columns, 1}};
}
/// The same for a tensor that is written.
///
/// @param data Its numbers.
/// @param heads H
/// @param rows L or S
/// @param columns D or Dv
/// @return The view, to be written.
inline TensorView4d contiguous(void* data, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  return {data, {heads * rows * columns, rows * columns, columns, 1}};
}

/// The tables of a rotary embedding: a row of R/2 angles for each row of queries or keys. Number k of row i of batch
/// entry n is n · strides[0] + i · strides[1] + k numbers after `cos` and `sin`.
///
/// The numbers are float32, or float64 for float64 tensors.
struct RotaryView {
  const void* cos = nullptr;     ///< of the angles
  const void* sin = nullptr;     ///< the same for the sines
  std::int64_t strides[2] = {};  ///< of batch entries and rows, in numbers; 0 broadcasts
};

/// The kinds of numbers in a mask.
enum class MaskType {
  kNone,           ///< there is no mask
  kBool,           ///< one byte each; 0 masks the key
  kAdded,          ///< added to the scores: float32, or float64 for float64 tensors
  kAddedBFloat16,  ///< added to the scores: bfloat16, for float32 and bfloat16 tensors
};

/// One call of attention as plain numbers and pointers. The kernels read nothing else.
///
/// The steps, in this order:
/// 1. score = scale · q·k; query head h reads key head h · G / H. With rotary_dim, q and k are rotated first
/// 2. softcap
/// 3. alibi_slopes
/// 4. an added attn_mask
/// 5. the score_mod of flex_attention_forward()
/// 6. a bool attn_mask, the window, the mask_mod, packed sequences and key_lengths: masked scores count as −∞
/// 7. softmax
/// 8. dropout
/// 9. the sum over the values
///
/// Query i is at key position i + S − L: the last query is at the last key. ALiBi and the window use this position. In
/// a packed batch, L and S are those of the sequence. With key_lengths, S is key_lengths[n] for batch entry n.
///
/// The output of a query that may attend to no key is zero, and its log-sum-exp is −∞. All memory must stay valid until
/// the call returns.
struct AttentionParams {
  NumberType dtype = NumberType::kFloat32;  ///< of query, key, value and output

  std::int64_t batch_size = 1,  ///< N, at least 0
      num_heads = 1,            ///< H, the heads of query
      num_kv_heads = 1,         ///< G, the heads of key and value; G divides H
      query_length = 0,         ///< L, at least 0
      key_length = 0,           ///< S, at least 0
      head_dim = 0,             ///< D, of query and key; must be set
      value_dim = 0;            ///< Dv, of value and output; must be set

  ConstTensorView4d query,  ///< (N, H, L, D)
      key,                  ///< (N, G, S, D); with block_table (num_pages, G, page_size, D)
      value;                ///< (N, G, S, Dv); with block_table (num_pages, G, page_size, Dv)

  /// The number of keys of each batch entry: N numbers from 0 to S. Entry n has the keys 0 … key_lengths[n] − 1, and
  /// its query i is at key position i + key_lengths[n] − L. No other key is read. Null: every entry has S keys. It must
  /// be null in a packed batch.
  const std::int32_t* key_lengths = nullptr;

  /// Keys and values in pages: key j of batch entry n is row j mod page_size of page
  /// block_table[n · block_table_stride + ⌊j / page_size⌋]. Only the pages that key_lengths needs are looked up, and
  /// key_lengths must be set. Null: no pages. It must be null in a backward pass.
  const std::int32_t* block_table = nullptr;
  std::int64_t block_table_stride = 0;  ///< the distance between two rows of block_table; 0: all entries share one row
  std::int64_t page_size = 0;           ///< the number of rows in a page, at least 1 with block_table
  std::int64_t num_pages = 0;           ///< the number of pages; the entries of block_table are less than it

  /// Rotary embedding: the first R numbers of each query and key are rotated in pairs before q·k. Pair i is (a, b), and
  /// becomes (a · cosᵢ − b · sinᵢ, b · cosᵢ + a · sinᵢ), rounded to dtype. R is even and at most D; 0: none. It must be
  /// 0 on a CPU.
  std::int64_t rotary_dim = 0;
  RotaryLayout rotary_layout = RotaryLayout::kHalfSplit;  ///< which two numbers are one pair
  RotaryView query_rotary,                                ///< (N, L, R/2): row i is for query i
      key_rotary;                                         ///< (N, S, R/2): row j is for key j

  std::optional<double> scale;  ///< the factor of q·k; default: 1/√D
  double softcap = 0;           ///< scores become softcap · tanh(score / softcap); 0: no softcap

  /// ALiBi slopes (N, H), with the two strides alibi_strides: float32, or float64 for float64 tensors. ALiBi adds
  /// −slope · |i + S − L − j| to the score of query i and key j. Null: no ALiBi.
  const void* alibi_slopes = nullptr;
  std::int64_t alibi_strides[2] = {0, 1};  ///< of batch entries and heads, in numbers; 0 broadcasts

  MaskType mask_type = MaskType::kNone;  ///< what `attn_mask` holds
  ConstTensorView4d attn_mask;           ///< (N, H, L, S)

  /// The number of keys before its own position that a query may attend to; −1: unlimited.
  std::int64_t window_left = -1;
  /// The number of keys after its own position that a query may attend to; −1: unlimited. Causal attention is 0.
  std::int64_t window_right = -1;

  /// Packed batch: sequence b has the queries query_offsets[b] … query_offsets[b + 1] − 1, which attend only to the
  /// keys of the same sequence. num_sequences + 1 numbers from 0 to L that never decrease. Null: no packed batch.
  const std::int32_t* query_offsets = nullptr;
  const std::int32_t* key_offsets = nullptr;  ///< the same for the keys, from 0 to S
  std::int64_t num_sequences = 0;             ///< 0: no packed batch

  double dropout = 0;  ///< the probability that a weight is dropped; the others are divided by 1 − dropout
  std::uint64_t dropout_seed = 0;  ///< the same seed drops the same weights
  /// The seed in memory of the GPU, so that the host need not wait for it. Null: dropout_seed. Kernels for the CPU do
  /// not read it.
  const std::int64_t* dropout_seed_data = nullptr;
};

/// The memory that a forward pass writes. A backward pass reads it again.
struct AttentionOutputs {
  TensorView4d output;  ///< (N, H, L, Dv)
  /// The log-sum-exp of the changed and masked scores, (N, H, L), contiguous: float32, or float64 for float64 tensors.
  /// Null: not wanted. The backward pass does not read it.
  void* log_sum_exp = nullptr;
  /// Memory for the backward pass, aligned like memory of malloc(). Null: there is no backward pass.
  void* saved = nullptr;
  /// The size of `saved`, in bytes: at least kernels::saved_bytes(), or kernels::flex_saved_bytes() for a call with a
  /// score_mod or mask_mod.
  std::int64_t saved_bytes = 0;
};

/// A gradient that is a sum over many scores. It is written in float64.
struct SummedGradient {
  double* data = nullptr;  ///< contiguous memory; null: the gradient is not wanted
  std::int64_t size = 0;   ///< the number of elements
};

/// The gradients that a backward pass reads and writes. `output`, `query`, `key` and `value` must be set.
struct AttentionGradients {
  ConstTensorView4d output;           ///< read: the gradient of the output, (N, H, L, Dv)
  const void* log_sum_exp = nullptr;  ///< read: the gradient of the log-sum-exp, (N, H, L), contiguous; null: zeros

  TensorView4d query,  ///< written: the gradient of the query, (N, H, L, D)
      key,             ///< written: the gradient of the key, (N, G, S, D)
      value;           ///< written: the gradient of the value, (N, G, S, Dv)
  /// Written: the gradient of an added mask, (N, H, L, S). A size whose stride in the mask is 0 counts as 1.
  SummedGradient attn_mask;
  /// Written: the gradient of the slopes, (N, H), or (1, H) if the stride of batch entries is 0.
  SummedGradient alibi_slopes;
  /// Written: the gradient of each tensor that the score_mod lists in tensors(). Empty: none is wanted.
  std::vector<SummedGradient> score_tensors;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
