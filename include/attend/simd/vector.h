// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/math.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// As many numbers as one register holds. The type is the compiler's own vector, which has + - * / and comparisons.
/// These functions add what it lacks. Vectors are passed by reference, because their calling convention depends on the
/// instruction set.
template <class T, class Isa>
struct Vec {
  static constexpr int kLanes = Isa::kVectorBytes / sizeof(T);
  using Bits = typename FloatFormat<T>::Bits;

  typedef T Vector __attribute__((vector_size(Isa::kVectorBytes)));
  typedef Bits Integers __attribute__((vector_size(Isa::kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(Isa::kVectorBytes), aligned(sizeof(T)), may_alias));
  typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));

  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const T* from) {
    vector = *reinterpret_cast<const Unaligned*>(from);
  }
  static ATTEND_ALWAYS_INLINE void store(T* to, const Vector& vector) { *reinterpret_cast<Unaligned*>(to) = vector; }

  /// bfloat16 numbers to floats.
  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const BFloat16* from) requires std::is_same_v<T, float> {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    vector = (Vector)(__builtin_convertvector(halves, Integers) << 16);
  }
  /// Floats to bfloat16 numbers, to nearest, ties to even.
  static ATTEND_ALWAYS_INLINE void store(BFloat16* to, const Vector& vector) requires std::is_same_v<T, float> {
    Integers rounded;
    round_to_bfloat16(vector, rounded);
    const Halves halves = __builtin_convertvector(rounded, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
  }

#if !defined(__CUDA_ARCH__)  // nvcc also reads these for the GPU, where vectors are an error; the host's code is the same
  /// eˣ of numbers that are at most 80.
  static ATTEND_ALWAYS_INLINE void exp(Vector& x) { exponential<T, /*kIsBounded=*/true, Integers>(x); }
  static ATTEND_ALWAYS_INLINE void tanh(Vector& x) { hyperbolic_tangent<T, Integers>(x); }
#else
  static void exp(Vector&);
  static void tanh(Vector&);
#endif
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
