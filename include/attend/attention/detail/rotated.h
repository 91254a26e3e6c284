// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/rotation.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/without_data.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The numbers of `tensor` that differ: expanded heads once, and expanded batch entries once if they share the tables.
inline at::Tensor one_copy_for(at::Tensor tensor, const at::Tensor& cos) {
  if (is_expanded(tensor, 1)) tensor = tensor.narrow(1, 0, 1);
  return cos.size(0) == 1 && is_expanded(tensor, 0) ? tensor.narrow(0, 0, 1) : tensor;
}

/// The problem with rotated queries and keys, and without the tables. For kExplain the rotated tensors have no data.
inline Problem rotated(Problem problem, Purpose purpose = Purpose::kCompute) {
  if (!problem.has_rotary()) return problem;
  const auto rotate = [&](at::Tensor& tensor, at::Tensor& cos, at::Tensor& sin) {
    const at::Tensor once = one_copy_for(tensor, cos);
    const at::Tensor result = purpose == Purpose::kExplain
                                  ? without_data(once.sizes(), once.options(),
                                                 once.requires_grad() || cos.requires_grad() || sin.requires_grad())
                                  : Rotation::apply_to(once, cos, sin, problem.rotary_layout);
    tensor = result.expand(tensor.sizes());
    cos = sin = at::Tensor();
  };
  rotate(problem.query, problem.query_cos, problem.query_sin);
  rotate(problem.key, problem.key_cos, problem.key_sin);
  return problem;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
