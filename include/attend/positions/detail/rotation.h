// SPDX-License-Identifier: MIT
#pragma once

#include <attend/positions/rotary_layout.h>
#include <attend/version.h>

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The rotation of rotate(), after its checks.
class Rotation {
 public:
  Rotation(const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& x, RotaryLayout layout)
      : cos_(as_4d(cos, x)), sin_(as_4d(sin, x)), layout_(layout) {}

  /// x (N, H, L, D) to the same sizes.
  at::Tensor apply_to(const at::Tensor& x) const { return by_torch(x); }

 private:
  /// (N or 1, H or 1, L, R/2), in the dtype of the products.
  static at::Tensor as_4d(const at::Tensor& table, const at::Tensor& x) {
    const at::Tensor converted = table.to(at::toOpMathType(x.scalar_type()));
    if (table.dim() == 2) return converted.unsqueeze(0).unsqueeze(0);
    return table.dim() == 3 ? converted.unsqueeze(1) : converted;
  }

  at::Tensor by_torch(const at::Tensor& x) const {
    const std::int64_t pairs = cos_.size(3), rotated_width = 2 * pairs, rest = x.size(3) - rotated_width;
    const at::Tensor numbers = x.narrow(3, 0, rotated_width).to(cos_.scalar_type());
    const bool is_split = layout_ == RotaryLayout::kHalfSplit;
    const at::Tensor a = is_split ? numbers.narrow(3, 0, pairs) : numbers.slice(3, 0, rotated_width, 2);
    const at::Tensor b = is_split ? numbers.narrow(3, pairs, pairs) : numbers.slice(3, 1, rotated_width, 2);
    const at::Tensor rotated_a = a * cos_ - b * sin_, rotated_b = b * cos_ + a * sin_;
    const at::Tensor rotated =
        (is_split ? at::cat({rotated_a, rotated_b}, 3) : at::stack({rotated_a, rotated_b}, 4).flatten(3))
            .to(x.scalar_type());
    return rest == 0 ? rotated : at::cat({rotated, x.narrow(3, rotated_width, rest)}, 3);
  }

  at::Tensor cos_, sin_;
  RotaryLayout layout_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
