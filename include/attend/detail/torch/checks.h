// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/check_dense.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Throws c10::ValueError unless a size that an option sets is at least 1.
inline void check_positive(const char* layer, const char* name, std::int64_t value) {
  TORCH_CHECK_VALUE(value >= 1, layer, ": ", name, " (", value, ") must be at least 1");
}

/// Throws unless an input is defined (c10::ValueError) and dense (c10::TypeError).
inline void check_tensor(const char* layer, const char* name, const torch::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), layer, ": ", name, " must be a tensor, got an undefined one");
  check_dense(layer, name, tensor);
}

inline void check_device(const char* layer, const char* name, const torch::Tensor& tensor,
                         const torch::Tensor& weight) {
  TORCH_CHECK_VALUE(tensor.device() == weight.device(), layer, ": ", name, " (", tensor.device(),
                    ") must be on the device of the weights (", weight.device(),
                    "); move one of them with .to(device)");
}

/// Throws unless a tensor has the device (c10::ValueError) and the dtype (c10::TypeError) of the layer's weights, after
/// the casts of autocast. Autocast does not cast float64.
inline void check_fits_weights(const char* layer, const char* name, const torch::Tensor& tensor,
                               const torch::Tensor& weight) {
  check_device(layer, name, tensor, weight);
  TORCH_CHECK_TYPE(dtype_under_autocast(tensor) == dtype_under_autocast(weight), layer, ": ", name, " (",
                   tensor.scalar_type(), ") must have the dtype of the weights (", weight.scalar_type(),
                   "); convert one of them with .to(dtype)",
                   can_be_autocast(tensor) && can_be_autocast(weight) ? ", or turn on autocast" : "");
}

/// The rules of layers that take tokens (…, width): this width, and the dtype and device of the layer's weights.
inline void check_tokens(const char* layer, const torch::Tensor& x, std::int64_t width, const char* width_name,
                         const torch::Tensor& weight) {
  check_tensor(layer, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == width, layer, ": the last size of x must be ", width_name, " (",
                    width, "), got ", x.sizes());
  check_fits_weights(layer, "x", x, weight);
}

/// Checks a signal (N, C, L), or (N, L, C) with batch_first, with any number of channels: it must be dense and 3-d,
/// with L ≥ 1.
inline void check_signal(const char* layer, const torch::Tensor& x, bool batch_first) {
  const char* const sizes = batch_first ? "(N, L, C)" : "(N, C, L)";
  TORCH_CHECK_VALUE(x.defined(), layer, ": x must be a tensor ", sizes, ", got an undefined one");
  check_dense(layer, "x", x);
  TORCH_CHECK_VALUE(x.dim() == 3, layer, ": x must be 3-d ", sizes, ", got ", x.dim(), "-d ", x.sizes());
  TORCH_CHECK_VALUE(x.size(batch_first ? 1 : 2) >= 1, layer, ": x must have a length of at least 1, got ", x.sizes());
}

/// Checks a channels-first signal (N, channels, L): it must be dense and 3-d, with this number of channels, L ≥ 1, and
/// the dtype and device of the layer's weights.
inline void check_signal(const char* layer, const torch::Tensor& x, std::int64_t channels,
                         const torch::Tensor& weight) {
  TORCH_CHECK_VALUE(x.defined(), layer, ": x must be a tensor (N, ", channels, ", L), got an undefined one");
  check_dense(layer, "x", x);
  TORCH_CHECK_VALUE(x.dim() == 3, layer, ": x must be 3-d (N, ", channels, ", L), got ", x.dim(), "-d ", x.sizes());
  TORCH_CHECK_VALUE(x.size(1) == channels, layer, ": x must have ", channels, " channels (N, ", channels, ", L), got ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.size(2) >= 1, layer, ": x must have a length of at least 1, got ", x.sizes());
  check_fits_weights(layer, "x", x, weight);
}

/// Checks an image (N, channels, height, width) in the same way.
inline void check_image(const char* layer, const torch::Tensor& x, std::int64_t channels, const torch::Tensor& weight) {
  TORCH_CHECK_VALUE(x.defined(), layer, ": x must be a tensor (N, ", channels,
                    ", height, width), got an undefined one");
  check_dense(layer, "x", x);
  TORCH_CHECK_VALUE(x.dim() == 4, layer, ": x must be 4-d (N, ", channels, ", height, width), got ", x.dim(), "-d ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.size(1) == channels, layer, ": x must have ", channels, " channels (N, ", channels,
                    ", height, width), got ", x.sizes());
  TORCH_CHECK_VALUE(x.size(2) >= 1 && x.size(3) >= 1, layer, ": x must have a height and width of at least 1, got ",
                    x.sizes());
  check_fits_weights(layer, "x", x, weight);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
