// SPDX-License-Identifier: MIT
#pragma once

// Matrix products: C (+)= A B. B and C are rows of vectors. A is read number by number at any two strides, so A may be
// a transposed matrix or a caller's tensor in place.
//
// A panel of C, a few rows of a few vectors, stays in registers while k runs. Each step loads the vectors of one row of
// B, and multiplies all of them with one number of A for each row. benchmarks/results/simd.md has the
// measured share of the processor's largest rate.

#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// A matrix that is read number by number: entry (i, k) is data[i · row + k · column].
template <class T>
struct Strided {
  const T* data;
  std::int64_t row, column;

  Strided transposed() const { return {data, column, row}; }
};

/// C (rows, columns) = factor · A (rows, depth) B (depth, columns), or C += factor · A B with `add`.
///
/// T is float or double, or Bf16x2 on an instruction set with kHasBf16Dot. A Bf16x2 holds two neighbours along the
/// direction of the sum, so `depth` counts pairs; C is float then. `columns` must be a multiple of the lanes of a
/// vector. Rows of B and C lie b_row and c_row numbers apart.
template <class T>
struct Product {
  using Sum = std::conditional_t<std::is_same_v<T, Bf16x2>, float, T>;

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Strided<T>& a, const T* b, std::int64_t b_row, Sum* c, std::int64_t c_row,
                                       int rows, int columns, int depth, bool add, Sum factor = 1) {
    for (int k = 0; k == 0 || k < depth; k += kDepth)
      some_depth<Isa>({a.data + k * a.column, a.row, a.column}, b + k * b_row, b_row, c, c_row, rows, columns,
                      depth - k < kDepth ? depth - k : kDepth, add || k > 0, factor);
  }

 private:
  // The depth of one pass over C: as many rows of B as the L1 cache holds (benchmarks/results/simd.md). Longer sums
  // also lose accuracy: with 256 in float32, wide heads had 1.4 times the error of torch
  // (benchmarks/results/accuracy.md).
  static constexpr int kDepth = 512 / sizeof(T);

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void some_depth(const Strided<T>& a, const T* b, std::int64_t b_row, Sum* c,
                                              std::int64_t c_row, int rows, int columns, int depth, bool add,
                                              Sum factor) {
    constexpr int kLanes = Vec<Sum, Isa>::kLanes, kVectors = Isa::kPanelVectors;
    int n = 0;
    for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes)
      column_of_panels<Isa, kVectors>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    const int vectors_left = (columns - n) / kLanes;
    if constexpr (kVectors > 2) {
      if (vectors_left == 3) column_of_panels<Isa, 3>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
      if (vectors_left == 2) column_of_panels<Isa, 2>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    }
    if (vectors_left == 1) column_of_panels<Isa, 1>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
  }

  template <class Isa, int kVectors>
  static ATTEND_ALWAYS_INLINE void column_of_panels(const Strided<T>& a, const T* b, std::int64_t b_row, Sum* c,
                                                    std::int64_t c_row, int rows, int depth, bool add, Sum factor) {
    constexpr int kRows = Isa::kPanelRows;
    int i = 0;
    for (; i + kRows <= rows; i += kRows)
      panel<Isa, kRows, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add,
                                  factor);
    if constexpr (kRows > 4)
      for (; i + 4 <= rows; i += 4)
        panel<Isa, 4, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add,
                                factor);
    for (; i < rows; ++i)
      panel<Isa, 1, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add, factor);
  }

  // A panel of one vector, which few queries give, leaves registers free. Then each number of C is summed in parts:
  // with AVX-512, every fourth k in one part. That is 3 to 20 % faster for up to 16 queries and halves the error
  // (benchmarks/results/accuracy.md).
  template <class Isa, int kRows, int kVectors>
  static ATTEND_ALWAYS_INLINE void panel(const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                                         std::int64_t b_row, Sum* c, std::int64_t c_row, int depth, bool add,
                                         Sum factor) {
    using Vec = simd::Vec<Sum, Isa>;
    using Vector = typename Vec::Vector;
    using Unaligned = typename Vec::Unaligned;
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
      Unaligned* to = reinterpret_cast<Unaligned*>(c + i * c_row + n * Vec::kLanes);
      sums[0][i][n] *= factor;
      if (add) sums[0][i][n] += *to;
      *to = sums[0][i][n];
    }
  }

  // g++ compiles this loop well only if a broadcast is written `number - Vector{}` and a load is a plain assignment.
  // Otherwise it builds vectors number by number, ten times slower. (`Vector{} + number` costs an addition, because
  // −0 + 0 is 0: half the speed with AVX2.)
  template <class Isa, int kRows, int kVectors>
  static ATTEND_ALWAYS_INLINE void step(const T* a, std::int64_t a_row, const T* b,
                                        typename Vec<Sum, Isa>::Vector (&sums)[kRows][kVectors]) {
    typedef T Vector __attribute__((vector_size(Isa::kVectorBytes)));
    typedef T Unaligned __attribute__((vector_size(Isa::kVectorBytes), aligned(sizeof(T)), may_alias));
    Vector row[kVectors];
    ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) row[n] =
        *reinterpret_cast<const Unaligned*>(b + n * Vec<Sum, Isa>::kLanes);
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
      const Vector number = a[i * a_row] - Vector{};
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) if constexpr (std::is_same_v<T, Bf16x2>)
          Isa::add_dot(sums[i][n], number, row[n]);
      else sums[i][n] += number * row[n];
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
