// SPDX-License-Identifier: MIT
#pragma once

// The checks of a call of kernels.h. Each bad value gets one std::invalid_argument that names the member of a struct,
// the rule and the value.

#include <attend/kernels/attention_params.h>
#include <attend/version.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Throws std::invalid_argument. Its text is "attend::kernels: ", then the arguments as printf() formats them. The
/// arguments are not std::strings, because then each of the many calls would take longer to compile.
[[noreturn, gnu::cold, gnu::noinline, gnu::format(printf, 1, 2)]] inline void throw_invalid(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw std::invalid_argument(std::string("attend::kernels: ") + text);
}

inline bool is_float64(const AttentionParams& params) { return params.dtype == NumberType::kFloat64; }

/// The size of a number of query, key, value and output, in bytes.
inline std::size_t number_size(const AttentionParams& params) {
  return is_float64(params) ? 8 : params.dtype == NumberType::kFloat32 ? 4 : 2;
}

/// The size of a number in the type that the kernels compute in (float32 or float64), in bytes.
inline std::size_t compute_size(const AttentionParams& params) { return is_float64(params) ? 8 : 4; }

inline void check_range(const char* member, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most)
    throw_invalid("AttentionParams::%s must be from %" PRId64 " to %" PRId64 ", got %" PRId64, member, least, most,
                  value);
}

/// Checks memory that must be set if it holds any number.
inline void check_memory(const char* member, const void* data, bool has_numbers, std::size_t alignment) {
  if (data == nullptr && has_numbers) throw_invalid("%s must be set, got a null pointer", member);
  if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0)
    throw_invalid("%s must be aligned to %zu bytes, got the address %p", member, alignment, data);
}

inline void check_window(const char* member, std::int64_t keys) {
  if (keys < -1) throw_invalid("AttentionParams::%s must be at least 0, or -1 (unlimited), got %" PRId64, member, keys);
}

/// Checks that no two entries of a tensor share memory. It computes in double, where no product overflows.
inline void check_no_overlap(const char* member, const std::int64_t (&strides)[4], const std::int64_t (&sizes)[4]) {
  const auto step = [&](int i) { return std::abs(static_cast<double>(strides[i])); };
  int order[4] = {0, 1, 2, 3};  // by stride
  for (int i = 0; i < 4; ++i)
    for (int k = i + 1; k < 4; ++k)
      if (step(order[k]) < step(order[i])) std::swap(order[i], order[k]);
  double reach = 0;  // of the smaller strides together
  for (const int i : order) {
    if (sizes[i] == 1) continue;
    if (step(i) <= reach)
      throw_invalid("%s.strides must be such that no two entries of {%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                    "} share memory, got {%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "}",
                    member, sizes[0], sizes[1], sizes[2], sizes[3], strides[0], strides[1], strides[2], strides[3]);
    reach += step(i) * static_cast<double>(sizes[i] - 1);
  }
}

inline void check_offsets(const char* member, const std::int32_t* offsets, std::int64_t sequences, const char* end_name,
                          std::int64_t end, bool is_on_host) {
  check_memory(member, offsets, /*has_numbers=*/true, alignof(std::int32_t));
  if (!is_on_host) return;
  if (offsets[0] != 0) throw_invalid("%s must begin with 0, got %d", member, offsets[0]);
  for (std::int64_t i = 0; i < sequences; ++i)
    if (offsets[i + 1] < offsets[i])
      throw_invalid("%s must never decrease, got %d at index %" PRId64 " after %d", member, offsets[i + 1], i + 1,
                    offsets[i]);
  if (offsets[sequences] != end)
    throw_invalid("%s must end with %s (%" PRId64 "), got %d at index %" PRId64, member, end_name, end,
                  offsets[sequences], sequences);
}

inline void check_key_lengths(const AttentionParams& params, bool is_on_host) {
  if (params.key_lengths == nullptr) {
    if (params.block_table != nullptr)
      throw_invalid("AttentionParams::key_lengths must be set with block_table, got a null pointer");
    return;
  }
  check_memory("AttentionParams::key_lengths", params.key_lengths, /*has_numbers=*/true, alignof(std::int32_t));
  if (params.num_sequences > 0)
    throw_invalid("AttentionParams::key_lengths must be null in a packed batch, got a pointer");
  if (!is_on_host) return;
  for (std::int64_t n = 0; n < params.batch_size; ++n)
    if (params.key_lengths[n] < 0 || params.key_lengths[n] > params.key_length)
      throw_invalid("AttentionParams::key_lengths must be from 0 to key_length (%" PRId64 "), got %d at index %" PRId64,
                    params.key_length, params.key_lengths[n], n);
}

inline void check_block_table(const AttentionParams& params, bool is_on_host) {
  if (params.block_table == nullptr) return;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  check_memory("AttentionParams::block_table", params.block_table, /*has_numbers=*/true, alignof(std::int32_t));
  check_range("page_size", params.page_size, 1, kMost);
  check_range("num_pages", params.num_pages, 0, kMost);
  if (!is_on_host) return;
  for (std::int64_t n = 0; n < params.batch_size; ++n)
    for (std::int64_t i = 0; i * params.page_size < params.key_lengths[n]; ++i) {
      const std::int32_t page = params.block_table[n * params.block_table_stride + i];
      if (page < 0 || page >= params.num_pages)
        throw_invalid("AttentionParams::block_table must have numbers from 0 to num_pages - 1 (%" PRId64
                      "), got %d for page %" PRId64 " of batch entry %" PRId64,
                      params.num_pages - 1, page, i, n);
    }
}

inline void check_rotary(const AttentionParams& params, bool is_on_host) {
  if (params.rotary_dim == 0) return;
  if (is_on_host)
    throw_invalid("AttentionParams::rotary_dim must be 0 on a CPU, got %" PRId64 "; rotate query and key first",
                  params.rotary_dim);
  check_range("rotary_dim", params.rotary_dim, 0, params.head_dim);
  if (params.rotary_dim % 2 != 0)
    throw_invalid("AttentionParams::rotary_dim must be even, got %" PRId64, params.rotary_dim);
  check_range("rotary_layout", static_cast<std::int64_t>(params.rotary_layout), 0, 1);
  const auto check = [&](const char* cos, const char* sin, const RotaryView& tables, std::int64_t rows) {
    check_memory(cos, tables.cos, params.batch_size * rows > 0, compute_size(params));
    check_memory(sin, tables.sin, params.batch_size * rows > 0, compute_size(params));
  };
  check("AttentionParams::query_rotary.cos", "AttentionParams::query_rotary.sin", params.query_rotary,
        params.query_length);
  check("AttentionParams::key_rotary.cos", "AttentionParams::key_rotary.sin", params.key_rotary, params.key_length);
}

/// Checks a call, and returns it. A window that masks nothing is returned as an unlimited window.
///
/// is_on_host: the call is for the CPU, which can read all memory. Otherwise the offsets, lengths and pages are not
/// checked.
inline AttentionParams checked(AttentionParams params, bool is_on_host = true) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2, kWidest = 1 << 20;
  check_range("dtype", static_cast<std::int64_t>(params.dtype), 0, 3);
  if (is_on_host && params.dtype == NumberType::kFloat16)
    throw_invalid("AttentionParams::dtype must be kFloat32, kBFloat16 or kFloat64 on a CPU, got kFloat16");
  check_range("mask_type", static_cast<std::int64_t>(params.mask_type), 0, 3);
  check_range("batch_size", params.batch_size, 0, kMost);
  check_range("num_heads", params.num_heads, 1, kMost);
  check_range("num_kv_heads", params.num_kv_heads, 1, kMost);
  check_range("query_length", params.query_length, 0, kMost);
  check_range("key_length", params.key_length, 0, kMost);
  check_range("head_dim", params.head_dim, 1, kWidest);
  check_range("value_dim", params.value_dim, 1, kWidest);
  if (params.num_heads % params.num_kv_heads != 0)
    throw_invalid("AttentionParams::num_kv_heads must be a divisor of num_heads (%" PRId64 "), got %" PRId64,
                  params.num_heads, params.num_kv_heads);
  const double rows = static_cast<double>(params.batch_size) * static_cast<double>(params.num_heads) *
                      static_cast<double>(std::max(params.query_length, params.key_length));
  if (rows > 0x1p47)
    throw_invalid("AttentionParams::batch_size must be such that N · H · L and N · H · S are at most 2^47, got %g",
                  rows);
  const double numbers = rows * static_cast<double>(std::max(params.head_dim, params.value_dim));
  if (numbers > 0x1p58)
    throw_invalid(
        "AttentionParams::batch_size must be such that a tensor (N, H, L or S, D or Dv) has at most 2^58 numbers, got "
        "%g",
        numbers);

  const bool has_queries = params.batch_size * params.query_length > 0;
  const bool has_keys = params.batch_size * params.key_length > 0;
  const std::size_t number = number_size(params), computed = compute_size(params);
  check_memory("AttentionParams::query.data", params.query.data, has_queries, number);
  check_memory("AttentionParams::key.data", params.key.data, has_keys, number);
  check_memory("AttentionParams::value.data", params.value.data, has_keys, number);

  const double least = is_float64(params) ? 0x1p-1022 : 0x1p-126;
  const double most = is_float64(params) ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  const char* const computed_in = is_float64(params) ? "float64" : "float32";
  if (params.scale && !(std::abs(*params.scale) <= most))
    throw_invalid("AttentionParams::scale must be finite in %s, got %g", computed_in, *params.scale);
  if (params.softcap != 0 && !(params.softcap >= least && params.softcap <= most))
    throw_invalid("AttentionParams::softcap must be 0 (none), or positive and finite in %s, got %g", computed_in,
                  params.softcap);
  if (!(params.dropout >= 0 && params.dropout <= 1))
    throw_invalid("AttentionParams::dropout must be a probability from 0 to 1, got %g", params.dropout);
  check_memory("AttentionParams::alibi_slopes", params.alibi_slopes, /*has_numbers=*/false, computed);

  if (params.mask_type == MaskType::kAddedBFloat16 && is_float64(params))
    throw_invalid("AttentionParams::mask_type must be kNone, kBool or kAdded for float64 tensors, got kAddedBFloat16");
  if (params.mask_type != MaskType::kNone) {
    const std::size_t size = params.mask_type == MaskType::kBool    ? 1
                             : params.mask_type == MaskType::kAdded ? computed
                                                                    : 2;
    check_memory("AttentionParams::attn_mask.data", params.attn_mask.data, has_queries && has_keys, size);
  }

  check_window("window_left", params.window_left);
  check_window("window_right", params.window_right);
  if (params.window_left >= params.key_length - 1) params.window_left = -1;
  if (params.window_right >= params.query_length - 1) params.window_right = -1;

  check_range("num_sequences", params.num_sequences, 0, kMost);
  if (params.num_sequences > 0 || params.query_offsets != nullptr || params.key_offsets != nullptr) {
    check_offsets("AttentionParams::query_offsets", params.query_offsets, params.num_sequences, "query_length",
                  params.query_length, is_on_host);
    check_offsets("AttentionParams::key_offsets", params.key_offsets, params.num_sequences, "key_length",
                  params.key_length, is_on_host);
  }
  check_key_lengths(params, is_on_host);
  check_block_table(params, is_on_host);
  check_rotary(params, is_on_host);
  return params;
}

/// Checks the size of a SummedGradient, for a tensor with these sizes and strides. If a stride is 0, its size
/// counts as 1.
inline void check_sum(const char* member, const SummedGradient& sum, const std::int64_t* sizes,
                      const std::int64_t* strides, int dimensions) {
  if (sum.data == nullptr) return;
  std::uint64_t size = 1;
  for (int i = 0; i < dimensions; ++i) size *= strides[i] == 0 ? 1 : static_cast<std::uint64_t>(sizes[i]);
  if (static_cast<std::uint64_t>(sum.size) != size)
    throw_invalid("%s.size must be %" PRIu64 ", got %" PRId64, member, size, sum.size);
  check_memory(member, sum.data, /*has_numbers=*/false, alignof(double));
}

/// Checks a tensor (N, heads, rows, columns) that is written.
inline void check_written(const AttentionParams& params, const char* member, const TensorView4d& view,
                          std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  const bool has_numbers = params.batch_size * rows > 0;
  check_memory(member, view.data, has_numbers, number_size(params));
  if (has_numbers) check_no_overlap(member, view.strides, {params.batch_size, heads, rows, columns});
}

/// Checks that the memory for a backward pass is large enough.
inline void check_saved_bytes(const AttentionOutputs& outputs, std::int64_t needed) {
  if (outputs.saved_bytes < needed)
    throw_invalid("AttentionOutputs::saved_bytes must be at least %" PRId64 ", got %" PRId64, needed,
                  outputs.saved_bytes);
}

/// Checks the outputs. The params must come from checked(). saved_bytes: the memory that a backward pass needs, or 0 in
/// a forward pass, for which `saved` may be null.
inline void check_outputs(const AttentionParams& params, const AttentionOutputs& outputs, std::int64_t saved_bytes) {
  check_written(params, "AttentionOutputs::output", outputs.output, params.num_heads, params.query_length,
                params.value_dim);
  check_memory("AttentionOutputs::log_sum_exp", outputs.log_sum_exp, /*has_numbers=*/false, compute_size(params));
  check_memory("AttentionOutputs::saved", outputs.saved, saved_bytes > 0, compute_size(params));
}

/// Checks the gradients. The params must come from checked().
inline void check_gradients(const AttentionParams& params, const AttentionGradients& gradients) {
  if (params.block_table != nullptr)
    throw_invalid("AttentionParams::block_table must be null in a backward pass, got a pointer");
  const std::int64_t N = params.batch_size, H = params.num_heads, G = params.num_kv_heads, L = params.query_length,
                     S = params.key_length;
  check_memory("AttentionGradients::output.data", gradients.output.data, N * L > 0, number_size(params));
  check_memory("AttentionGradients::log_sum_exp", gradients.log_sum_exp, /*has_numbers=*/false, compute_size(params));
  check_written(params, "AttentionGradients::query", gradients.query, H, L, params.head_dim);
  check_written(params, "AttentionGradients::key", gradients.key, G, S, params.head_dim);
  check_written(params, "AttentionGradients::value", gradients.value, G, S, params.value_dim);

  const bool is_added = params.mask_type == MaskType::kAdded || params.mask_type == MaskType::kAddedBFloat16;
  if (gradients.attn_mask.data != nullptr && !is_added)
    throw_invalid("AttentionGradients::attn_mask.data must be null without an added mask, got a pointer");
  const std::int64_t sizes[4] = {N, H, L, S}, stride_of_heads[2] = {params.alibi_strides[0], 1};
  check_sum("AttentionGradients::attn_mask", gradients.attn_mask, sizes, params.attn_mask.strides, 4);
  if (gradients.alibi_slopes.data != nullptr && params.alibi_slopes == nullptr)
    throw_invalid("AttentionGradients::alibi_slopes.data must be null without alibi_slopes, got a pointer");
  check_sum("AttentionGradients::alibi_slopes", gradients.alibi_slopes, sizes, stride_of_heads, 2);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
