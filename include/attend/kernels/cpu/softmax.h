// SPDX-License-Identifier: MIT
#pragma once

// The operations on a tile of scores between the matrix products. Queries are in the lanes, so no operation goes across
// lanes.

#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// Long sums are sums of partial sums of kPart numbers, which halves their error.
inline constexpr int kPart = 8;

/// How far a score may exceed m in SoftmaxStep. A larger number would cost accuracy: the difference score − m of the
/// largest weights is rounded.
inline constexpr int kSlack = 2;

/// One step of the online softmax. m, in `largest`, is near the largest score of each query so far: if a score exceeds m
/// by more than kSlack, m becomes the largest score. So the output is seldom rescaled. Scores become P = exp(score − m),
/// `rescale` becomes exp(m before − m), and `sum` becomes sum · rescale + ΣP.
template <class T>
struct SoftmaxStep {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, int keys, int columns, T* largest, T* sum, T* rescale) {
    using Vec = attend::simd::Vec<T, Isa>;
    using Vector = typename Vec::Vector;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vector before, now, score, total{}, part{};
      Vec::load(before, largest + i);
      now = before;
      for (int j = 0; j < keys; ++j) {
        Vec::load(score, scores + j * kTileQueries + i);
        now = score > now ? score : now;
      }
      now = now > before + T(kSlack) ? now : before;
      Vec::store(largest + i, now);
      now = now == kNegativeInfinity<T> ? Vector{} : now;  // a query that has seen no key yet
      for (int j = 0; j < keys; ++j) {
        Vec::load(score, scores + j * kTileQueries + i);
        score -= now;
        Vec::exp(score);
        part += score;
        Vec::store(scores + j * kTileQueries + i, score);
        if (j % kPart == kPart - 1 || j + 1 == keys) {
          total += part;
          part = Vector{};
        }
      }
      before -= now;
      Vec::exp(before);
      Vec::store(rescale + i, before);
      Vec::load(score, sum + i);
      Vec::store(sum + i, score * before + total);
    }
  }
};

/// Divides every row of values by the same divisors, one for each column. A multiplication by their inverses would give
/// all numbers of a column the same error, which a backward pass enlarges.
template <class T>
struct DivideColumns {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* values, int rows, int columns, const T* divisors) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector value, divisor;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(divisor, divisors + i);
      for (int j = 0; j < rows; ++j) {
        Vec::load(value, values + j * kTileQueries + i);
        Vec::store(values + j * kTileQueries + i, value / divisor);
      }
    }
  }
};

/// Multiplies every row of values by the same factors, one for each column.
template <class T>
struct ScaleColumns {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* values, int rows, int columns, const T* factors) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector value, factor;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(factor, factors + i);
      for (int j = 0; j < rows; ++j) {
        Vec::load(value, values + j * kTileQueries + i);
        Vec::store(values + j * kTileQueries + i, value * factor);
      }
    }
  }
};

/// values ∘ factors for whole rows of a tile. 0 remains 0, because the derivative of a masked score may be infinite.
template <class T>
struct Multiply {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* values, const T* factors, int rows) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector value, factor;
    for (int i = 0; i < rows * kTileQueries; i += Vec::kLanes) {
      Vec::load(value, values + i);
      Vec::load(factor, factors + i);
      Vec::store(values + i, value == T(0) ? value : value * factor);
    }
  }
};

/// For the backward pass: scores become P = exp(score − log-sum-exp). The log-sum-exp has two parts: log_sum_exp +
/// log_sum_exp_lo. Adds ΣP and ΣP · dP over the keys to the sums; `gradients` hold dP.
template <class T>
struct RecomputeSoftmax {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, const T* gradients, int keys, int columns, const T* log_sum_exp,
                                       const T* log_sum_exp_lo, T* weight_sum, T* gradient_sum) {
    using Vec = attend::simd::Vec<T, Isa>;
    using Vector = typename Vec::Vector;
    Vector shift, shift_lo, weight, gradient, weights, products, some_weights{}, some_products{};
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(shift, log_sum_exp + i);
      Vec::load(shift_lo, log_sum_exp_lo + i);
      Vec::load(weights, weight_sum + i);
      Vec::load(products, gradient_sum + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Vec::load(weight, scores + entry);
        Vec::load(gradient, gradients + entry);
        weight = (weight - shift) - shift_lo;
        Vec::exp(weight);
        Vec::store(scores + entry, weight);
        some_weights += weight;
        some_products += weight * gradient;
        if (j % kPart == kPart - 1 || j + 1 == keys) {
          weights += some_weights;
          products += some_products;
          some_weights = some_products = Vector{};
        }
      }
      Vec::store(weight_sum + i, weights);
      Vec::store(gradient_sum + i, products);
    }
  }
};

/// For the backward pass: adds ΣP (dP − δ) over the keys to the sums. Divided by ΣP, they are the error of δ.
template <class T>
struct AddDeltaResidual {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, const T* gradients, int keys, int columns, const T* delta,
                                       T* sum) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector mean, total, weight, gradient;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(mean, delta + i);
      Vec::load(total, sum + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Vec::load(weight, weights + entry);
        Vec::load(gradient, gradients + entry);
        total += weight * (gradient - mean);
      }
      Vec::store(sum + i, total);
    }
  }
};

/// For the backward pass: gradients dP become dS = P (dP − δ). δ has two parts: delta + delta_lo. Where P is 0, dS is
/// 0, even if dP is not finite.
template <class T>
struct SoftmaxGradient {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* weights, T* gradients, int keys, int columns, const T* delta,
                                       const T* delta_lo) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector mean, mean_lo, weight, gradient;
    for (int i = 0; i < columns; i += Vec::kLanes) {
      Vec::load(mean, delta + i);
      Vec::load(mean_lo, delta_lo + i);
      for (int j = 0; j < keys; ++j) {
        const int entry = j * kTileQueries + i;
        Vec::load(weight, weights + entry);
        Vec::load(gradient, gradients + entry);
        Vec::store(gradients + entry, weight == T(0) ? weight : weight * ((gradient - mean) - mean_lo));
      }
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
