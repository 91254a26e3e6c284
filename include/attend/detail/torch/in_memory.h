// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tensor, with its numbers where data_ptr() says: a copy where they are the negatives of those there, or zeros
/// that have no memory, which some of torch's derivatives are (that of sgn, and so the second one of abs). May be
/// undefined.
inline at::Tensor in_memory(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  return tensor._is_zerotensor() ? tensor.clone() : tensor.resolve_neg();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
