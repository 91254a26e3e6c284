// SPDX-License-Identifier: MIT
#pragma once

// A key that is ruled out for a query has the weight 0. But 0 · NaN and 0 · ∞ are NaN. So a NaN or an infinity in what
// is ruled out would reach outputs and gradients through the products. Such numbers are rare, and a check of the
// products' operands costs time. So a block is computed as if there were none. If its results are not finite, it is
// computed again by the products below.

#include <attend/simd/product.h>
#include <attend/kernels/cpu/tile.h>
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
    constexpr int kSums = 4;  // independent of each other, because an addition takes some cycles
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

/// C (rows, columns) += A (rows, keys) · tile (keys, columns), where a 0 of the tile adds nothing, whatever it meets.
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

/// C (keys, columns) += tile (keys, queries) · B (queries, columns), where a 0 of the tile adds nothing, whatever it
/// meets. `columns` must be a multiple of the vector's lanes; rows of B and C lie `row` apart.
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

/// Adds nans[i], which is 0 or NaN, to column i, and puts 0 where a score is −∞. A sum of the column is NaN then, and
/// would make all of the column NaN. `values` may be the scores, which keep their −∞.
template <class T>
struct SpreadNans {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* values, const T* scores, int keys, int columns, const T* nans) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector value, score, nan;
    const T ruled_out = values == scores ? kNegativeInfinity<T> : T(0);
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(nan, nans + i);
      for (int j = 0; j < keys; ++j) {
        Vec::load(value, values + j * kTileQueries + i);
        Vec::load(score, scores + j * kTileQueries + i);
        Vec::store(values + j * kTileQueries + i,
                    score == kNegativeInfinity<T> ? ruled_out - typename Vec::Vector{} : value + nan);
      }
    }
  }
};

/// Where a weight is `ruled_out`, a gradient becomes 0.
template <class T>
struct ClearGradients {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, T* gradients, int keys, int columns, T ruled_out) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector weight, gradient;
    for (int j = 0; j < keys; ++j)
      for (int i = 0; i < columns; i += Vec::kLanes) {
        Vec::load(weight, weights + j * kTileQueries + i);
        Vec::load(gradient, gradients + j * kTileQueries + i);
        Vec::store(gradients + j * kTileQueries + i, weight == ruled_out ? typename Vec::Vector{} : gradient);
      }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
