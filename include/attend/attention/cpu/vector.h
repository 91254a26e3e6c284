// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/instruction_set.h>
#include <attend/attention/detail/elementary.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// As many numbers as one register holds: the compilers' own vectors, which have + - * / and comparisons, and what
/// those lack.
template <class T, class Set>
struct Simd {
  static constexpr int kLanes = Set::kVectorBytes / sizeof(T);
  using Bits = typename attend::detail::FloatFormat<T>::Bits;

  typedef T Vector __attribute__((vector_size(Set::kVectorBytes)));
  typedef Bits Integers __attribute__((vector_size(Set::kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(Set::kVectorBytes), aligned(sizeof(T)), may_alias));

  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const T* from) {
    vector = *reinterpret_cast<const Unaligned*>(from);
  }
  static ATTEND_ALWAYS_INLINE void store(T* to, const Vector& vector) { *reinterpret_cast<Unaligned*>(to) = vector; }

#if !defined(__CUDA_ARCH__)  // nvcc also reads these for the GPU, where vectors are an error; the host's code is the same
  /// eˣ of numbers that are at most 80.
  static ATTEND_ALWAYS_INLINE void exp(Vector& x) { attend::detail::exponential<T, /*kIsBounded=*/true, Integers>(x); }
  static ATTEND_ALWAYS_INLINE void tanh(Vector& x) { attend::detail::hyperbolic_tangent<T, Integers>(x); }
#else
  static void exp(Vector&);
  static void tanh(Vector&);
#endif
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
