// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/version.h>

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether each row of a tensor (N, H, L, D) is contiguous, and no row overlaps its neighbours along N, H and L.
/// Exception: batch entries or heads may share their rows, with a stride of 0.
inline bool has_rows(const at::Tensor& tensor) {
  const auto is_apart = [&](int i) { return tensor.size(i) == 1 || tensor.stride(i) >= tensor.size(3); };
  const auto is_repeated = [&](int i) { return tensor.stride(i) == 0; };
  return tensor.stride(3) == 1 && (is_apart(0) || is_repeated(0)) && (is_apart(1) || is_repeated(1)) && is_apart(2);
}

/// The strides of an output (N, H, L, Dv). Its rows lie in memory in the order of the query's rows. If the query does
/// not satisfy has_rows(), they lie in the order (N, H, L).
inline std::array<std::int64_t, 4> output_strides(const Problem& problem) {
  const at::Tensor& query = problem.query;
  const std::int64_t H = problem.num_heads(), L = problem.query_length(), Dv = problem.value_dim();
  std::array<std::int64_t, 4> strides{H * L * Dv, L * Dv, Dv, 1};
  if (query.is_contiguous() || !has_rows(query)) return strides;
  const std::vector<std::int64_t> dense = at::infer_dense_strides(query.sizes(), query.strides());
  for (std::size_t i = 0; i < 3; ++i)
    if (query.sizes()[i] > 1) strides[i] = dense[i] / query.size(3) * Dv;
  return strides;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
