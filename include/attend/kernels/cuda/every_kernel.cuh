// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/version.h>

#include <cstdint>
#include <cstdlib>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// Numbers of columns for which kernels on tensor cores are compiled.
template <int... kWidths>
struct Widths {
  /// Whether there are kernels for heads of this width.
  static constexpr bool has(int width) { return ((width == kWidths) || ...); }
};

/// The kernels on tensor cores that are compiled. A call of another type or width uses the kernels without tensor
/// cores. Each width takes time to compile, so a program may pass a class that names fewer.
struct EveryKernel {
  using BFloat16 = Widths<32, 64, 96, 128, 192, 256>;  ///< of bfloat16
  using Float16 = BFloat16;                            ///< of float16
};

namespace detail {

/// The width of the kernels for this number of columns: at least as large. 0: none is.
constexpr int kernel_width(int columns) {
  for (const int width : {32, 64, 96, 128, 192, 256})
    if (columns <= width) return width;
  return 0;
}

/// Whether each row of a tensor is made of neighbours, and aligned to 16 bytes, for tensors of 16-bit numbers.
inline bool has_aligned_rows(const ConstTensorView4d& tensor) {
  bool is_aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.strides[3] == 1 &&
                    std::abs(tensor.strides[2]) <= std::numeric_limits<std::int32_t>::max();
  for (int i = 0; i < 3; ++i) is_aligned = is_aligned && tensor.strides[i] % 8 == 0;
  return is_aligned;
}

}  // namespace detail
}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
