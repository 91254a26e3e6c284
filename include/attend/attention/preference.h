// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/aten_attention.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/refused.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether the call has so few queries that ATen's kernels are faster, if a gradient is needed. The limits are those of
/// benchmarks/results/backends.md and backends_avx2.md.
inline bool has_few_queries_with_gradient(const Problem& problem, bool has_avx512) {
  const std::int64_t queries = problem.query_length(), keys = problem.key_length();
  if (problem.query.scalar_type() == at::kDouble) return queries <= (has_avx512 ? 4 : 8);
  if (problem.query.scalar_type() != at::kFloat || keys < 64) return false;
  const std::int64_t all_keys = problem.batch_size() * problem.num_heads() * keys;
  return queries == 1 || (has_avx512 ? queries <= 4 && all_keys >= 1 << 14 : queries <= 8 && all_keys >= 1 << 11);
}

/// The same if no gradient is needed.
inline bool has_few_queries_without_gradient(const Problem& problem, bool has_avx512) {
  const std::int64_t queries = problem.query_length(), keys = problem.key_length();
  const bool is_grouped = problem.num_kv_heads() != problem.num_heads();
  switch (problem.query.scalar_type()) {
    case at::kFloat:
      if (has_avx512) return queries > 1 && queries <= 8 && keys > 8 && keys <= 64 && problem.may_mask();
      if (queries <= 8) return keys > 8 && keys <= (queries > 4 ? 256 : 64);
      return keys >= 512 && (queries <= 12 || (queries <= 32 && !is_grouped));
    case at::kDouble:
      if (has_avx512) return queries == 1 && keys <= 64;
      return queries <= 8 ? keys <= 256 : queries <= 12 && keys >= 512 && !is_grouped;
    case at::kHalf:
      // attend's kernels convert all keys and values to float32 first.
      return queries <= 32 && (is_grouped ? problem.key.numel() > 1 << 23 : problem.key.numel() >= 1 << 22);
    default:
      return false;
  }
}

/// Whether the call has so few queries that ATen's kernels are faster.
inline bool has_few_queries(const Problem& problem) {
  const bool has_avx512 = available_instruction_set() >= simd::InstructionSet::kAvx512;
  const bool with_gradient =
      needs_gradient(problem.query) || needs_gradient(problem.key) || needs_gradient(problem.value);
  return with_gradient && problem.query.scalar_type() != at::kHalf
             ? has_few_queries_with_gradient(problem, has_avx512)
             : has_few_queries_without_gradient(problem, has_avx512);
}

/// Whether the next backend is faster than this one, which can run. If so, kAuto takes the next one if it can run, and
/// `reason` gets a sentence unless it is null.
///
/// The answer is true for kCpu in these cases (benchmarks/results/backends.md and backends_zen.md):
/// - There are few queries: has_few_queries() has the limits.
/// - The instruction set is kPortable.
/// - The speed of the kernels was never measured with this instruction set.
///
/// It is true for kSdpa on a GPU where an operator would be called that has never run on one: benchmarks/results/gpu.md
/// must say that its test has passed.
inline bool is_next_faster(Backend backend, const Problem& problem, std::string* reason = nullptr) {
  if (backend == Backend::kSdpa && !problem.query.is_cpu() && AtenAttention::is_needed(problem))
    return !refused(reason, "kSdpa can run, but this call was never tested on a GPU.");
  if (backend != Backend::kCpu) return false;
  if (has_few_queries(problem))
    return !refused(reason, "kCpu can run, but kSdpa is faster for so few queries (L = ", problem.query_length(), ").");
  if (available_instruction_set() == simd::InstructionSet::kPortable)
    return !refused(reason, "kCpu can run, but kSdpa is faster without AVX2 or AVX-512.");
  if (!is_measured(available_instruction_set()))
    return !refused(reason, "kCpu can run, but its speed on this kind of processor was never measured.");
  return false;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
