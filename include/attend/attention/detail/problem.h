// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/options.h>

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>

namespace attend::detail {

/// One call of attention(), checked: what every backend is given.
///
/// The tensors are the caller's, with the caller's strides; a backend copies what it cannot read in place.
struct Problem {
  at::Tensor query;      // (N, H, L, D)
  at::Tensor key;        // (N, G, S, D)
  at::Tensor value;      // (N, G, S, Dv)
  at::Tensor attn_mask;  // undefined, or 4-d and broadcastable to (N, H, L, S): bool, or of the query's dtype
  bool is_causal = false;
  double scale = 1.0;

  std::int64_t batch_size() const { return query.size(0); }
  std::int64_t num_heads() const { return query.size(1); }
  std::int64_t num_kv_heads() const { return key.size(1); }
  std::int64_t query_length() const { return query.size(2); }
  std::int64_t key_length() const { return key.size(2); }
  std::int64_t head_width() const { return query.size(3); }
  std::int64_t value_width() const { return value.size(3); }

  /// Whether a backward pass through the mask may follow; most fused kernels have none.
  bool mask_needs_gradient() const {
    return attn_mask.defined() && attn_mask.requires_grad() && c10::GradMode::is_enabled();
  }
};

inline void check_attention_tensor(const char* name, const at::Tensor& tensor, const char* shape) {
  TORCH_CHECK_VALUE(tensor.defined(), "attend::attention: ", name, " must be a tensor ", shape,
                    ", got an undefined one");
  TORCH_CHECK_VALUE(tensor.dim() == 4, "attend::attention: ", name, " must be 4-d ", shape, ", got ", tensor.dim(),
                    "-d ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kFloat ||
                       tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf,
                   "attend::attention: ", name, " must be float64, float32, bfloat16 or float16, got ",
                   tensor.scalar_type());
}

inline void check_same_kind(const char* name, const at::Tensor& tensor, const at::Tensor& query) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), "attend::attention: ", name, " (", tensor.scalar_type(),
                   ") must have the dtype of query (", query.scalar_type(), ")");
  TORCH_CHECK_VALUE(tensor.device() == query.device(), "attend::attention: ", name, " (", tensor.device(),
                    ") must be on the device of query (", query.device(), ")");
}

/// The tensor as autocast wants it: cast to its dtype if autocast is on for the device. float64 is never cast.
inline at::Tensor autocast(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  const c10::DeviceType device = tensor.device().type();
  const bool is_on = at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
  return is_on ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device) : tensor;
}

/// The mask as 4-d: missing leading sizes become 1.
inline at::Tensor checked_mask(at::Tensor mask, const Problem& problem) {
  const std::int64_t full[4] = {problem.batch_size(), problem.num_heads(), problem.query_length(),
                                problem.key_length()};
  TORCH_CHECK_VALUE(mask.dim() >= 2 && mask.dim() <= 4,
                    "attend::attention: attn_mask must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got ",
                    mask.dim(), "-d ", mask.sizes());
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool || mask.scalar_type() == problem.query.scalar_type(),
                   "attend::attention: attn_mask must be bool (true = attend) or have the dtype of query (",
                   problem.query.scalar_type(), "), got ", mask.scalar_type());
  TORCH_CHECK_VALUE(mask.device() == problem.query.device(), "attend::attention: attn_mask (", mask.device(),
                    ") must be on the device of query (", problem.query.device(), ")");
  const at::Tensor given = mask;
  while (mask.dim() < 4) mask = mask.unsqueeze(0);
  for (int i = 0; i < 4; ++i) {
    TORCH_CHECK_VALUE(mask.size(i) == full[i] || mask.size(i) == 1, "attend::attention: attn_mask ", given.sizes(),
                      " must broadcast to (N, H, L, S) = ", at::IntArrayRef(full, 4));
  }
  return mask;
}

/// Checks query and key, with every rule that concerns them alone, and fills a problem without values.
inline Problem scores_problem(const at::Tensor& given_query, const at::Tensor& given_key,
                              const AttentionOptions& options) {
  const at::Tensor query = autocast(given_query), key = autocast(given_key);
  check_attention_tensor("query", query, "(N, H, L, D)");
  check_attention_tensor("key", key, "(N, G, S, D)");
  check_same_kind("key", key, query);
  TORCH_CHECK_VALUE(key.size(0) == query.size(0), "attend::attention: key ", key.sizes(),
                    " must have the batch size of query ", query.sizes());
  TORCH_CHECK_VALUE(key.size(3) == query.size(3), "attend::attention: key ", key.sizes(),
                    " must have the width of query ", query.sizes());
  TORCH_CHECK_VALUE(query.size(3) >= 1, "attend::attention: the width of query must be at least 1, got ",
                    query.sizes());
  TORCH_CHECK_VALUE(key.size(1) >= 1 && query.size(1) >= 1 && query.size(1) % key.size(1) == 0,
                    "attend::attention: the heads of query (", query.size(1),
                    ") must be a multiple of the heads of key (", key.size(1), ")");

  Problem problem;
  problem.query = query;
  problem.key = key;
  problem.is_causal = options.is_causal();
  problem.scale = options.scale().factor(query.size(3));
  TORCH_CHECK_VALUE(std::isfinite(problem.scale), "attend::attention: scale must be finite, got ", problem.scale);
  if (options.attn_mask().defined()) {
    const bool is_bool = options.attn_mask().scalar_type() == at::kBool;
    problem.attn_mask = checked_mask(is_bool ? options.attn_mask() : autocast(options.attn_mask()), problem);
  }
  return problem;
}

/// Checks a whole call.
inline Problem attention_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& given_value,
                                 const AttentionOptions& options) {
  Problem problem = scores_problem(query, key, options);
  const at::Tensor value = autocast(given_value);
  check_attention_tensor("value", value, "(N, G, S, Dv)");
  check_same_kind("value", value, problem.query);
  TORCH_CHECK_VALUE(value.sizes().slice(0, 3) == key.sizes().slice(0, 3), "attend::attention: value ", value.sizes(),
                    " must have the batch size, heads and length of key ", key.sizes());
  problem.value = value;
  return problem;
}

}  // namespace attend::detail
