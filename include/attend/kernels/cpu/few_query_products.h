// SPDX-License-Identifier: MIT
#pragma once

// The matrix products of a few queries, as in decoding. Vectors go along the rows of keys and values, because queries
// side by side in the lanes would leave most lanes empty. A tile of keys is read from memory once, in its own number
// type, and stays in the L1 cache for all queries.

#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/transpose.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Rows in memory with neighbours side by side, as T or, if T is float, as bfloat16.
template <class T>
struct DenseRows {
  const void* data;   // the first row
  const void* ahead;  // the row to prefetch with the first one
  std::int64_t row;   // in numbers
  bool is_bfloat16;

  /// Calls action(data, ahead), typed.
  template <class Action>
  ATTEND_ALWAYS_INLINE void for_elements(const Action& action) const {
    if constexpr (std::is_same_v<T, float>)
      if (is_bfloat16) return action(static_cast<const BFloat16*>(data), static_cast<const BFloat16*>(ahead));
    action(static_cast<const T*>(data), static_cast<const T*>(ahead));
  }
};

// Rows are prefetched this many rows ahead. Without that, bfloat16 took twice the time, because the processor fetches
// only a few lines ahead on its own (benchmarks/results/few_queries.md).
inline constexpr int kRowsAhead = 32;

/// scores[i][(first + j) · kTileQueries] = Σ queries[i · query_row + d] · (key j)[d], for `width` numbers d: whole
/// vectors.
template <class T>
struct FewQueryScores {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const DenseRows<T>& keys, int first, int count, const T* queries,
                                       std::int64_t query_row, int rows, int width, T* const* scores) {
    keys.for_elements([&](const auto* elements, const auto* ahead) {
      const auto rest = [&](auto some_rows, int i) {
        constexpr int kRows = decltype(some_rows)::value;
        for (; i + kRows <= rows; i += kRows)
          row_block<Isa, kRows>(elements, ahead, keys.row, first, count, queries + i * query_row, query_row, width,
                                scores + i);
        return i;
      };
      constexpr int kLanes = Vec<T, Isa>::kLanes;
      int i = 0;
      if constexpr (kLanes >= 8) {
        i = rest(std::integral_constant<int, 4>(), i);
        i = rest(std::integral_constant<int, 2>(), i);
      }
      rest(std::integral_constant<int, 1>(), i);
    });
  }

 private:
  template <class Isa, int kRows, class Element>
  static ATTEND_ALWAYS_INLINE void row_block(const Element* keys, const Element* ahead, std::int64_t key_row, int first,
                                             int count, const T* queries, std::int64_t query_row, int width,
                                             T* const* scores) {
    constexpr int kKeys = Vec<T, Isa>::kLanes / kRows;  // the sums of a block fill one vector
    int j = 0;
    for (; j + kKeys <= count; j += kKeys)
      block<Isa, kRows, kKeys>(keys + j * key_row, ahead + j * key_row, key_row, queries, query_row, width, scores,
                               first + j);
    for (; j < count; ++j)
      block<Isa, kRows, 1>(keys + j * key_row, ahead + j * key_row, key_row, queries, query_row, width, scores,
                           first + j);
  }

  template <class Isa, int kRows, int kKeys, class Element>
  static ATTEND_ALWAYS_INLINE void block(const Element* keys, const Element* ahead, std::int64_t key_row,
                                         const T* queries, std::int64_t query_row, int width, T* const* scores,
                                         int first) {
    using Vec = simd::Vec<T, Isa>;
    VecBlock<T, Isa> sums{};  // row i · kKeys + j
    for (int d = 0; d < width; d += Vec::kLanes) {
      typename Vec::Vector query[kRows], key;
      ATTEND_UNROLL for (int i = 0; i < kRows; ++i) Vec::load(query[i], queries + i * query_row + d);
      ATTEND_UNROLL for (int j = 0; j < kKeys; ++j) {
        Vec::load(key, keys + j * key_row + d);
        __builtin_prefetch(ahead + j * key_row + d);
        ATTEND_UNROLL for (int i = 0; i < kRows; ++i) sums.rows[i * kKeys + j] += query[i] * key;
      }
    }
    sums.transpose();
    ATTEND_UNROLL for (int half = Vec::kLanes / 2; half > 0; half /= 2) ATTEND_UNROLL for (int r = 0; r < half; ++r)
        sums.rows[r] += sums.rows[r + half];
    T totals[Vec::kLanes];
    Vec::store(totals, sums.rows[0]);
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int j = 0; j < kKeys; ++j)
        scores[i][(first + j) * kTileQueries] = totals[i * kKeys + j];
  }
};

/// SoftmaxStep for `queries` queries only, with the keys in the lanes: up to eight times as fast for one query.
template <class T>
struct FewQuerySoftmaxStep {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, int keys, int queries, T* largest, T* sum, T* rescale) {
    using Vec = simd::Vec<T, Isa>;
    using Vector = typename Vec::Vector;
    T row[kTileKeys];
    for (int i = 0; i < queries; ++i) {
      const int padded = (keys + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
      for (int j = 0; j < keys; ++j) row[j] = scores[j * kTileQueries + i];
      for (int j = keys; j < padded; ++j) row[j] = kNegativeInfinity<T>;
      Vector score, most{}, total{};
      most += kNegativeInfinity<T>;  // nvcc 13.0 crashes at kNegativeInfinity<T> - Vector{}
      for (int j = 0; j < padded; j += Vec::kLanes) {
        Vec::load(score, row + j);
        most = score > most ? score : most;
      }
      T now = largest[i];
      for (int lane = 0; lane < Vec::kLanes; ++lane) now = most[lane] > now ? most[lane] : now;
      const T before = largest[i];
      largest[i] = now;
      now = now == kNegativeInfinity<T> ? T(0) : now;  // the query has seen no key yet
      for (int j = 0; j < padded; j += Vec::kLanes) {
        Vec::load(score, row + j);
        score -= now;
        Vec::exp(score);
        total += score;
        Vec::store(row + j, score);
      }
      score = before - now - Vector{};
      Vec::exp(score);
      rescale[i] = score[0];
      T weights = 0;
      for (int lane = 0; lane < Vec::kLanes; ++lane) weights += total[lane];
      sum[i] = sum[i] * rescale[i] + weights;
      for (int j = 0; j < keys; ++j) scores[j * kTileQueries + i] = row[j];
    }
  }
};

/// output[i · output_row + d] = *factors[i] · output[i · output_row + d] + Σ weights[i][(first + j) · kTileQueries] ·
/// (value j)[d], for `width` numbers d: whole vectors. `factors` may be null: all are 1.
template <class T>
struct AddFewQueryValues {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const DenseRows<T>& values, int first, int count, const T* const* weights,
                                       int rows, int width, const T* const* factors, T* output,
                                       std::int64_t output_row) {
    values.for_elements([&](const auto* elements, const auto* ahead) {
      const auto rest = [&](auto some_rows, int i) {
        constexpr int kRows = decltype(some_rows)::value;
        for (; i + kRows <= rows; i += kRows)
          row_block<Isa, kRows>(elements, ahead, values.row, first, count, weights + i, width,
                                factors == nullptr ? nullptr : factors + i, output + i * output_row, output_row);
        return i;
      };
      int i = 0;
      if constexpr (Isa::kVectorBytes >= 32) i = rest(std::integral_constant<int, 4>(), i);
      i = rest(std::integral_constant<int, 2>(), i);
      rest(std::integral_constant<int, 1>(), i);
    });
  }

 private:
  template <class Isa, int kRows, class Element>
  static ATTEND_ALWAYS_INLINE void row_block(const Element* values, const Element* ahead, std::int64_t value_row,
                                             int first, int count, const T* const* weights, int width,
                                             const T* const* factors, T* output, std::int64_t output_row) {
    // As many sums as fit into the registers: with vectors of 32 bytes there are 16.
    constexpr int kLanes = Vec<T, Isa>::kLanes, kVectors = kRows == 1                             ? 8
                                                           : kRows == 4 && Isa::kVectorBytes < 64 ? 2
                                                                                                  : 4;
    int d = 0;
    for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
      block<Isa, kRows, kVectors>(values + d, ahead + d, value_row, first, count, weights, factors, output + d,
                                  output_row);
    for (; d < width; d += kLanes)
      block<Isa, kRows, 1>(values + d, ahead + d, value_row, first, count, weights, factors, output + d, output_row);
  }

  template <class Isa, int kRows, int kVectors, class Element>
  static ATTEND_ALWAYS_INLINE void block(const Element* values, const Element* ahead, std::int64_t value_row, int first,
                                         int count, const T* const* weights, const T* const* factors, T* output,
                                         std::int64_t output_row) {
    using Vec = simd::Vec<T, Isa>;
    using Vector = typename Vec::Vector;
    Vector sums[kRows][kVectors], value[kVectors];
    const T* row_weights[kRows];
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
      row_weights[i] = weights[i] + first * kTileQueries;
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) {
        Vec::load(sums[i][n], output + i * output_row + n * Vec::kLanes);
        if (factors != nullptr) sums[i][n] *= *factors[i];
      }
    }
    for (int j = 0; j < count; ++j) {
      ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) {
        Vec::load(value[n], values + j * value_row + n * Vec::kLanes);
        __builtin_prefetch(ahead + j * value_row + n * Vec::kLanes);
      }
      ATTEND_UNROLL for (int i = 0; i < kRows; ++i) {
        const Vector weight = row_weights[i][j * kTileQueries] - Vector{};
        ATTEND_UNROLL for (int n = 0; n < kVectors; ++n) sums[i][n] += weight * value[n];
      }
    }
    ATTEND_UNROLL for (int i = 0; i < kRows; ++i) ATTEND_UNROLL for (int n = 0; n < kVectors; ++n)
        Vec::store(output + i * output_row + n * Vec::kLanes, sums[i][n]);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
