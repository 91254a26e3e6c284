// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/product.h>
#include <attend/simd/transpose.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Loads floats, rounded to bfloat16: each is in the lower half of a word.
template <class Isa>
ATTEND_ALWAYS_INLINE void load_rounded(typename Vec<float, Isa>::Integers& words, const float* from) {
  typename Vec<float, Isa>::Vector values;
  Vec<float, Isa>::load(values, from);
  round_to_bfloat16(values, words);
}

/// Packs pairs of neighbouring keys: to[j / 2 · kTileQueries + i] = (tile[j][i], tile[j + 1][i]). If the number of keys
/// is odd, the last pair ends with 0.
struct PackKeysBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int columns, Bf16x2* to) {
    typename Vec<float, Isa>::Integers even, odd;
    for (int j = 0; j < keys; j += 2)
      for (int i = 0; i < columns; i += Vec<float, Isa>::kLanes) {
        load_rounded<Isa>(even, tile + j * kTileQueries + i);
        odd = even ^ even;
        if (j + 1 < keys) load_rounded<Isa>(odd, tile + (j + 1) * kTileQueries + i);
        even |= odd << 16;
        __builtin_memcpy(to + j / 2 * kTileQueries + i, &even, sizeof even);
      }
  }
};

/// Packs pairs of neighbouring queries: to[j · kTileQueries / 2 + i / 2] = (tile[j][i], tile[j][i + 1]). That is the
/// tile itself in bfloat16. If the number of queries is odd, the last pair ends with 0.
struct PackQueriesBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* tile, int keys, int queries, int columns, Bf16x2* to) {
    typename Vec<float, Isa>::Vector values;
    for (int j = 0; j < keys; ++j) {
      for (int i = 0; i < columns; i += Vec<float, Isa>::kLanes) {
        Vec<float, Isa>::load(values, tile + j * kTileQueries + i);
        Vec<float, Isa>::store(reinterpret_cast<BFloat16*>(to + (j * kTileQueries + i) / 2), values);
      }
      if (queries % 2 == 1) to[(j * kTileQueries + queries) / 2] &= 0xFFFF;
    }
  }
};

/// Packs pairs of neighbouring rows: to[i / 2 · to_row + d] = (row i[d], row i + 1[d]), and zeros for width ≤ d <
/// to_row. If the number of rows is odd, the last pairs end with 0. The rows hold bfloat16 numbers without gaps.
struct PackRowsBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const std::uint16_t* rows, std::int64_t row, int count, int width, Bf16x2* to,
                                       std::int64_t to_row) {
    using Vec = simd::Vec<float, Isa>;
    for (int i = 0; i < count; i += 2) {
      const std::uint16_t *even = rows + i * row, *odd = i + 1 < count ? even + row : nullptr;
      Bf16x2* const pairs = to + i / 2 * to_row;
      int d = 0;
      for (; d + Vec::kLanes <= width; d += Vec::kLanes) {
        typename Vec::Integers low, high{};
        Vec::load(low, even + d);
        if (odd != nullptr) Vec::load(high, odd + d);
        low |= high << 16;
        __builtin_memcpy(pairs + d, &low, sizeof low);
      }
      for (; d < width; ++d) pairs[d] = even[d] | (odd == nullptr ? Bf16x2{0} : static_cast<Bf16x2>(odd[d]) << 16);
      for (; d < to_row; ++d) pairs[d] = 0;
    }
  }
};

/// Transposes rows of words: to[k · kTileQueries + i] = row i[k], and zeros for count ≤ i < columns. The rows hold
/// words without gaps.
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

/// to (rows, width) = from, rounded to bfloat16. `width` must be a multiple of 16.
struct RoundRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int from_row, BFloat16* to, int to_row, int rows, int width) {
    typename Vec<float, Isa>::Vector values;
    for (int i = 0; i < rows; ++i, from += from_row, to += to_row)
      for (int d = 0; d < width; d += Vec<float, Isa>::kLanes) {
        Vec<float, Isa>::load(values, from + d);
        Vec<float, Isa>::store(to + d, values);
      }
  }
};

/// The operations on tiles of bfloat16, compiled for one instruction set. Each is described at its struct.
struct Bf16Operations {
  void (*product)(Strided<Bf16x2> a, const Bf16x2* b, std::int64_t b_row, float* c, std::int64_t c_row, int rows,
                  int columns, int depth, bool add, float factor);
  void (*pack_keys)(const float* tile, int keys, int columns, Bf16x2* to);
  void (*pack_queries)(const float* tile, int keys, int queries, int columns, Bf16x2* to);
  void (*pack_rows)(const std::uint16_t* rows, std::int64_t row, int count, int width, Bf16x2* to, std::int64_t to_row);
  void (*transpose_words)(const Bf16x2* rows, std::int64_t row, int count, int columns, int width, Bf16x2* to);
  void (*round_rows)(const float* from, int from_row, BFloat16* to, int to_row, int rows, int width);
};

template <class Isa, class VectorIsa = typename Isa::VectorIsa>
inline constexpr Bf16Operations kBf16Operations{
    &CompiledFor<Isa, Product<Bf16x2>>::call,       &CompiledFor<VectorIsa, PackKeysBf16>::call,
    &CompiledFor<VectorIsa, PackQueriesBf16>::call, &CompiledFor<VectorIsa, PackRowsBf16>::call,
    &CompiledFor<VectorIsa, TransposeWords>::call,  &CompiledFor<VectorIsa, RoundRows>::call};

/// Null if the instruction set has no dot products of bfloat16.
inline const Bf16Operations* bf16_operations(InstructionSet set) {
  return for_bf16_isa<const Bf16Operations*>(set, [](auto isa) { return &kBf16Operations<decltype(isa)>; });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
