// SPDX-License-Identifier: MIT
#pragma once

// Matrix products of bfloat16, on processors that multiply it two by two and add in float32 (AVX512_BF16): twice as
// fast as converting to float32. A word of 32 bits holds two neighbours along the direction that is summed over.

#include <attend/attention/cpu/product.h>
#include <attend/attention/cpu/rows.h>
#include <attend/attention/cpu/tile.h>
#include <attend/attention/cpu/transpose.h>
#include <attend/attention/cpu/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// Every function on the way to the instruction is marked for the processor that has it: clang asks for that.
#if defined(__x86_64__)
#define ATTEND_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#else
#define ATTEND_AVX512_BF16
#endif

/// C = factor · A B, or C += A B with `add`, as Product; a row of A and a column of B have `depth` pairs.
struct PairProduct {
  template <class Set>
  ATTEND_AVX512_BF16 static ATTEND_ALWAYS_INLINE void run(const Strided<Pair>& a, const Pair* b, std::int64_t b_row,
                                                          float* c, std::int64_t c_row, int rows, int columns,
                                                          int depth, bool add, float factor) {
    constexpr int kLanes = Simd<float, Set>::kLanes;
    int n = 0;
    for (; n + 4 * kLanes <= columns; n += 4 * kLanes)
      column_of_panels<Set, 4>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    const int vectors_left = (columns - n) / kLanes;
    if (vectors_left == 3) column_of_panels<Set, 3>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    if (vectors_left == 2) column_of_panels<Set, 2>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
    if (vectors_left == 1) column_of_panels<Set, 1>(a, b + n, b_row, c + n, c_row, rows, depth, add, factor);
  }

 private:
  template <class Set, int kVectors>
  ATTEND_AVX512_BF16 static ATTEND_ALWAYS_INLINE void column_of_panels(const Strided<Pair>& a, const Pair* b,
                                                                       std::int64_t b_row, float* c, std::int64_t c_row,
                                                                       int rows, int depth, bool add, float factor) {
    int i = 0;
    for (; i + 4 <= rows; i += 4)
      panel<Set, 4, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add, factor);
    for (; i < rows; ++i)
      panel<Set, 1, kVectors>(a.data + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, depth, add, factor);
  }

  template <class Set, int kRows, int kVectors>
  ATTEND_AVX512_BF16 static ATTEND_ALWAYS_INLINE void panel(const Pair* a, std::int64_t a_row, std::int64_t a_column,
                                                            const Pair* b, std::int64_t b_row, float* c,
                                                            std::int64_t c_row, int depth, bool add, float factor) {
    using Vector = typename Simd<float, Set>::Vector;
    using Unaligned = typename Simd<float, Set>::Unaligned;
    using Words = typename Simd<float, Set>::Integers;
    typedef Pair UnalignedWords __attribute__((vector_size(Set::kVectorBytes), aligned(4), may_alias));
    constexpr int kLanes = Simd<float, Set>::kLanes;
    Vector sums[kRows][kVectors];
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) sums[i][n] =
        add ? Vector(*reinterpret_cast<const Unaligned*>(c + i * c_row + n * kLanes)) : Vector{};
    for (int k = 0; k < depth; ++k) {
      Words row[kVectors];
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) row[n] =
          *reinterpret_cast<const UnalignedWords*>(b + k * b_row + n * kLanes);
      ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
        const Words number = Words{} + a[i * a_row + k * a_column];
        ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) multiply_add(sums[i][n], number, row[n]);
      }
    }
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) *
        reinterpret_cast<Unaligned*>(c + i * c_row + n * kLanes) = add ? sums[i][n] : sums[i][n] * factor;
  }

  template <class Vector, class Words>
  ATTEND_AVX512_BF16 static ATTEND_ALWAYS_INLINE void multiply_add([[maybe_unused]] Vector& sum,
                                                                   [[maybe_unused]] const Words& a,
                                                                   [[maybe_unused]] const Words& b) {
#if defined(__x86_64__)
    asm("{vdpbf16ps %2, %1, %0|vdpbf16ps %0, %1, %2}" : "+v"(sum) : "v"(a), "v"(b));
#endif
  }
};

/// Floats as bfloat16, to nearest, each in a word of its own.
template <class Set>
struct Rounded {
  using Simd = attend::cpu::Simd<float, Set>;
  using Words = typename Simd::Integers;

  static ATTEND_ALWAYS_INLINE void load(Words& words, const float* from) {
    typename Simd::Vector value;
    Simd::load(value, from);
    round_to_bfloat16(value, words);
  }
};

/// Pairs of neighbouring keys: to[j / 2 · kTileQueries + i] = (tile[j][i], tile[j + 1][i]), with zeros after an odd
/// last.
struct PairKeys {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int columns, Pair* to) {
    constexpr int kLanes = Simd<float, Set>::kLanes;
    typename Rounded<Set>::Words even, odd;
    for (int j = 0; j < keys; j += 2)
      for (int i = 0; i < columns; i += kLanes) {
        Rounded<Set>::load(even, tile + j * kTileQueries + i);
        odd = even ^ even;
        if (j + 1 < keys) Rounded<Set>::load(odd, tile + (j + 1) * kTileQueries + i);
        even |= odd << 16;
        __builtin_memcpy(to + j / 2 * kTileQueries + i, &even, sizeof even);
      }
  }
};

/// Pairs of neighbouring queries: to[j · kTileQueries / 2 + i / 2] = (tile[j][i], tile[j][i + 1]), that is, the numbers
/// as they lie; the one after an odd last query is zero.
struct PairQueries {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int queries, int columns, Pair* to) {
    constexpr int kLanes = Simd<float, Set>::kLanes;
    typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    typename Rounded<Set>::Words words;
    for (int j = 0; j < keys; ++j) {
      for (int i = 0; i < columns; i += kLanes) {
        Rounded<Set>::load(words, tile + j * kTileQueries + i);
        const Halves halves = __builtin_convertvector(words, Halves);
        __builtin_memcpy(to + (j * kTileQueries + i) / 2, &halves, sizeof halves);
      }
      if (queries % 2 == 1) to[(j * kTileQueries + queries) / 2] &= 0xFFFF;
    }
  }
};

/// Pairs of neighbouring rows: to[i / 2 · to_row + d] = (row i[d], row i + 1[d]), with zeros after an odd last row.
/// The rows are bfloat16, and neighbours in a row lie side by side.
struct PairRows {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const std::uint16_t* rows, std::int64_t row, int count, int width, Pair* to,
                                       std::int64_t to_row) {
    constexpr int kLanes = Simd<float, Set>::kLanes;
    using Words = typename Rounded<Set>::Words;
    typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    for (int i = 0; i < count; i += 2) {
      const std::uint16_t *even = rows + i * row, *odd = i + 1 < count ? even + row : nullptr;
      Pair* const pairs = to + i / 2 * to_row;
      int d = 0;
      for (; d + kLanes <= width; d += kLanes) {
        Halves low{}, high{};
        __builtin_memcpy(&low, even + d, sizeof low);
        if (odd != nullptr) __builtin_memcpy(&high, odd + d, sizeof high);
        const Words both = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
        __builtin_memcpy(pairs + d, &both, sizeof both);
      }
      for (; d < width; ++d) pairs[d] = even[d] | (odd == nullptr ? Pair{0} : static_cast<Pair>(odd[d]) << 16);
      for (; d < to_row; ++d) pairs[d] = 0;
    }
  }
};

/// Rows of words, side by side in memory, into columns: to[k · kTileQueries + i] = row i[k], and zeros for count ≤ i <
/// columns.
struct TransposeWords {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const Pair* rows, std::int64_t row, int count, int columns, int width,
                                       Pair* to) {
    constexpr int kLanes = Simd<float, Set>::kLanes;
    using Square = attend::cpu::Square<float, Set>;
    int k = 0;
    for (; k + kLanes <= width; k += kLanes)
      for (int i = 0; i < columns; i += kLanes) {
        Square square{};
        ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count)
            __builtin_memcpy(&square.rows[r], rows + (i + r) * row + k, sizeof square.rows[r]);
        square.transpose();
        ATTEND_UNROLL for (int r = 0; r < kLanes; ++r)
            __builtin_memcpy(to + (k + r) * kTileQueries + i, &square.rows[r], sizeof square.rows[r]);
      }
    for (; k < width; ++k)
      for (int i = 0; i < columns; ++i) to[k * kTileQueries + i] = i < count ? rows[i * row + k] : 0;
  }
};

/// All of it, compiled for AVX512_BF16.
struct PairOperations {
  void (*product)(Strided<Pair> a, const Pair* b, std::int64_t b_row, float* c, std::int64_t c_row, int rows,
                  int columns, int depth, bool add, float factor);
  void (*pair_keys)(const float* tile, int keys, int columns, Pair* to);
  void (*pair_queries)(const float* tile, int keys, int queries, int columns, Pair* to);
  void (*pair_rows)(const std::uint16_t* rows, std::int64_t row, int count, int width, Pair* to, std::int64_t to_row);
  void (*transpose_words)(const Pair* rows, std::int64_t row, int count, int columns, int width, Pair* to);
};

inline constexpr PairOperations kPairOperations{&On<Avx512Bf16, PairProduct>::call, &On<Avx512, PairKeys>::call,
                                                &On<Avx512, PairQueries>::call, &On<Avx512, PairRows>::call,
                                                &On<Avx512, TransposeWords>::call};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
