// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/math.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// Vectors of one register of Isa, which hold kLanes numbers T. Vector is a vector type of the compiler: it has + - * /
/// and comparisons. The functions here add loads, stores and elementary functions. They take vectors by reference,
/// because the calling convention of a vector depends on the instruction set.
template <class T, class Isa>
struct Vec {
  static constexpr int kLanes = Isa::kVectorBytes / sizeof(T);
  using Bits = typename FloatFormat<T>::Bits;

  typedef T Vector __attribute__((vector_size(Isa::kVectorBytes)));
  typedef Bits Integers __attribute__((vector_size(Isa::kVectorBytes)));  ///< one for each number
  typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));  ///< 16 bits for each number
  typedef T Unaligned __attribute__((vector_size(Isa::kVectorBytes), aligned(sizeof(T)), may_alias));  ///< in memory

  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const T* from) {
    vector = *reinterpret_cast<const Unaligned*>(from);
  }
  static ATTEND_ALWAYS_INLINE void store(T* to, const Vector& vector) { *reinterpret_cast<Unaligned*>(to) = vector; }

  /// Converts bfloat16 numbers to floats.
  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const BFloat16* from) requires std::is_same_v<T, float> {
    Integers words;
    load(words, reinterpret_cast<const std::uint16_t*>(from));
    vector = (Vector)(words << 16);
  }
  /// Rounds floats to bfloat16 numbers.
  static ATTEND_ALWAYS_INLINE void store(BFloat16* to, const Vector& vector) requires std::is_same_v<T, float> {
    Integers rounded;
    round_to_bfloat16(vector, rounded);
    store(reinterpret_cast<std::uint16_t*>(to), rounded);
  }

  /// Loads 16-bit words into the lower halves of `words`.
  static ATTEND_ALWAYS_INLINE void load(Integers& words, const std::uint16_t* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    words = __builtin_convertvector(halves, Integers);
  }
  /// Stores the lower halves of `words`.
  static ATTEND_ALWAYS_INLINE void store(std::uint16_t* to, const Integers& words) {
    const Halves halves = __builtin_convertvector(words, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
  }

#if !defined( \
    __CUDA_ARCH__)  // nvcc also reads these for the GPU, where vectors are an error; the host's code is the same
  /// eˣ, for x ≤ 80.
  static ATTEND_ALWAYS_INLINE void exp(Vector& x) { exponential<T, /*kIsBounded=*/true, Integers>(x); }
  static ATTEND_ALWAYS_INLINE void tanh(Vector& x) { hyperbolic_tangent<T, Integers>(x); }
#else
  static void exp(Vector&);
  static void tanh(Vector&);
#endif
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
