// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether autocast casts tensors of this dtype.
inline bool can_be_autocast(const at::Tensor& x) { return x.is_floating_point() && x.scalar_type() != at::kDouble; }

/// The dtype of x in an operation that autocast covers. If autocast is on, it is the dtype of autocast. float64 and
/// integers keep their dtype.
inline at::ScalarType dtype_under_autocast(const at::Tensor& x) {
  const c10::DeviceType device = x.device().type();
  const bool is_cast =
      at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device) && can_be_autocast(x);
  return is_cast ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
