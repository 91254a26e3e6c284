// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstddef>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// Two vectors that hold pairs of numbers side by side, and two vectors that hold the first and the second numbers.
template <class T, class Isa>
struct Pairs {
  using Vector = typename Vec<T, Isa>::Vector;
  using Integers = typename Vec<T, Isa>::Integers;
  static constexpr int kLanes = Vec<T, Isa>::kLanes;

  /// (a₀ b₀ a₁ b₁ …), (…) become (a₀ a₁ …), (b₀ b₁ …).
  static ATTEND_ALWAYS_INLINE void split(Vector& a, Vector& b) { split(a, b, std::make_index_sequence<kLanes>()); }
  /// (a₀ a₁ …), (b₀ b₁ …) become (a₀ b₀ a₁ b₁ …), (…).
  static ATTEND_ALWAYS_INLINE void join(Vector& a, Vector& b) { join(a, b, std::make_index_sequence<kLanes>()); }

 private:
  template <std::size_t... i>
  static ATTEND_ALWAYS_INLINE void split(Vector& a, Vector& b, std::index_sequence<i...>) {
    const Vector first = a, second = b;
#if defined(__clang__)
    a = __builtin_shufflevector(first, second, (2 * i)...);
    b = __builtin_shufflevector(first, second, (2 * i + 1)...);
#else  // as in transpose.h
    a = __builtin_shuffle(first, second, Integers{(2 * i)...});
    b = __builtin_shuffle(first, second, Integers{(2 * i + 1)...});
#endif
  }

  template <std::size_t... i>
  static ATTEND_ALWAYS_INLINE void join(Vector& a, Vector& b, std::index_sequence<i...>) {
    const Vector first = a, second = b;
#if defined(__clang__)
    a = __builtin_shufflevector(first, second, (i % 2 * kLanes + i / 2)...);
    b = __builtin_shufflevector(first, second, (i % 2 * kLanes + i / 2 + kLanes / 2)...);
#else
    a = __builtin_shuffle(first, second, Integers{(i % 2 * kLanes + i / 2)...});
    b = __builtin_shuffle(first, second, Integers{(i % 2 * kLanes + i / 2 + kLanes / 2)...});
#endif
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
