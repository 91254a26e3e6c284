// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/expanded.h>
#include <attend/version.h>

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A contiguous tensor that has sizes, dtype and device but no memory. explain() uses it in place of a result that
/// forward() would compute. Like such a result, it requires a gradient if `requires_grad` is true and gradients are
/// recorded. Views of it are allowed. An operation that reads or writes its elements throws.
inline at::Tensor without_data(at::IntArrayRef sizes, const at::TensorOptions& options, bool requires_grad) {
  const at::Tensor tensor = at::empty({0}, options);
  auto bytes = static_cast<std::size_t>(tensor.element_size());
  for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
  const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(nullptr, tensor.device()),
                             /*allocator=*/nullptr, /*resizable=*/false);
  storage.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "attend: explain() must not read or write tensors");
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor.set_requires_grad(requires_grad && c10::GradMode::is_enabled());
}

/// The result of tensor.to(dtype) without its data. A tensor that already has the dtype is returned unchanged.
inline at::Tensor converted_without_data(const at::Tensor& tensor, at::ScalarType dtype) {
  if (!tensor.defined() || tensor.scalar_type() == dtype) return tensor;
  if (is_expanded(tensor)) return converted_without_data(one_copy(tensor), dtype).expand(tensor.sizes());
  const at::Tensor result = without_data(tensor.sizes(), tensor.options().dtype(dtype), tensor.requires_grad());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(),
                                                      at::infer_dense_strides(tensor.sizes(), tensor.strides()));
  return result;
}

/// The result of torch::linear(x, weight, bias) without its data, under autocast too.
inline at::Tensor linear_without_data(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) {
  std::vector<std::int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  const bool requires_grad = x.requires_grad() || weight.requires_grad() || (bias.defined() && bias.requires_grad());
  return without_data(sizes, x.options().dtype(dtype_under_autocast(x)), requires_grad);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
