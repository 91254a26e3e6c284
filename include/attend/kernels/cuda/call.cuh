// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/macros.h>
#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// One call of attention as the kernels for a GPU read it: AttentionParams and AttentionOutputs with all defaults
/// filled in. It is trivially copyable and is passed to a kernel by value.
///
/// All pointers are to memory of the GPU. Make a Call by call_of().
struct Call {
  NumberType dtype;  ///< of query, key, value and output

  std::int32_t batch_size,  ///< N
      heads,                ///< H
      kv_heads,             ///< G
      group,                ///< H / G, the query heads of a key head
      queries,              ///< L
      keys,                 ///< S
      head_dim,             ///< D
      value_dim;            ///< Dv

  ConstTensorView4d query, key, value;  ///< as in AttentionParams

  std::int32_t rotary_dim;              ///< 0: none
  RotaryLayout rotary_layout;           ///< as in AttentionParams
  RotaryView query_rotary, key_rotary;  ///< as in AttentionParams

  double scale;    ///< the factor of q·k
  double softcap;  ///< 0: none

  const void* alibi_slopes;       ///< in the type that is computed in; null: none
  std::int64_t alibi_strides[2];  ///< of batch entries and heads
  MaskType mask_type;             ///< what attn_mask holds
  ConstTensorView4d attn_mask;    ///< as in AttentionParams

  std::int32_t window_left, window_right;  ///< −1: unlimited

  const std::int32_t *query_offsets, *key_offsets;  ///< packed batch; null: none
  std::int32_t num_sequences;                       ///< 0: no packed batch
  const std::int32_t* key_lengths;                  ///< null: `keys` for every batch entry
  const std::int32_t* block_table;                  ///< null: no pages
  std::int64_t block_table_stride;                  ///< the distance between two rows of block_table
  std::int32_t page_size;                           ///< the number of rows in a page

  std::uint64_t dropout_seed, dropout_threshold;  ///< a weight is kept if its word is at least the threshold
  const std::int64_t* dropout_seed_data;          ///< the seed in memory of the GPU; null: dropout_seed
  double dropout_scale;                           ///< a kept weight is multiplied by it; 0 if none is kept

  TensorView4d output;  ///< as in AttentionOutputs
  /// (N, H, L), natural logarithm: float32, or float64 in a float64 call. Null: not wanted.
  void* log_sum_exp;
  /// The same numbers, for the backward pass. Null: there is no backward pass.
  void* saved_log_sum_exp;
  /// The log-sum-exp before rounding minus saved_log_sum_exp, for the backward pass: an error in it affects all keys of
  /// a query. Null if saved_log_sum_exp is null.
  void* log_sum_exp_rest;
  /// The output before rounding minus the output: (N, H, L, Dv), contiguous, in `dtype`. Null: not wanted. The backward
  /// pass subtracts two sums that are nearly equal, so it needs more bits than a 16-bit output has. A float32 or
  /// float64 call has none.
  void* output_rest;

  float* partials;      ///< the workspace of decode_block(); null without it
  std::int32_t splits;  ///< into how many parts decode_block() splits the keys

  /// Whether dropout changes the weights.
  ATTEND_HOST_DEVICE bool has_dropout() const { return dropout_threshold > 0; }
  /// Whether queries and keys are rotated when they are loaded.
  ATTEND_HOST_DEVICE bool has_rotary() const { return rotary_dim > 0; }
  /// The index of row (n, h, i) in a contiguous tensor (N, H, L).
  ATTEND_HOST_DEVICE std::int64_t row(std::int32_t n, std::int32_t h, std::int32_t i) const {
    return (static_cast<std::int64_t>(n) * heads + h) * queries + i;
  }
};

namespace detail {

/// The saved numbers in AttentionOutputs::saved: the log-sum-exp, log_sum_exp_rest and output_rest.
struct SavedLayout {
  bool is_rounded;  // whether numbers in memory are narrower than those that are computed: there is an output_rest
  std::int64_t log_sum_exp_rest, output_rest, end;  // in bytes

  explicit SavedLayout(const AttentionParams& params) {
    const std::int64_t rows = params.batch_size * params.num_heads * params.query_length;
    const auto computed = static_cast<std::int64_t>(attend::detail::compute_size(params));
    const auto number = static_cast<std::int64_t>(attend::detail::number_size(params));
    is_rounded = number < computed;
    log_sum_exp_rest = up_to_16(rows * computed);
    output_rest = up_to_16(log_sum_exp_rest + rows * computed);
    end = is_rounded ? output_rest + rows * params.value_dim * number : log_sum_exp_rest + rows * computed;
  }

 private:
  static std::int64_t up_to_16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
};

}  // namespace detail

/// The size of AttentionOutputs::saved for a call on a GPU, in bytes.
///
/// @param params The call.
/// @throws std::invalid_argument if a member breaks its rule.
inline std::int64_t saved_bytes(const AttentionParams& params) {
  return detail::SavedLayout(attend::detail::checked(params, /*is_on_host=*/false)).end;
}

/// Makes the Call of a call.
///
/// @param params The call. All pointers are to memory of the GPU.
/// @param outputs The memory that is written, of the GPU.
/// @return The Call.
/// @throws std::invalid_argument if a member breaks its rule. Numbers in memory (query_offsets, key_offsets,
/// key_lengths, block_table) are not checked, because the host cannot read them.
inline Call call_of(const AttentionParams& params, const AttentionOutputs& outputs) {
  const AttentionParams p = attend::detail::checked(params, /*is_on_host=*/false);
  attend::detail::check_outputs(p, outputs, /*saved_bytes=*/0);
  const auto narrow = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  Call call{};
  call.dtype = p.dtype;
  call.batch_size = narrow(p.batch_size);
  call.heads = narrow(p.num_heads);
  call.kv_heads = narrow(p.num_kv_heads);
  call.group = narrow(p.num_heads / p.num_kv_heads);
  call.queries = narrow(p.query_length);
  call.keys = narrow(p.key_length);
  call.head_dim = narrow(p.head_dim);
  call.value_dim = narrow(p.value_dim);
  call.query = p.query;
  call.key = p.key;
  call.value = p.value;
  call.rotary_dim = narrow(p.rotary_dim);
  call.rotary_layout = p.rotary_layout;
  call.query_rotary = p.query_rotary;
  call.key_rotary = p.key_rotary;
  call.scale = p.scale ? *p.scale : 1 / std::sqrt(static_cast<double>(p.head_dim));
  call.softcap = p.softcap;
  call.alibi_slopes = p.alibi_slopes;
  for (int i = 0; i < 2; ++i) call.alibi_strides[i] = p.alibi_strides[i];
  call.mask_type = p.mask_type;
  call.attn_mask = p.attn_mask;
  call.window_left = narrow(p.window_left);
  call.window_right = narrow(p.window_right);
  if (p.num_sequences > 0) {
    call.query_offsets = p.query_offsets;
    call.key_offsets = p.key_offsets;
    call.num_sequences = narrow(p.num_sequences);
  }
  call.key_lengths = p.key_lengths;
  call.block_table = p.block_table;
  call.block_table_stride = p.block_table_stride;
  call.page_size = narrow(p.page_size);
  call.dropout_seed = p.dropout_seed;
  call.dropout_seed_data = p.dropout_seed_data;
  call.dropout_threshold = attend::detail::dropout_threshold(p.dropout);
  call.dropout_scale = p.dropout < 1 ? 1 / (1 - p.dropout) : 0;
  call.output = outputs.output;
  call.log_sum_exp = outputs.log_sum_exp;
  if (outputs.saved != nullptr) {
    const detail::SavedLayout layout(p);
    attend::detail::check_saved_bytes(outputs, layout.end);
    call.saved_log_sum_exp = outputs.saved;
    call.log_sum_exp_rest = static_cast<char*>(outputs.saved) + layout.log_sum_exp_rest;
    if (layout.is_rounded) call.output_rest = static_cast<char*>(outputs.saved) + layout.output_rest;
  }
  return call;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
