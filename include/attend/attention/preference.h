// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu.h>
#include <attend/attention/cpu/available_instruction_set.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/sdpa.h>
#include <attend/detail/refused.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether ATen's kernels are faster for so few queries. The limits are those of benchmarks/results/backends.md.
inline bool has_few_queries(const Problem& problem) {
  const std::int64_t queries = problem.query_length(), keys = problem.key_length();
  const at::ScalarType dtype = problem.query.scalar_type();
  if (needs_gradient(problem.query) || needs_gradient(problem.key) || needs_gradient(problem.value)) {
    const std::int64_t rows = problem.batch_size() * problem.num_heads();
    return dtype == at::kFloat && (queries == 1 ? keys >= 64 : queries <= 4 && rows * keys >= 1 << 14);
  }
  if (dtype == at::kFloat) return queries <= 8 || (queries <= 12 && keys >= 512);
  if (dtype == at::kBFloat16) return Cpu::has_pairs() && queries == 2 && keys >= 512;  // ATen is slow for one query
  if (dtype != at::kHalf || problem.key.numel() < 1 << 22) return false;
  // Our kernels convert all keys and values to float32 first.
  const bool is_grouped = problem.num_kv_heads() != problem.num_heads();
  return queries <= 32 && !(is_grouped && problem.key.numel() <= 1 << 23);
}

/// Whether to pass over kCpu, which could run, because ATen's kernels can run too and are faster; with the reason. That
/// is so in float64; without AVX2 or AVX-512; and for few queries, because our kernels compute blocks of 64 queries.
/// Measured in benchmarks/results/backends.md and backends_zen.md.
inline bool is_sdpa_faster(const Problem& problem, std::string* reason = nullptr) {
  const bool is_double = problem.query.scalar_type() == at::kDouble;
  const bool is_portable = available_instruction_set() == cpu::InstructionSet::kBaseline;
  const bool is_short = has_few_queries(problem);
  if (!(is_double || is_portable || is_short) || !Sdpa::can_run(problem)) return false;
  if (is_short)
    return !refused(reason, "kCpu can run, but kSdpa is faster for so few queries (L = ", problem.query_length(), ").");
  if (is_double) return !refused(reason, "kCpu can run, but kSdpa is faster in float64.");
  return !refused(reason, "kCpu can run, but kSdpa is faster without AVX2 or AVX-512.");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
