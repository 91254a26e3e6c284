// SPDX-License-Identifier: MIT
#pragma once

// A masked key has the weight 0. But 0 · NaN and 0 · ∞ are NaN, so a NaN or an infinity in a masked key or value would
// reach outputs and gradients through the products. Such numbers are rare, and a check of all operands costs time. So a
// work item is computed as if all numbers were finite. If its results are not finite, it is computed again by the
// products below.

#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Whether all numbers of a matrix (rows, columns) are finite. `columns` must be a multiple of the vector's lanes.
template <class T>
struct IsFinite {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE bool run(const T* values, std::int64_t row, int rows, int columns) {
    using Vec = attend::simd::Vec<T, Isa>;
    constexpr int kSums = 4;  // independent, because an addition takes several cycles
    typename Vec::Vector sums[kSums] = {}, value;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      int j = 0;
      for (; j + kSums <= rows; j += kSums) ATTEND_UNROLL for (int k = 0; k < kSums; ++k) {
          Vec::load(value, values + (j + k) * row + i);
          sums[k] += value * T(0);  // NaN for NaN and ±∞
        }
      for (; j < rows; ++j) {
        Vec::load(value, values + j * row + i);
        sums[0] += value * T(0);
      }
    }
    T lanes[Vec::kLanes];
    Vec::store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    T sum = 0;
    for (const T lane : lanes) sum += lane;
    return sum == T(0);
  }
};

/// C (rows, columns) += A (rows, keys) · tile (keys, columns), where a 0 of the tile adds 0, even if the number of A is
/// not finite.
template <class T>
struct AddColumnsOfNonzeros {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Strided<T>& a, const T* tile, T* c, int rows, int columns, int keys) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector weight, sum;
    for (int d = 0; d < rows; ++d)
      for (int i = 0; i < columns; i += Vec::kLanes) {
        Vec::load(sum, c + d * kTileQueries + i);
        for (int j = 0; j < keys; ++j) {
          Vec::load(weight, tile + j * kTileQueries + i);
          sum += weight == T(0) ? weight : weight * a.data[d * a.row + j * a.column];
        }
        Vec::store(c + d * kTileQueries + i, sum);
      }
  }
};

/// C (keys, columns) += tile (keys, queries) · B (queries, columns), where a 0 of the tile adds 0, even if the row of B
/// is not finite. `columns` must be a multiple of the vector's lanes. Rows of B and C lie `row` numbers apart.
template <class T>
struct AddRowsOfNonzeros {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* tile, const T* b, T* c, std::int64_t row, int keys, int columns,
                                       int queries) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector number, sum;
    for (int j = 0; j < keys; ++j)
      for (int i = 0; i < queries; ++i) {
        const T weight = tile[j * kTileQueries + i];
        if (weight == T(0)) continue;
        for (int d = 0; d < columns; d += Vec::kLanes) {
          Vec::load(number, b + i * row + d);
          Vec::load(sum, c + j * row + d);
          Vec::store(c + j * row + d, sum + weight * number);
        }
      }
  }
};

/// Adds nans[i], which is 0 or NaN, to the entries of column i that are not masked. Masked entries, whose score is −∞,
/// become 0. If `values` are the scores themselves, masked entries keep −∞.
template <class T>
struct SpreadNans {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* values, const T* scores, int keys, int columns, const T* nans) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector value, score, nan;
    const T masked = values == scores ? kNegativeInfinity<T> : T(0);
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(nan, nans + i);
      for (int j = 0; j < keys; ++j) {
        Vec::load(value, values + j * kTileQueries + i);
        Vec::load(score, scores + j * kTileQueries + i);
        Vec::store(values + j * kTileQueries + i,
                   score == kNegativeInfinity<T> ? masked - typename Vec::Vector{} : value + nan);
      }
    }
  }
};

/// Gradients become 0 where the weight or score is `masked`.
template <class T>
struct ClearGradients {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, T* gradients, int keys, int columns, T masked) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector weight, gradient;
    for (int j = 0; j < keys; ++j)
      for (int i = 0; i < columns; i += Vec::kLanes) {
        Vec::load(weight, weights + j * kTileQueries + i);
        Vec::load(gradient, gradients + j * kTileQueries + i);
        Vec::store(gradients + j * kTileQueries + i, weight == masked ? typename Vec::Vector{} : gradient);
      }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
