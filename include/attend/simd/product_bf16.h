// SPDX-License-Identifier: MIT
#pragma once

// Matrix products of bfloat16, on processors that multiply it two by two and add in float32: twice as fast as converting
// to float32. A word of 32 bits holds two neighbours along the direction that is summed over.
//
// The loops are those of Product. They are written again because clang demands ATTEND_TARGET_BF16 on each of these
// functions, and a template cannot have it for some of its arguments only.

#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

#if !defined(ATTEND_TARGET_BF16)  // an architecture without such an instruction set: nobody calls these functions
#define ATTEND_TARGET_BF16
#endif

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// C = factor · A B, or C += A B with `add`, as Product; a row of A and a column of B have `depth` pairs.
struct ProductBf16 {
  template <class Isa>
  ATTEND_TARGET_BF16 static ATTEND_ALWAYS_INLINE void run(const Strided<Bf16x2>& a, const Bf16x2* b, std::int64_t b_row,
                                                          float* c, std::int64_t c_row, int rows, int columns,
                                                          int depth, bool add, float factor) {
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    int n = 0;
    for (; n + 4 * kLanes <= columns; n += 4 * kLanes)
      column_of_panels<Isa, 4>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    const int vectors_left = (columns - n) / kLanes;
    if (vectors_left == 3) column_of_panels<Isa, 3>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    if (vectors_left == 2) column_of_panels<Isa, 2>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    if (vectors_left == 1) column_of_panels<Isa, 1>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
  }

 private:
  template <class Isa, int kVectors>
  ATTEND_TARGET_BF16 static ATTEND_ALWAYS_INLINE void column_of_panels(const Strided<Bf16x2>& a, const Bf16x2* b,
                                                                       std::int64_t b_row, float* c, std::int64_t c_row,
                                                                       int rows, int depth, bool add, float factor) {
    int i = 0;
    for (; i + 4 <= rows; i += 4)
      panel<Isa, 4, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add, factor);
    for (; i < rows; ++i)
      panel<Isa, 1, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add, factor);
  }

  template <class Isa, int kRows, int kVectors>
  ATTEND_TARGET_BF16 static ATTEND_ALWAYS_INLINE void panel(const Bf16x2* a, std::int64_t a_row, std::int64_t a_column,
                                                            const Bf16x2* b, std::int64_t b_row, float* c,
                                                            std::int64_t c_row, int depth, bool add, float factor) {
    using Vector = typename Vec<float, Isa>::Vector;
    using Unaligned = typename Vec<float, Isa>::Unaligned;
    using Words = typename Vec<float, Isa>::Integers;
    typedef Bf16x2 UnalignedWords __attribute__((vector_size(Isa::kVectorBytes), aligned(4), may_alias));
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    Vector sums[kRows][kVectors];
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) sums[i][n] =
        add ? Vector(*reinterpret_cast<const Unaligned*>(c + i * c_row + n * kLanes)) : Vector{};
    for (int k = 0; k < depth; ++k) {
      Words row[kVectors];
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) row[n] =
          *reinterpret_cast<const UnalignedWords*>(b + k * b_row + n * kLanes);
      ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
        const Words number = Words{} + a[i * a_row + k * a_column];
        ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) Isa::add_dot(sums[i][n], number, row[n]);
      }
    }
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) *
        reinterpret_cast<Unaligned*>(c + i * c_row + n * kLanes) = add ? sums[i][n] : sums[i][n] * factor;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
