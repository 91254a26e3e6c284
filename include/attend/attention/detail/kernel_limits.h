// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/refused.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether a backward pass to any tensor of the problem may follow.
inline bool needs_backward(const Problem& problem) {
  return needs_gradient(problem.query) || needs_gradient(problem.key) || needs_gradient(problem.value) ||
         needs_gradient(problem.attn_mask) || needs_gradient(problem.alibi_slopes) ||
         std::any_of(problem.variant_tensors.begin(), problem.variant_tensors.end(), needs_gradient);
}

/// Whether the sizes of a problem fit attend's own kernels, for the CPU and for CUDA. `name` is the backend's, for the
/// reason.
inline bool fits_kernels(const char* name, const Problem& problem, std::string* reason) {
  if (problem.batch_size() == 0 || problem.query_length() == 0 || problem.key_length() == 0)
    return refused(reason, name, " needs at least one batch entry, one query and one key.");
  if (problem.has_pages() && needs_backward(problem))
    return refused(reason, name,
                   " has no backward pass with block_table; use key_lengths without pages, or torch::NoGradGuard if no "
                   "gradient is needed.");
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
  if (std::max(problem.query_length(), problem.key_length()) > kMost)
    return refused(reason, name, " supports at most ", kMost, " queries and keys.");
  constexpr std::int64_t kWidest = 1 << 20;
  if (std::max(problem.head_dim(), problem.value_dim()) > kWidest)
    return refused(reason, name, " supports heads of a width of at most ", kWidest, ".");
  if (std::max(problem.batch_size(), problem.num_heads()) > kMost)
    return refused(reason, name, " supports at most ", kMost, " batch entries and heads.");
  return true;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
