// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstddef>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// A square block of numbers: kLanes vectors with kLanes numbers each.
template <class T, class Isa>
struct VecBlock {
  using Vector = typename Vec<T, Isa>::Vector;
  using Integers = typename Vec<T, Isa>::Integers;
  static constexpr int kLanes = Vec<T, Isa>::kLanes;

  Vector rows[kLanes];

  /// Transposes the block. Each step interleaves row r with row r + kLanes / 2. After log₂ kLanes steps every number is
  /// in its place.
  ATTEND_ALWAYS_INLINE void transpose() { transpose(std::make_index_sequence<kLanes>()); }

 private:
  template <std::size_t... i>
  ATTEND_ALWAYS_INLINE void transpose(std::index_sequence<i...>) {
    constexpr int kHalf = kLanes / 2;
    ATTEND_UNROLL for (int step = 1; step < kLanes; step *= 2) {
      Vector next[kLanes];
      ATTEND_UNROLL for (int r = 0; r < kHalf; ++r) {
        const Vector a = rows[r], b = rows[r + kHalf];
#if defined(__clang__)
        next[2 * r] = __builtin_shufflevector(a, b, (i % 2 * kLanes + i / 2)...);
        next[2 * r + 1] = __builtin_shufflevector(a, b, (i % 2 * kLanes + i / 2 + kHalf)...);
#else  // g++ has __builtin_shufflevector from version 12 on, and nvcc passes no parameter pack on to it
        next[2 * r] = __builtin_shuffle(a, b, Integers{(i % 2 * kLanes + i / 2)...});
        next[2 * r + 1] = __builtin_shuffle(a, b, Integers{(i % 2 * kLanes + i / 2 + kHalf)...});
#endif
      }
      ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) rows[r] = next[r];
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
