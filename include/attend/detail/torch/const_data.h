// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/TensorBase.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The elements of a tensor of dtype T.
///
/// Replaces at::TensorBase::const_data_ptr<T>(): clang 18 and newer mangle its name differently from the compilers of
/// LibTorch 2.11 and older, so a program that calls it does not link (pytorch#169926).
template <class T>
const T* const_data(const at::TensorBase& tensor) {
  constexpr c10::ScalarType kDtype = c10::CppTypeToScalarType<T>::value;
  TORCH_CHECK_TYPE(tensor.scalar_type() == kDtype, "attend::detail::const_data: expected a tensor of dtype ", kDtype,
                   ", got ", tensor.scalar_type());
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
