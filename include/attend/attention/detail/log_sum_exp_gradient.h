// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Adds the gradient of the log-sum-exp, for a kernel that has none. D = Dv.
///
/// The derivative of the log-sum-exp by a score is the weight P. So for a gradient g of the log-sum-exp, the query gets
/// scale · g · Σ P · key: scale · g times the output of a call whose values are the keys. The key gets
/// Σ P · scale · g · query: the gradient of the value in a call whose output gradient is scale · g · query.
///
/// `output_of(problem)` computes the output. `value_gradient(output_gradient)` computes the gradient of the value.
template <class OutputOf, class ValueGradient>
void add_log_sum_exp_gradient(const Problem& problem, const at::Tensor& given, AttentionTensors& results,
                              const OutputOf& output_of, const ValueGradient& value_gradient) {
  const at::Tensor gradient = (problem.scale * given).unsqueeze(3);  // (N, H, L, 1)
  Problem averaged = problem;
  averaged.value = problem.key;
  const at::Tensor to_query = gradient * output_of(averaged),
                   to_key = value_gradient((gradient * problem.query).to(problem.query.scalar_type()));
  results.query = results.query.defined() ? results.query + to_query : to_query;
  results.key = results.key.defined() ? results.key + to_key : to_key;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
