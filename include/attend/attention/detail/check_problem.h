// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/check_rotary.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/rotated.h>
#include <attend/attention/options.h>
#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/check_dense.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/detail/torch/without_data.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/TensorAccessor.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline bool is_attention_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

inline void check_attention_tensor(const char* name, const at::Tensor& tensor, const char* shape) {
  TORCH_CHECK_VALUE(tensor.defined(), "attend::attention: ", name, " must be a tensor ", shape,
                    ", got an undefined one");
  check_dense("attend::attention", name, tensor);
  TORCH_CHECK_VALUE(tensor.dim() >= 2 && tensor.dim() <= 4, "attend::attention: ", name, " must be 4-d ", shape,
                    ", or 3-d or 2-d without the first sizes, got ", tensor.dim(), "-d ", tensor.sizes());
  TORCH_CHECK_TYPE(is_attention_dtype(tensor.scalar_type()), "attend::attention: ", name,
                   " must be float64, float32, bfloat16 or float16, got ", tensor.scalar_type());
}

inline void check_same_kind(const char* name, const at::Tensor& tensor, const at::Tensor& query) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), "attend::attention: ", name, " (", tensor.scalar_type(),
                   ") must have the dtype of query (", query.scalar_type(), ")");
  TORCH_CHECK_VALUE(tensor.device() == query.device(), "attend::attention: ", name, " (", tensor.device(),
                    ") must be on the device of query (", query.device(), ")");
  TORCH_CHECK_VALUE(tensor.dim() == query.dim(), "attend::attention: ", name, " ", tensor.sizes(),
                    " must have as many dimensions as query ", query.sizes());
}

/// The tensor as autocast wants it: cast to its dtype if autocast is on for the device. float64 is never cast. An
/// expanded tensor stays expanded.
inline at::Tensor autocast(const at::Tensor& tensor, Purpose purpose) {
  const at::ScalarType dtype = dtype_under_autocast(tensor);
  if (tensor.scalar_type() == dtype) return tensor;
  if (purpose == Purpose::kExplain) return converted_without_data(tensor, dtype);
  return is_expanded(tensor) ? ExpandedCast::apply_to(tensor, dtype)
                             : at::autocast::cached_cast(dtype, tensor, tensor.device().type());
}

/// The dtype in which a float mask is added to the scores, which are float64 or float32: the query's dtype or float32.
inline at::ScalarType added_mask_dtype(at::ScalarType mask_dtype, at::ScalarType query_dtype) {
  if (mask_dtype == query_dtype || query_dtype == at::kDouble) return query_dtype;
  return at::kFloat;
}

/// A float mask as it is added to the scores. Finite numbers stay finite.
inline at::Tensor added_mask(const at::Tensor& mask, at::ScalarType query_dtype) {
  const at::ScalarType dtype = added_mask_dtype(mask.scalar_type(), query_dtype);
  if (mask.scalar_type() == dtype) return mask;
  if (mask.scalar_type() != at::kDouble) return ExpandedCast::apply_to(mask, dtype);
  return ExpandedCast::apply_to(mask, [dtype](const at::Tensor& each) {
    constexpr double kLargest = std::numeric_limits<float>::max();
    return at::where(each.isinf(), each, each.clamp(-kLargest, kLargest)).to(dtype);
  });
}

/// The mask as 4-d: missing leading sizes become 1.
inline at::Tensor checked_mask(at::Tensor mask, const Problem& problem, Purpose purpose) {
  const std::int64_t full[4] = {problem.batch_size(), problem.num_heads(), problem.query_length(),
                                problem.key_length()};
  TORCH_CHECK_VALUE(mask.dim() >= 2 && mask.dim() <= 4,
                    "attend::attention: attn_mask must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got ",
                    mask.dim(), "-d ", mask.sizes());
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool || is_attention_dtype(mask.scalar_type()),
                   "attend::attention: attn_mask must be bool (true = attend), float64, float32, bfloat16 or float16, "
                   "got ",
                   mask.scalar_type());
  TORCH_CHECK_VALUE(mask.device() == problem.query.device(), "attend::attention: attn_mask (", mask.device(),
                    ") must be on the device of query (", problem.query.device(), ")");
  const at::Tensor given = mask;
  const bool is_of_keys = given.dim() == 2 && given.size(0) == full[0] && given.size(1) == full[3];
  const char* const remedy = is_of_keys ? "; pass a key padding mask (N, S) as mask.view({N, 1, 1, S})" : "";
  while (mask.dim() < 4) mask = mask.unsqueeze(0);
  for (int i = 0; i < 4; ++i) {
    TORCH_CHECK_VALUE(mask.size(i) == full[i] || mask.size(i) == 1, "attend::attention: attn_mask ", given.sizes(),
                      " must broadcast to (N, H, L, S) = ", at::IntArrayRef(full, 4), remedy);
  }
  if (!mask.requires_grad()) mask = one_copy(mask);
  if (mask.scalar_type() == at::kBool) return mask;
  const at::ScalarType query_dtype = problem.query.scalar_type();
  return purpose == Purpose::kExplain ? converted_without_data(mask, added_mask_dtype(mask.scalar_type(), query_dtype))
                                      : added_mask(mask, query_dtype);
}

/// The window that follows from the options window and is_causal. A side that masks nothing becomes unlimited.
inline Window checked_window(const AttentionOptions& options, const Problem& problem) {
  Window window = options.window();
  TORCH_CHECK_VALUE(window.left >= -1 && window.right >= -1,
                    "attend::attention: both sides of window must be at least 0, or -1 for unlimited, got ", window);
  if (options.is_causal()) window.right = 0;
  if (window.left >= problem.key_length() - 1) window.left = -1;
  if (window.right >= problem.query_length() - 1) window.right = -1;
  return window;
}

/// The slopes as (1 or N, H).
inline at::Tensor checked_slopes(const at::Tensor& slopes, const Problem& problem) {
  check_dense("attend::attention", "alibi_slopes", slopes);
  TORCH_CHECK_TYPE(slopes.scalar_type() == at::kFloat || slopes.scalar_type() == problem.query.scalar_type(),
                   "attend::attention: alibi_slopes must be float32 or have the dtype of query (",
                   problem.query.scalar_type(), "), got ", slopes.scalar_type());
  TORCH_CHECK_VALUE(slopes.device() == problem.query.device(), "attend::attention: alibi_slopes (", slopes.device(),
                    ") must be on the device of query (", problem.query.device(), ")");
  const bool is_shared = slopes.dim() == 1 && slopes.size(0) == problem.num_heads();
  TORCH_CHECK_VALUE(is_shared || (slopes.dim() == 2 && slopes.size(0) == problem.batch_size() &&
                                  slopes.size(1) == problem.num_heads()),
                    "attend::attention: alibi_slopes must be (H) or (N, H), with N = ", problem.batch_size(),
                    " and H = ", problem.num_heads(), ", got ", slopes.sizes());
  return is_shared ? slopes.unsqueeze(0) : slopes;
}

/// An int32 tensor on the device of query.
inline at::Tensor checked_integers(const char* name, const at::Tensor& given, const at::Tensor& query) {
  check_dense("attend::attention", name, given);
  TORCH_CHECK_TYPE(given.scalar_type() == at::kInt, "attend::attention: ", name, " must be int32, got ",
                   given.scalar_type());
  TORCH_CHECK_VALUE(given.device() == query.device(), "attend::attention: ", name, " (", given.device(),
                    ") must be on the device of query (", query.device(), ")");
  return in_memory(given);
}

inline at::Tensor checked_offsets(const char* name, const at::Tensor& given, const char* length_name,
                                  std::int64_t length, const at::Tensor& query) {
  const at::Tensor offsets = checked_integers(name, given, query).contiguous();
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1, "attend::attention: ", name,
                    " must be 1-d with at least one element, got ", offsets.sizes());
  if (!offsets.is_cpu()) return offsets;
  const at::TensorAccessor<std::int32_t, 1> values = offsets.accessor<std::int32_t, 1>();
  const std::int64_t last = values.size(0) - 1;
  TORCH_CHECK_VALUE(values[0] == 0 && values[last] == length, "attend::attention: ", name, " must go from 0 to ",
                    length_name, " = ", length, ", got ", values[0], " to ", values[last]);
  for (std::int64_t i = 0; i < last; ++i)
    TORCH_CHECK_VALUE(values[i] <= values[i + 1], "attend::attention: ", name, " must not decrease, got ", values[i],
                      " before ", values[i + 1]);
  return offsets;
}

inline at::Tensor checked_key_lengths(const at::Tensor& given, const Problem& problem) {
  const at::Tensor lengths = checked_integers("key_lengths", given, problem.query).contiguous();
  TORCH_CHECK_VALUE(lengths.dim() == 1 && lengths.size(0) == problem.batch_size(),
                    "attend::attention: key_lengths must be (N), with N = ", problem.batch_size(), ", got ",
                    lengths.sizes());
  if (!lengths.is_cpu()) return lengths;
  const at::TensorAccessor<std::int32_t, 1> values = lengths.accessor<std::int32_t, 1>();
  for (std::int64_t n = 0; n < values.size(0); ++n)
    TORCH_CHECK_VALUE(values[n] >= 0 && values[n] <= problem.key_length(),
                      "attend::attention: key_lengths must be from 0 to S = ", problem.key_length(), ", got ",
                      values[n], " at index ", n);
  return lengths;
}

/// Checks the shape of block_table. query, key and value have 4 dimensions.
inline at::Tensor checked_block_table(const AttentionOptions& options, const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value) {
  TORCH_CHECK_VALUE(options.key_lengths().defined(), "attend::attention: block_table needs key_lengths");
  const at::Tensor table = checked_integers("block_table", options.block_table(), query);
  TORCH_CHECK_VALUE(query.dim() == 4, "attend::attention: with block_table query must be 4-d, got ", query.sizes());
  TORCH_CHECK_VALUE(table.dim() == 2 && (table.size(0) == query.size(0) || query.size(0) == 1),
                    "attend::attention: block_table must be (N, P), with N = ", query.size(0), ", got ", table.sizes());
  TORCH_CHECK_VALUE(key.size(0) >= 1 && key.size(2) >= 1,
                    "attend::attention: with block_table key must have at least one page of at least one row, got ",
                    key.sizes());
  TORCH_CHECK_VALUE(!value.defined() || value.size(0) == key.size(0), "attend::attention: value ", value.sizes(),
                    " must have as many pages as key ", key.sizes());
  return table.stride(1) == 1 ? table : table.contiguous();
}

/// The pages that key_lengths needs must exist.
inline void check_pages(const Problem& problem) {
  if (!problem.block_table.is_cpu()) return;
  const auto lengths = problem.key_lengths.accessor<std::int32_t, 1>();
  const auto table = problem.block_table.accessor<std::int32_t, 2>();
  const std::int64_t page_size = problem.key.size(2), num_pages = problem.key.size(0);
  for (std::int64_t n = 0; n < lengths.size(0); ++n)
    for (std::int64_t i = 0; i * page_size < lengths[n]; ++i)
      TORCH_CHECK_VALUE(table[n][i] >= 0 && table[n][i] < num_pages,
                        "attend::attention: block_table must have numbers below the ", num_pages, " pages of key, got ",
                        table[n][i], " for page ", i, " of batch entry ", n);
}

/// The common size of two tensors that are broadcast against each other.
inline std::int64_t common_size(const char* what, const char* name, std::int64_t size, const char* other_name,
                                std::int64_t other_size) {
  TORCH_CHECK_VALUE(size == other_size || size == 1 || other_size == 1, "attend::attention: the ", what, " of ", name,
                    " (", size, ") must equal that of ", other_name, " (", other_size, "), or one of them must be 1");
  return size == 1 ? other_size : size;
}

/// Brings query, key and value to 4 dimensions and common batch sizes and heads, without a copy. `value` is undefined
/// if the call has none. `table` is the block_table, or undefined; with it key and value have no batch size.
inline void broadcast(at::Tensor& query, at::Tensor& key, at::Tensor& value, const at::Tensor& table) {
  const auto each = [&](const auto& change) {
    for (at::Tensor* tensor : {&query, &key, &value})
      if (tensor->defined()) change(*tensor);
  };
  each([](at::Tensor& tensor) {
    while (tensor.dim() < 4) tensor = tensor.unsqueeze(0);
  });
  std::int64_t batch =
      table.defined() ? table.size(0) : common_size("batch size", "key", key.size(0), "query", query.size(0));
  std::int64_t kv_heads = key.size(1);
  if (value.defined()) {
    if (!table.defined()) batch = common_size("batch size", "value", value.size(0), "query and key", batch);
    kv_heads = common_size("number of heads", "value", value.size(1), "key", kv_heads);
  }
  const std::int64_t heads = query.size(1) == 1 ? kv_heads : query.size(1);
  TORCH_CHECK_VALUE(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0, "attend::attention: the heads of query (",
                    query.size(1), ") must be a multiple of the heads of key (", kv_heads, "), or 1");
  each([&](at::Tensor& tensor) {
    const std::int64_t own_heads = &tensor == &query ? heads : kv_heads;
    const std::int64_t own_batch = &tensor == &query || !table.defined() ? batch : tensor.size(0);
    if (tensor.size(0) != own_batch || tensor.size(1) != own_heads)
      tensor = tensor.expand({own_batch, own_heads, -1, -1});
  });
}

/// Whether the backend rotates queries and keys when it loads them. Without values there is none.
inline bool leaves_rotation_to_backend(const Problem& problem) {
  if (!problem.has_rotary() || !problem.value.defined() || problem.given_backend == nullptr) return false;
  for (const at::Tensor* table : {&problem.query_cos, &problem.query_sin, &problem.key_cos, &problem.key_sin})
    if (needs_gradient(*table) || table->_fw_grad(/*level=*/0).defined()) return false;
  return problem.given_backend->rotates(problem);
}

/// Checks a call, and fills a problem. `given_value` is null if the call has none.
inline Problem checked_problem(const at::Tensor& given_query, const at::Tensor& given_key,
                               const at::Tensor* given_value, const AttentionOptions& options,
                               Purpose purpose = Purpose::kCompute) {
  check_attention_tensor("query", given_query, "(N, H, L, D)");
  check_attention_tensor("key", given_key, "(N, G, S, D)");
  if (given_value != nullptr) check_attention_tensor("value", *given_value, "(N, G, S, Dv)");
  Problem problem;
  problem.dimensions = given_query.dim();
  problem.given_backend = given_backend(options.backend());
  problem.query = autocast(given_query, purpose);
  problem.key = autocast(given_key, purpose);
  check_same_kind("key", problem.key, problem.query);
  if (given_value != nullptr) {
    problem.value = autocast(*given_value, purpose);
    check_same_kind("value", problem.value, problem.query);
    TORCH_CHECK_VALUE(given_value->size(-2) == given_key.size(-2), "attend::attention: value ", given_value->sizes(),
                      " must have the length of key ", given_key.sizes());
  }
  TORCH_CHECK_VALUE(given_key.size(-1) == given_query.size(-1), "attend::attention: key ", given_key.sizes(),
                    " must have the width of query ", given_query.sizes());
  TORCH_CHECK_VALUE(given_query.size(-1) >= 1, "attend::attention: the width of query must be at least 1, got ",
                    given_query.sizes());
  if (options.block_table().defined())
    problem.block_table = checked_block_table(options, problem.query, problem.key, problem.value);
  broadcast(problem.query, problem.key, problem.value, problem.block_table);
  const at::Tensor& query = problem.query;

  problem.window = checked_window(options, problem);
  problem.scale = options.scale().factor(query.size(3));
  TORCH_CHECK_VALUE(std::isfinite(problem.scale), "attend::attention: scale must be finite, got ", problem.scale);
  problem.softcap = options.softcap();
  TORCH_CHECK_VALUE(std::isfinite(problem.softcap) && problem.softcap >= 0.0,
                    "attend::attention: softcap must be positive, or 0 for none, got ", problem.softcap);
  if (query.scalar_type() != at::kDouble) {
    using Limits = std::numeric_limits<float>;
    TORCH_CHECK_VALUE(std::abs(problem.scale) <= Limits::max(),
                      "attend::attention: scale must be finite in float32, in which ", query.scalar_type(),
                      " is computed, got ", problem.scale);
    TORCH_CHECK_VALUE(
        problem.softcap == 0.0 || (problem.softcap >= Limits::min() && problem.softcap <= Limits::max()),
        "attend::attention: softcap must be 0 (none) or from 1.2e-38 to 3.4e38, the range of float32, in which ",
        query.scalar_type(), " is computed, got ", problem.softcap);
  }
  problem.dropout = options.dropout();
  TORCH_CHECK_VALUE(problem.dropout >= 0.0 && problem.dropout <= 1.0,
                    "attend::attention: dropout must be a probability from 0 to 1, got ", problem.dropout);
  if (options.attn_mask().defined()) {
    check_dense("attend::attention", "attn_mask", options.attn_mask());
    problem.attn_mask = checked_mask(options.attn_mask(), problem, purpose);
  }
  if (options.alibi_slopes().defined()) problem.alibi_slopes = checked_slopes(options.alibi_slopes(), problem);
  if (options.query_offsets().defined() || options.key_offsets().defined()) {
    TORCH_CHECK_VALUE(options.query_offsets().defined() && options.key_offsets().defined(),
                      "attend::attention: query_offsets and key_offsets must be given together");
    TORCH_CHECK_VALUE(problem.batch_size() == 1, "attend::attention: a packed batch must have N = 1, got ",
                      query.sizes());
    problem.query_offsets =
        checked_offsets("query_offsets", options.query_offsets(), "L", problem.query_length(), query);
    problem.key_offsets = checked_offsets("key_offsets", options.key_offsets(), "S", problem.key_length(), query);
    TORCH_CHECK_VALUE(problem.query_offsets.size(0) == problem.key_offsets.size(0), "attend::attention: query_offsets ",
                      problem.query_offsets.sizes(), " and key_offsets ", problem.key_offsets.sizes(),
                      " must have the same length");
  }
  if (options.key_lengths().defined()) {
    TORCH_CHECK_VALUE(!problem.is_packed(),
                      "attend::attention: key_lengths cannot be combined with query_offsets and key_offsets");
    problem.key_lengths = checked_key_lengths(options.key_lengths(), problem);
  }
  if (problem.has_pages()) check_pages(problem);
  set_rotary(options, problem);
  return leaves_rotation_to_backend(problem) ? problem : rotated(std::move(problem), purpose);
}

/// Checks a call that has no values.
inline Problem scores_problem(const at::Tensor& query, const at::Tensor& key, const AttentionOptions& options) {
  return checked_problem(query, key, nullptr, options);
}

/// Throws c10::ValueError for tensors on the device meta, which have no data. explain() accepts them.
inline void check_has_data(const Problem& problem) {
  TORCH_CHECK_VALUE(!problem.query.is_meta(),
                    "attend::attention: query must have data, got a tensor on the device meta");
}

/// A result with as many dimensions as the caller's query has.
inline at::Tensor as_given(at::Tensor result, const Problem& problem) {
  for (std::int64_t d = problem.dimensions; d < 4 && result.defined(); ++d) result = result.squeeze(0);
  return result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
