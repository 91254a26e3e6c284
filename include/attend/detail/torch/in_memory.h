// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tensor with its elements in memory at data_ptr(). It may be undefined.
///
/// It is a copy if the memory holds the negatives of the elements, or if the tensor is a zero tensor without memory.
/// Some derivatives of torch are such zero tensors, for example the derivative of sgn and the second derivative of abs.
inline at::Tensor in_memory(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (tensor._is_zerotensor()) return tensor.clone();
  return tensor.is_neg() ? tensor.resolve_neg() : tensor;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
