// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/elementary.h>
#include <attend/version.h>

#include <cstdint>
#include <cstring>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {  // to nearest, ties to even
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = value != value ? 0x7FC0 : static_cast<std::uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  template <class T>
  explicit operator T() const {
    const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return static_cast<T>(value);
  }
};

/// Floats, in a vector of the compiler's, to the words whose lower halves are bfloat16: to nearest, ties to even.
template <class Vector, class Words>
ATTEND_ALWAYS_INLINE void round_to_bfloat16(const Vector& values, Words& rounded) {
  const Words bits = (Words)values;
  rounded = values == values ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7FC0;
}

/// Four neighbouring floats, or bfloat16 on the way to and from memory: every processor has registers of four, and
/// reading and writing the caller's tensors four by four is fast enough.
struct Four {
  typedef float Vector __attribute__((vector_size(16)));
  typedef std::uint32_t Words __attribute__((vector_size(16)));
  typedef std::uint16_t Halves __attribute__((vector_size(8)));

  Vector values;

  static ATTEND_ALWAYS_INLINE Four load(const float* from) {
    Four four;
    std::memcpy(&four.values, from, sizeof four.values);
    return four;
  }
  static ATTEND_ALWAYS_INLINE Four load(const BFloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return {(Vector)(__builtin_convertvector(halves, Words) << 16)};
  }
  ATTEND_ALWAYS_INLINE void store(float* to) const { std::memcpy(to, &values, sizeof values); }
  ATTEND_ALWAYS_INLINE void store(BFloat16* to) const {
    Words rounded;
    round_to_bfloat16(values, rounded);
    const Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(to, &halves, sizeof halves);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
