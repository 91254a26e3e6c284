// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>
#include <cstring>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// A bfloat16 number: the upper half of a float.
struct BFloat16 {
  /// Its 16 bits.
  std::uint16_t bits;

  BFloat16() = default;
  /// Rounds to nearest, ties to even.
  explicit BFloat16(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = value != value ? 0x7FC0 : static_cast<std::uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  /// The number itself, without a loss.
  template <class T>
  explicit operator T() const {
    const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return static_cast<T>(value);
  }
};

/// Two neighbouring bfloat16 numbers, the first in the lower half.
using Bf16x2 = std::uint32_t;

/// Rounds a vector of floats to bfloat16: to nearest, ties to even. Each number is in the lower half of a word.
template <class Vector, class Words>
ATTEND_ALWAYS_INLINE void round_to_bfloat16(const Vector& values, Words& rounded) {
  const Words bits = (Words)values;
  rounded = values == values ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7FC0;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
