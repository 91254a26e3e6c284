// SPDX-License-Identifier: MIT
#pragma once

// What is done to a tile of scores between the matrix products. Queries lie in the lanes, so that no step goes across
// lanes.

#include <attend/attention/cpu/tile.h>
#include <attend/attention/cpu/vector.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// Long sums are made of sums of so many numbers, which halves their error.
inline constexpr int kPart = 8;

/// One step of the online softmax: scores become P = exp(score − m), where m, in `largest`, is each query's largest
/// score so far; `rescale` becomes exp(m before − m), and `sum` is rescaled and increased by P.
template <class T>
struct SoftmaxStep {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(T* scores, int keys, int columns, T* largest, T* sum, T* rescale) {
    using Simd = attend::cpu::Simd<T, Set>;
    using Vector = typename Simd::Vector;
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Vector before, now, score, total{}, part{};
      Simd::load(before, largest + i);
      now = before;
      for (int j = 0; j < keys; ++j) {
        Simd::load(score, scores + j * kTileQueries + i);
        now = score > now ? score : now;
      }
      Simd::store(largest + i, now);
      now = now == kNever<T> ? Vector{} : now;  // a query that has seen no key yet
      for (int j = 0; j < keys; ++j) {
        Simd::load(score, scores + j * kTileQueries + i);
        score -= now;
        Simd::exp(score);
        part += score;
        Simd::store(scores + j * kTileQueries + i, score);
        if (j % kPart == kPart - 1 || j + 1 == keys) {
          total += part;
          part = Vector{};
        }
      }
      before -= now;
      Simd::exp(before);
      Simd::store(rescale + i, before);
      Simd::load(score, sum + i);
      Simd::store(sum + i, score * before + total);
    }
  }
};

/// Divides every row of values by the same divisors, one for each column. Multiplying with their inverses would add an
/// error that all numbers of a column have in common, and that a backward pass enlarges.
template <class T>
struct DivideColumns {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(T* values, int rows, int columns, const T* divisors) {
    using Simd = attend::cpu::Simd<T, Set>;
    typename Simd::Vector value, divisor;
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Simd::load(divisor, divisors + i);
      for (int j = 0; j < rows; ++j) {
        Simd::load(value, values + j * kTileQueries + i);
        Simd::store(values + j * kTileQueries + i, value / divisor);
      }
    }
  }
};

/// Multiplies every row of values with the same factors, one for each column.
template <class T>
struct ScaleColumns {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(T* values, int rows, int columns, const T* factors) {
    using Simd = attend::cpu::Simd<T, Set>;
    typename Simd::Vector value, factor;
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Simd::load(factor, factors + i);
      for (int j = 0; j < rows; ++j) {
        Simd::load(value, values + j * kTileQueries + i);
        Simd::store(values + j * kTileQueries + i, value * factor);
      }
    }
  }
};

/// values · factors, number by number, for whole rows of a tile; 0 stays 0, whatever the factor: where no gradient
/// goes, a derivative may be infinite.
template <class T>
struct Multiply {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(T* values, const T* factors, int rows) {
    using Simd = attend::cpu::Simd<T, Set>;
    typename Simd::Vector value, factor;
    for (int i = 0; i < rows * kTileQueries; i += Simd::kLanes) {
      Simd::load(value, values + i);
      Simd::load(factor, factors + i);
      Simd::store(values + i, value == T(0) ? value : value * factor);
    }
  }
};

/// For the backward pass: scores become P = exp(score − log-sum-exp), the latter in two parts. Adds ΣP and ΣP · dP over
/// the keys to the sums.
template <class T>
struct SoftmaxAgain {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(T* scores, const T* gradients, int keys, int columns, const T* log_sum_exp,
                                       const T* rest, T* weight_sum, T* gradient_sum) {
    using Simd = attend::cpu::Simd<T, Set>;
    using Vector = typename Simd::Vector;
    Vector shift, small_shift, weight, gradient, weights, products, some_weights{}, some_products{};
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Simd::load(shift, log_sum_exp + i);
      Simd::load(small_shift, rest + i);
      Simd::load(weights, weight_sum + i);
      Simd::load(products, gradient_sum + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Simd::load(weight, scores + entry);
        Simd::load(gradient, gradients + entry);
        weight = (weight - shift) - small_shift;
        Simd::exp(weight);
        Simd::store(scores + entry, weight);
        some_weights += weight;
        some_products += weight * gradient;
        if (j % kPart == kPart - 1 || j + 1 == keys) {
          weights += some_weights;
          products += some_products;
          some_weights = some_products = Vector{};
        }
      }
      Simd::store(weight_sum + i, weights);
      Simd::store(gradient_sum + i, products);
    }
  }
};

/// For the backward pass: adds ΣP (dP − δ) over the keys to the sums, which is what δ lacks.
template <class T>
struct AddExcess {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, const T* gradients, int keys, int columns, const T* delta,
                                       T* sum) {
    using Simd = attend::cpu::Simd<T, Set>;
    typename Simd::Vector mean, total, weight, gradient;
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Simd::load(mean, delta + i);
      Simd::load(total, sum + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Simd::load(weight, weights + entry);
        Simd::load(gradient, gradients + entry);
        total += weight * (gradient - mean);
      }
      Simd::store(sum + i, total);
    }
  }
};

/// For the backward pass: gradients, which hold dP, become dS = P (dP − δ), where δ is in two parts;
/// 0 where P is, whatever the gradients: a query that may attend to nothing has none.
template <class T>
struct SoftmaxGradient {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, T* gradients, int keys, int columns, const T* delta,
                                       const T* rest) {
    using Simd = attend::cpu::Simd<T, Set>;
    typename Simd::Vector mean, small_mean, weight, gradient;
    for (int i = 0; i < columns; i += Simd::kLanes) {
      Simd::load(mean, delta + i);
      Simd::load(small_mean, rest + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Simd::load(weight, weights + entry);
        Simd::load(gradient, gradients + entry);
        Simd::store(gradients + entry, weight == T(0) ? weight : weight * ((gradient - mean) - small_mean));
      }
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
