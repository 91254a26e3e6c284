// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/rotation.h>
#include <attend/detail/torch/check_dense.h>
#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

inline void check_rotation(const char* name, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto check = [name](const char* which, const at::Tensor& tensor, const char* shape) {
    TORCH_CHECK_VALUE(tensor.defined(), name, ": ", which, " must be a tensor ", shape, ", got an undefined one");
    check_dense(name, which, tensor);
    TORCH_CHECK_TYPE(tensor.is_floating_point(), name, ": ", which, " (", tensor.scalar_type(),
                     ") must have a floating dtype");
  };
  check("x", x, "(N, H, L, D)");
  TORCH_CHECK_VALUE(x.dim() == 4, name, ": x must be 4-d (N, H, L, D), got ", x.dim(), "-d ", x.sizes());
  check("cos", cos, "(L, R/2)");
  check("sin", sin, "(L, R/2)");
  TORCH_CHECK_VALUE(cos.sizes() == sin.sizes(), name, ": cos ", cos.sizes(), " and sin ", sin.sizes(),
                    " must have the same sizes");
  TORCH_CHECK_VALUE(cos.dim() >= 2 && cos.dim() <= 4, name,
                    ": cos must be (L, R/2), (N, L, R/2) or (N, H, L, R/2), got ", cos.dim(), "-d ", cos.sizes());
  for (const at::Tensor& table : {cos, sin})
    TORCH_CHECK_VALUE(table.device() == x.device(), name, ": cos and sin (", table.device(),
                      ") must be on the device of x (", x.device(), ")");
  TORCH_CHECK_VALUE(cos.size(-2) == x.size(2), name, ": cos ", cos.sizes(), " must have a row for each position of x ",
                    x.sizes());
  TORCH_CHECK_VALUE(cos.size(-1) >= 1 && 2 * cos.size(-1) <= x.size(3), name, ": cos ", cos.sizes(),
                    " must have from 1 to D/2 columns for x ", x.sizes());
  const auto is_one_or = [&](std::int64_t dim, std::int64_t of_x) {
    return cos.size(dim) == 1 || cos.size(dim) == x.size(of_x);
  };
  TORCH_CHECK_VALUE(cos.dim() == 2 || is_one_or(0, 0), name, ": cos ", cos.sizes(), " must have the batch size of x ",
                    x.sizes(), " or 1");
  TORCH_CHECK_VALUE(cos.dim() < 4 || is_one_or(1, 1), name, ": cos ", cos.sizes(), " must have the heads of x ",
                    x.sizes(), " or 1");
}

}  // namespace detail

/// Rotates pairs of numbers in each head by the angles of its position: the rotary embedding of queries or keys.
///
/// Pair i of a head, (a, b), becomes (a · cosᵢ − b · sinᵢ, b · cosᵢ + a · sinᵢ). With kHalfSplit a and b are numbers i
/// and i + R/2. With kInterleaved they are numbers 2i and 2i + 1. The numbers from R on stay unchanged.
///
/// @param x (N, H, L, D): queries or keys, of any floating dtype and any strides.
/// @param cos (L, R/2), (N, L, R/2) or (N, H, L, R/2) with R ≤ D. N and H may be 1 and are then broadcast.
/// @param sin The same sizes as cos.
/// @param layout Which two numbers form a pair. Default: kHalfSplit.
/// @return (N, H, L, D), with the dtype of x. Gradients reach x, cos and sin, and can be differentiated
/// again.
/// @throws c10::ValueError if the sizes or devices do not fit.
/// @throws c10::TypeError if a tensor is not floating-point or not dense.
///
/// The products are computed in float32, and in float64 for a float64 x. Hugging Face's function rounds cos, sin and
/// each product to the dtype of x.
///
/// On the CPU a kernel computes float32, bfloat16 and float64. torch's operations compute other dtypes and devices, and
/// calls whose tables need a gradient.
///
/// Source: Su et al., "RoFormer", 2021.
///
/// @code
/// torch::Tensor frequencies = torch::pow(10000.0, -torch::arange(32) / 32.0);
/// torch::Tensor angles = torch::arange(q.size(2)).unsqueeze(1) * frequencies;  // (L, 32)
/// torch::Tensor rotated = attend::rotate(q, angles.cos(), angles.sin());
/// @endcode
inline at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         RotaryLayout layout = RotaryLayout::kHalfSplit) {
  detail::check_rotation("attend::rotate", x, cos, sin);
  return detail::Rotation::apply_to(x, cos, sin, layout);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
