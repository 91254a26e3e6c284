// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether `count` floating-point numbers are finite. They are passed as integers with the same bits. `exponent` has
/// the bits of the exponent, which are all set in NaN and ±∞.
template <class Bits>
bool are_finite(const Bits* numbers, std::int64_t count, Bits exponent) {
  constexpr std::int64_t kRun = 16;           // a constant number of steps, so that the compilers make vectors of them
  const auto carry = [exponent](Bits bits) {  // the sign bit is set if all bits of the exponent are
    return static_cast<Bits>((bits & exponent) + (exponent & -exponent));
  };
  Bits carries[kRun] = {}, all = 0;
  std::int64_t i = 0;
  for (; i + kRun <= count; i += kRun)
    for (std::int64_t k = 0; k < kRun; ++k) carries[k] |= carry(numbers[i + k]);
  for (; i < count; ++i) all |= carry(numbers[i]);
  for (const Bits each : carries) all |= each;
  return (all & static_cast<Bits>(exponent << 1) & ~exponent) == 0;
}

/// Whether all numbers of a floating-point tensor on the CPU are finite. It reads memory once, and allocates none
/// unless the tensor has gaps.
inline bool is_finite(const at::Tensor& given) {
  const at::Tensor tensor = given.is_non_overlapping_and_dense() ? given : given.contiguous();
  const void* const data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return are_finite(static_cast<const std::uint64_t*>(data), tensor.numel(), std::uint64_t{0x7FF0'0000'0000'0000});
    case at::kFloat:
      return are_finite(static_cast<const std::uint32_t*>(data), tensor.numel(), std::uint32_t{0x7F80'0000});
    case at::kBFloat16:
      return are_finite(static_cast<const std::uint16_t*>(data), tensor.numel(), std::uint16_t{0x7F80});
    default:
      return are_finite(static_cast<const std::uint16_t*>(data), tensor.numel(), std::uint16_t{0x7C00});
  }
}

/// Whether a tensor of float32 or float64 on the CPU holds a 0.
inline bool holds_zero(const at::Tensor& given) {
  const at::Tensor tensor = given.contiguous();
  const auto holds = [&tensor](const auto* numbers) {
    bool is_found = false;
    for (std::int64_t i = 0; i < tensor.numel(); ++i) is_found |= numbers[i] == 0;
    return is_found;
  };
  const void* const data = tensor.const_data_ptr();
  return tensor.scalar_type() == at::kDouble ? holds(static_cast<const double*>(data))
                                             : holds(static_cast<const float*>(data));
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
