// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// The value of a float16 number: exact.
inline float float_of_float16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const int exponent = (bits >> 10) & 0x1F;
  const std::uint32_t fraction = bits & 0x3FF;
  if (exponent == 0) {  // zero or subnormal
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t widened = exponent == 31 ? 255 : static_cast<std::uint32_t>(exponent) + 112;
  return __builtin_bit_cast(float, sign | widened << 23 | fraction << 13);
}

/// Rounds to float16: to nearest, ties to even. NaN becomes 0x7FFF, as on a GPU.
inline std::uint16_t float16_of_float(float value) {
  if (value != value) return 0x7FFF;
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65536 and more
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, to which rint() rounds
    const float steps = std::rint(std::ldexp(__builtin_bit_cast(float, magnitude), 24));
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps));
  }
  const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1) - (112u << 23);  // may carry to infinity
  return static_cast<std::uint16_t>(sign | rounded >> 13);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
