// SPDX-License-Identifier: MIT
#pragma once

// The functions that every call of attention goes through. attention.h defines them inline (calls_impl.h). In a program
// that links attend::compiled that library holds them, and the program's own files do not compile the kernels.

#include <attend/attention/backend.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/options.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Checks a call and makes it a problem.
ATTEND_INLINE Problem attention_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const AttentionOptions& options, Purpose purpose = Purpose::kCompute);

/// Computes a problem.
ATTEND_INLINE AttentionResult run(Problem problem, Backend asked_for);

/// Says how run() would compute a problem.
ATTEND_INLINE Explanation explain(const Problem& problem, Backend asked_for);

/// The weights of a call without values.
ATTEND_INLINE at::Tensor weights(const at::Tensor& query, const at::Tensor& key, const AttentionOptions& options);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
