// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/Layout.h>
#include <c10/util/Exception.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Throws c10::TypeError unless the elements of the tensor can be read from memory by its sizes and strides. The tensor
/// must be defined.
inline void check_dense(const char* function, const char* name, const at::Tensor& tensor) {
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet kWrapped{Key::FuncTorchBatched, Key::FuncTorchGradWrapper, Key::Functionalize};
  const c10::DispatchKeySet keys = tensor.key_set();
  TORCH_CHECK_TYPE(!tensor.is_nested(), function, ": ", name, " must be dense, got a nested tensor; pad it first");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, function, ": ", name, " must be dense, got the layout ",
                   tensor.layout(), "; convert it with .to_dense()");
  TORCH_CHECK_TYPE(!tensor.is_quantized(), function, ": ", name, " must not be quantized, got ", tensor.scalar_type(),
                   "; convert it with .dequantize()");
  TORCH_CHECK_TYPE(!keys.has(Key::ZeroTensor), function, ": ", name,
                   " must have memory, got a tensor of zeros that has none; copy it with .clone()");
  TORCH_CHECK_TYPE(!keys.has_any(kWrapped), function, ": ", name,
                   " must have memory of its own, got a tensor wrapped by vmap or another transform of torch");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
