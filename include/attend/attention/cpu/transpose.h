// SPDX-License-Identifier: MIT
#pragma once

// The way of queries, outputs and their gradients between the caller's rows and the kernels' columns: square blocks are
// transposed in registers. One by one, the numbers would take as long as a sixth of all products (L 100).

#include <attend/attention/cpu/rows.h>
#include <attend/attention/cpu/tile.h>
#include <attend/attention/cpu/vector.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// As many vectors of T as one has lanes.
template <class T, class Set>
struct Square {
  using Simd = attend::cpu::Simd<T, Set>;
  using Vector = typename Simd::Vector;
  static constexpr int kLanes = Simd::kLanes;

  Vector rows[kLanes];

  /// Each step interleaves row r with row r + kLanes / 2; after log₂ kLanes of them every number is in its place.
  ATTEND_ALWAYS_INLINE void transpose() { transpose(std::make_index_sequence<kLanes>()); }

  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const T* from) { Simd::load(vector, from); }
  static ATTEND_ALWAYS_INLINE void store(T* to, const Vector& vector) { Simd::store(to, vector); }

  // bfloat16 is the upper half of a float.
  typedef std::uint16_t Halves __attribute__((vector_size(Set::kVectorBytes / sizeof(T) * 2)));
  static ATTEND_ALWAYS_INLINE void load(Vector& vector, const BFloat16* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    vector = (Vector)(__builtin_convertvector(halves, typename Simd::Integers) << 16);
  }
  static ATTEND_ALWAYS_INLINE void store(BFloat16* to, const Vector& vector) {
    typename Simd::Integers rounded;
    round_to_bfloat16(vector, rounded);
    const Halves halves = __builtin_convertvector(rounded, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
  }

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
        next[2 * r] = __builtin_shuffle(a, b, typename Simd::Integers{(i % 2 * kLanes + i / 2)...});
        next[2 * r + 1] = __builtin_shuffle(a, b, typename Simd::Integers{(i % 2 * kLanes + i / 2 + kHalf)...});
#endif
      }
      ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) rows[r] = next[r];
    }
  }
};

/// to[d · kTileQueries + i] = factor · (row first + i)[d], and zeros for count ≤ i < columns
template <class T>
struct ReadTransposed {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const Rows<T>& rows, std::int64_t first, int count, int columns, int width,
                                       T factor, T* to) {
    if constexpr (std::is_same_v<T, float>)
      if (rows.is_bfloat16)
        return run_typed<Set>(reinterpret_cast<const BFloat16*>(rows.data), rows, first, count, columns, width, factor,
                              to);
    run_typed<Set>(reinterpret_cast<const T*>(rows.data), rows, first, count, columns, width, factor, to);
  }

 private:
  template <class Set, class Element>
  static ATTEND_ALWAYS_INLINE void run_typed(const Element* elements, const Rows<T>& rows, std::int64_t first,
                                             int count, int columns, int width, T factor, T* to) {
    constexpr int kLanes = Simd<T, Set>::kLanes;
    elements += first * rows.row;
    int d = 0;
    if constexpr (std::is_same_v<T, float>)
      if (rows.column == 1)
        for (; d + kLanes <= width; d += kLanes)
          for (int i = 0; i < columns; i += kLanes) {
            Square<T, Set> square{};
            ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count) {
              square.load(square.rows[r], elements + (i + r) * rows.row + d);
              square.rows[r] *= factor;
            }
            square.transpose();
            ATTEND_UNROLL for (int r = 0; r < kLanes; ++r)
                square.store(to + (d + r) * kTileQueries + i, square.rows[r]);
          }
    for (; d < width; ++d)
      for (int i = 0; i < columns; ++i)
        to[d * kTileQueries + i] = i < count ? factor * static_cast<T>(elements[i * rows.row + d * rows.column]) : T(0);
  }
};

/// (row first + i)[d] = factor · from[d · kTileQueries + i]
template <class T>
struct WriteTransposed {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const Rows<T>& rows, std::int64_t first, int count, int width, T factor,
                                       const T* from) {
    if constexpr (std::is_same_v<T, float>)
      if (rows.is_bfloat16)
        return run_typed<Set>(reinterpret_cast<BFloat16*>(rows.data), rows, first, count, width, factor, from);
    run_typed<Set>(reinterpret_cast<T*>(rows.data), rows, first, count, width, factor, from);
  }

 private:
  template <class Set, class Element>
  static ATTEND_ALWAYS_INLINE void run_typed(Element* elements, const Rows<T>& rows, std::int64_t first, int count,
                                             int width, T factor, const T* from) {
    constexpr int kLanes = Simd<T, Set>::kLanes;
    elements += first * rows.row;
    int d = 0;
    if constexpr (std::is_same_v<T, float>)
      if (rows.column == 1)
        for (; d + kLanes <= width; d += kLanes)
          for (int i = 0; i < count; i += kLanes) {
            Square<T, Set> square;
            ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) {
              square.load(square.rows[r], from + (d + r) * kTileQueries + i);
              square.rows[r] *= factor;
            }
            square.transpose();
            ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count)
                square.store(elements + (i + r) * rows.row + d, square.rows[r]);
          }
    for (; d < width; ++d)
      for (int i = 0; i < count; ++i)
        elements[i * rows.row + d * rows.column] = static_cast<Element>(factor * from[d * kTileQueries + i]);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
