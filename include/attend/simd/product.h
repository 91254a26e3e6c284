// SPDX-License-Identifier: MIT
#pragma once

// The matrix products that attention consists of: C (+)= A B, with B and C in rows of vectors, and A read number by
// number at any two strides, so that A may be a transposed matrix, or a caller's tensor as it is.
//
// A panel of C, 4 rows of a few vectors, stays in registers while k runs: each step loads the vectors of one row of B,
// and 4 numbers of A that are multiplied with all of them. Zen 4, one core, g++ 12 -O2, float32: 111 GFLOP/s for
// (128, 64) × (64, 256) and 113 for longer sums, of about 118 that the core can do. Zen 3, AVX2, 2026-11-27: 96 to 98
// for depths of 64 to 320 in rows of 64, of 98 that the core can do.

#include <attend/macros.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// A matrix of which only single numbers are read: entry (i, k) lies at data[i · row + k · column].
template <class T>
struct Strided {
  const T* data;
  std::int64_t row, column;

  Strided transposed() const { return {data, column, row}; }
};

/// C (rows, columns) = A (rows, depth) B (depth, columns), or += with `add`. `columns` must be a multiple of the
/// vector's lanes; rows of B and C lie b_row and c_row apart.
template <class T>
struct Product {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Strided<T>& a, const T* b, std::int64_t b_row, T* c, std::int64_t c_row,
                                       int rows, int columns, int depth, bool add) {
    for (int k = 0; k == 0 || k < depth; k += kDepth)
      some_depth<Isa>({a.data + k * a.column, a.row, a.column}, b + k * b_row, b_row, c, c_row, rows, columns,
                      depth - k < kDepth ? depth - k : kDepth, add || k > 0);
  }

 private:
  // So many rows of B stay in the first cache: half again as fast for 1,000. And no sum is longer: with 256, wide heads
  // had 1.4 times the error of torch's products (benchmarks/results/accuracy.md).
  static constexpr int kDepth = 128;

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void some_depth(const Strided<T>& a, const T* b, std::int64_t b_row, T* c,
                                              std::int64_t c_row, int rows, int columns, int depth, bool add) {
    constexpr int kLanes = Vec<T, Isa>::kLanes, kVectors = Isa::kPanelVectors;
    int n = 0;
    for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes)
      column_of_panels<Isa, kVectors>(a, b + n, b_row, c + n, c_row, rows, depth, add);
    const int vectors_left = (columns - n) / kLanes;
    if constexpr (kVectors > 2) {
      if (vectors_left == 3) column_of_panels<Isa, 3>(a, b + n, b_row, c + n, c_row, rows, depth, add);
      if (vectors_left == 2) column_of_panels<Isa, 2>(a, b + n, b_row, c + n, c_row, rows, depth, add);
    }
    if (vectors_left == 1) column_of_panels<Isa, 1>(a, b + n, b_row, c + n, c_row, rows, depth, add);
  }

  template <class Isa, int kVectors>
  static ATTEND_ALWAYS_INLINE void column_of_panels(const Strided<T>& a, const T* b, std::int64_t b_row, T* c,
                                                    std::int64_t c_row, int rows, int depth, bool add) {
    int i = 0;
    for (; i + 4 <= rows; i += 4)
      panel<Isa, 4, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add);
    for (; i < rows; ++i)
      panel<Isa, 1, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add);
  }

  // A panel of one vector, which few queries give, leaves registers free: each number of C is then added up in parts,
  // with AVX-512 every fourth k in one. That is 3 to 20 % faster for up to 16 queries, and the error is about half; torch
  // adds up products of few rows in parts too (benchmarks/results/accuracy.md).
  template <class Isa, int kRows, int kVectors>
  static ATTEND_ALWAYS_INLINE void panel(const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                                         std::int64_t b_row, T* c, std::int64_t c_row, int depth, bool add) {
    using Vector = typename Vec<T, Isa>::Vector;
    using Unaligned = typename Vec<T, Isa>::Unaligned;
    constexpr int kLanes = Vec<T, Isa>::kLanes;
    constexpr int kParts = kVectors == 1 ? Isa::kPanelVectors : 1;
    Vector sums[kParts][kRows][kVectors];
    ATTEND_UNROLL for (int part = 0; part < kParts; ++part) ATTEND_UNROLL for (int i = 0; i < kRows; ++i)
        ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) sums[part][i][n] = Vector{};
    int k = 0;
    for (; k + kParts <= depth; k += kParts)
      ATTEND_UNROLL for (int part = 0; part < kParts; ++part)
          step<Isa>(a + (k + part) * a_column, a_row, b + (k + part) * b_row, sums[part]);
    if constexpr (kParts > 1)
      for (; k < depth; ++k) step<Isa>(a + k * a_column, a_row, b + k * b_row, sums[0]);
    ATTEND_UNROLL for (int half = kParts / 2; half > 0; half /= 2) ATTEND_UNROLL for (int part = 0; part < half; ++part)
        ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n)
            sums[part][i][n] += sums[part + half][i][n];
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) {
      Unaligned* to = reinterpret_cast<Unaligned*>(c + i * c_row + n * kLanes);
      if (add) sums[0][i][n] += *to;
      *to = sums[0][i][n];
    }
  }

  // g++ needs its broadcasts written `number - Vector{}` and its loads as plain assignments: else it builds a vector
  // number by number, and the loop is ten times slower. (`Vector{} + number` really adds, because −0 + 0 is 0: half the
  // speed with AVX2.)
  template <class Isa, int kRows, int kVectors>
  static ATTEND_ALWAYS_INLINE void step(const T* a, std::int64_t a_row, const T* b,
                                        typename Vec<T, Isa>::Vector (&sums)[kRows][kVectors]) {
    using Vector = typename Vec<T, Isa>::Vector;
    using Unaligned = typename Vec<T, Isa>::Unaligned;
    Vector row[kVectors];
    ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) row[n] =
        *reinterpret_cast<const Unaligned*>(b + n * Vec<T, Isa>::kLanes);
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
      const Vector factor = a[i * a_row] - Vector{};
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) sums[i][n] += factor * row[n];
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
