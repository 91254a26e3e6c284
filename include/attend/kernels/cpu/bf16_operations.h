// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/product_bf16.h>
#include <attend/simd/transpose.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Floats as bfloat16, to nearest, each in a word of its own.
template <class Isa>
struct Rounded {
  using Words = typename Vec<float, Isa>::Integers;

  static ATTEND_ALWAYS_INLINE void load(Words& words, const float* from) {
    typename Vec<float, Isa>::Vector value;
    Vec<float, Isa>::load(value, from);
    round_to_bfloat16(value, words);
  }
};

/// Packs pairs of neighbouring keys: to[j / 2 · kTileQueries + i] = (tile[j][i], tile[j + 1][i]), with zeros after an odd
/// last.
struct PackKeysBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int columns, Bf16x2* to) {
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    typename Rounded<Isa>::Words even, odd;
    for (int j = 0; j < keys; j += 2)
      for (int i = 0; i < columns; i += kLanes) {
        Rounded<Isa>::load(even, tile + j * kTileQueries + i);
        odd = even ^ even;
        if (j + 1 < keys) Rounded<Isa>::load(odd, tile + (j + 1) * kTileQueries + i);
        even |= odd << 16;
        __builtin_memcpy(to + j / 2 * kTileQueries + i, &even, sizeof even);
      }
  }
};

/// Packs pairs of neighbouring queries: to[j · kTileQueries / 2 + i / 2] = (tile[j][i], tile[j][i + 1]), that is, the numbers
/// as they lie; the one after an odd last query is zero.
struct PackQueriesBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int queries, int columns, Bf16x2* to) {
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    typename Rounded<Isa>::Words words;
    for (int j = 0; j < keys; ++j) {
      for (int i = 0; i < columns; i += kLanes) {
        Rounded<Isa>::load(words, tile + j * kTileQueries + i);
        const Halves halves = __builtin_convertvector(words, Halves);
        __builtin_memcpy(to + (j * kTileQueries + i) / 2, &halves, sizeof halves);
      }
      if (queries % 2 == 1) to[(j * kTileQueries + queries) / 2] &= 0xFFFF;
    }
  }
};

/// Packs pairs of neighbouring rows: to[i / 2 · to_row + d] = (row i[d], row i + 1[d]), with zeros after an odd last row.
/// The rows are bfloat16, and neighbours in a row lie side by side.
struct PackRowsBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const std::uint16_t* rows, std::int64_t row, int count, int width, Bf16x2* to,
                                       std::int64_t to_row) {
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    using Words = typename Rounded<Isa>::Words;
    typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    for (int i = 0; i < count; i += 2) {
      const std::uint16_t *even = rows + i * row, *odd = i + 1 < count ? even + row : nullptr;
      Bf16x2* const pairs = to + i / 2 * to_row;
      int d = 0;
      for (; d + kLanes <= width; d += kLanes) {
        Halves low{}, high{};
        __builtin_memcpy(&low, even + d, sizeof low);
        if (odd != nullptr) __builtin_memcpy(&high, odd + d, sizeof high);
        const Words both = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
        __builtin_memcpy(pairs + d, &both, sizeof both);
      }
      for (; d < width; ++d) pairs[d] = even[d] | (odd == nullptr ? Bf16x2{0} : static_cast<Bf16x2>(odd[d]) << 16);
      for (; d < to_row; ++d) pairs[d] = 0;
    }
  }
};

/// Rows of words, side by side in memory, into columns: to[k · kTileQueries + i] = row i[k], and zeros for count ≤ i <
/// columns.
struct TransposeWords {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Bf16x2* rows, std::int64_t row, int count, int columns, int width,
                                       Bf16x2* to) {
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    int k = 0;
    for (; k + kLanes <= width; k += kLanes)
      for (int i = 0; i < columns; i += kLanes) {
        VecBlock<float, Isa> block{};
        ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count)
            __builtin_memcpy(&block.rows[r], rows + (i + r) * row + k, sizeof block.rows[r]);
        block.transpose();
        ATTEND_UNROLL for (int r = 0; r < kLanes; ++r)
            __builtin_memcpy(to + (k + r) * kTileQueries + i, &block.rows[r], sizeof block.rows[r]);
      }
    for (; k < width; ++k)
      for (int i = 0; i < columns; ++i) to[k * kTileQueries + i] = i < count ? rows[i * row + k] : 0;
  }
};

/// What the kernels do to tiles of bfloat16, compiled for one instruction set.
struct Bf16Operations {
  void (*product)(Strided<Bf16x2> a, const Bf16x2* b, std::int64_t b_row, float* c, std::int64_t c_row, int rows,
                  int columns, int depth, bool add, float factor);
  void (*pack_keys)(const float* tile, int keys, int columns, Bf16x2* to);
  void (*pack_queries)(const float* tile, int keys, int queries, int columns, Bf16x2* to);
  void (*pack_rows)(const std::uint16_t* rows, std::int64_t row, int count, int width, Bf16x2* to, std::int64_t to_row);
  void (*transpose_words)(const Bf16x2* rows, std::int64_t row, int count, int columns, int width, Bf16x2* to);
};

template <class Isa>
inline constexpr Bf16Operations kBf16Operations{
    &CompiledFor<Isa, ProductBf16>::call, &CompiledFor<typename Isa::Vectors, PackKeysBf16>::call,
    &CompiledFor<typename Isa::Vectors, PackQueriesBf16>::call, &CompiledFor<typename Isa::Vectors, PackRowsBf16>::call,
    &CompiledFor<typename Isa::Vectors, TransposeWords>::call};

/// Null if the instruction set has no products of bfloat16.
inline const Bf16Operations* bf16_operations(InstructionSet set) {
  return simd::for_bf16_isa<const Bf16Operations*>(set, [](auto isa) { return &kBf16Operations<decltype(isa)>; });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
