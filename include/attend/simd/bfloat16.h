// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// Rounds floats to bfloat16: to nearest, ties to even. NaN becomes 0x7FC0. `values` is a float and `rounded` a 32-bit
/// word, or both are vectors of them. Each result is in the lower half of its word.
template <class Floats, class Words>
ATTEND_ALWAYS_INLINE void round_to_bfloat16(const Floats& values, Words& rounded) {
  const Words bits = __builtin_bit_cast(Words, values);
  rounded = values == values ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7FC0;
}

/// A bfloat16 number: the upper half of a float.
struct BFloat16 {
  std::uint16_t bits;

  BFloat16() = default;
  /// Rounds as round_to_bfloat16().
  explicit BFloat16(float value) {
    std::uint32_t rounded;
    round_to_bfloat16(value, rounded);
    bits = static_cast<std::uint16_t>(rounded);
  }
  /// The same number as a float or double: exact.
  template <class T>
  explicit operator T() const {
    return static_cast<T>(__builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16));
  }
};

/// Two neighbouring bfloat16 numbers, the first in the lower half.
using Bf16x2 = std::uint32_t;

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
