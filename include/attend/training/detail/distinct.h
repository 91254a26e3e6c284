// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <unordered_set>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tensors in their order, each once. Module::parameters() lists a tensor that two submodules share twice; the
/// Python function lists it once.
inline std::vector<at::Tensor> distinct(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  std::unordered_set<const at::TensorImpl*> seen;
  for (const at::Tensor& tensor : tensors)
    if (seen.insert(tensor.unsafeGetTensorImpl()).second) result.push_back(tensor);
  return result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
