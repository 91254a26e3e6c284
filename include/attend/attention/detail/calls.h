// SPDX-License-Identifier: MIT
#pragma once

// The functions that every call of attention goes through. attention.h defines them inline (calls_impl.h). If a program
// links attend::compiled, this library holds them, and the files of the program do not compile the kernels.

#include <attend/attention/backend.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/options.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// Called by attention.h. They hide the Problem, so that the files that call attention() do not compile its destructor.

ATTEND_INLINE AttentionResult attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const AttentionOptions& options, bool with_lse);
ATTEND_INLINE at::Tensor attention_weights(const at::Tensor& query, const at::Tensor& key,
                                           const AttentionOptions& options);
ATTEND_INLINE Explanation explain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  const AttentionOptions& options, bool with_lse);

// Called by flex_attention.h, which adds a variant to the problem.

/// Checks a call and makes a problem of it.
ATTEND_INLINE Problem attention_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const AttentionOptions& options, Purpose purpose = Purpose::kCompute);

/// Computes a problem.
ATTEND_INLINE AttentionResult run(Problem problem, Backend asked_for);

/// Says how run() would compute a problem.
ATTEND_INLINE Explanation explain(const Problem& problem, Backend asked_for);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
