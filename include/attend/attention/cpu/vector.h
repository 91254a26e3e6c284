// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/instruction_set.h>
#include <attend/attention/detail/elementary.h>

namespace attend::cpu {

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

  /// eˣ of numbers that are at most 80.
  static ATTEND_ALWAYS_INLINE void exp(Vector& x) { attend::detail::exponential<T, /*kIsBounded=*/true, Integers>(x); }
  static ATTEND_ALWAYS_INLINE void tanh(Vector& x) { attend::detail::hyperbolic_tangent<T, Integers>(x); }
};

}  // namespace attend::cpu
