// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/rows.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/ScalarType.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether kernels on rows (kernels/cpu/rows.h) compute this dtype.
inline bool is_element_of_rows(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble;
}

/// Returns work(Element{}) for a dtype for which is_element_of_rows() is true.
template <class Work>
decltype(auto) with_element_of_rows(at::ScalarType dtype, const Work& work) {
  switch (dtype) {
    case at::kFloat:
      return work(float{});
    case at::kDouble:
      return work(double{});
    default:
      return work(cpu::BFloat16{});
  }
}

/// The tensor if the numbers of its last dimension are adjacent, otherwise a copy.
inline at::Tensor with_adjacent_numbers(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous();
}

/// A tensor whose rows have the order of those of `tensor` in memory, and whose numbers in a row are adjacent.
inline at::Tensor empty_rows_like(const at::Tensor& tensor) {
  const at::Tensor result = at::empty_like(tensor);
  return result.stride(-1) == 1 ? result : at::empty(tensor.sizes(), tensor.options());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
