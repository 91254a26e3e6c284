// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/refused.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether ATen's kernels are faster for so few queries. The limits are those of benchmarks/results/backends.md.
inline bool has_few_queries(const Problem& problem) {
  const std::int64_t queries = problem.query_length(), keys = problem.key_length();
  const at::ScalarType dtype = problem.query.scalar_type();
  const bool has_avx512 = available_instruction_set() >= simd::InstructionSet::kAvx512;
  const bool with_gradient =
      needs_gradient(problem.query) || needs_gradient(problem.key) || needs_gradient(problem.value);
  if (dtype == at::kDouble) return queries <= (has_avx512 ? 4 : 8) && (with_gradient || !has_avx512 || keys <= 256);
  if (with_gradient) {
    const std::int64_t rows = problem.batch_size() * problem.num_heads();
    return dtype == at::kFloat && (queries == 1 ? keys >= 64 : queries <= 4 && rows * keys >= 1 << 14);
  }
  if (dtype == at::kFloat) {
    if (queries <= 8 && keys <= 64) return true;
    const bool is_grouped = problem.num_kv_heads() != problem.num_heads();
    if (queries == 1 && !is_grouped && problem.query.size(3) <= 64 && keys < 2048 &&
        problem.batch_size() * problem.num_heads() * keys >= 1 << 15)
      return true;
    return !has_avx512 && queries > 4 && queries <= (keys >= 512 ? 12 : 8);
  }
  if (dtype != at::kHalf || problem.key.numel() < 1 << 22) return false;
  // attend's kernels convert all keys and values to float32 first.
  const bool is_grouped = problem.num_kv_heads() != problem.num_heads();
  return queries <= 32 && !(is_grouped && problem.key.numel() <= 1 << 23);
}

/// Whether the next backend is faster than this one, which can run. If so, kAuto takes the next one if it can run, and
/// `reason` gets a sentence unless it is null.
///
/// The answer is true for kCpu in these cases (benchmarks/results/backends.md and backends_zen.md):
/// - There are few queries, and few keys or a gradient is needed.
/// - The instruction set is kPortable.
/// - The speed of the kernels was never measured with this instruction set.
inline bool is_next_faster(Backend backend, const Problem& problem, std::string* reason = nullptr) {
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
