// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/flat_dropout.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The activation of a feed-forward network.
enum class HiddenActivation { kReLU, kGELU };

/// The columns of a panel of hidden numbers.
inline constexpr int kPanel = kTileQueries;

/// Φ(x), the distribution function of the normal distribution, to 1e-7 of the smaller of Φ(x) and 1 − Φ(x).
///
/// Source: the approximation of erfc in W. Press et al., "Numerical recipes", 1992, section 6.2.
template <class Isa>
struct NormalDistribution {
  using Vec = simd::Vec<float, Isa>;
  using Vector = typename Vec::Vector;

  static ATTEND_ALWAYS_INLINE void cdf(const Vector& x, Vector& result) {
    constexpr float kCoefficients[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                                       -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    const Vector z = (x < Vector{} ? -x : x) * 0.70710678f;
    const Vector t = 1.0f / (1.0f + 0.5f * z);
    Vector sum = kCoefficients[0] * t + kCoefficients[1];
    ATTEND_UNROLL for (int k = 2; k < 10; ++k) sum = sum * t + kCoefficients[k];
    sum -= z * z;
    Vec::exp(sum);
    const Vector tail = 0.5f * t * sum;
    result = x < Vector{} ? tail : 1.0f - tail;
  }

  /// The derivative of Φ.
  static ATTEND_ALWAYS_INLINE void density(const Vector& x, Vector& result) {
    result = -0.5f * x * x;
    Vec::exp(result);
    result *= 0.39894228f;
  }
};

/// to = dropout(activation(from)) for a panel of hidden numbers. The first row is row `first` of x.
struct ActivatePanel {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, float* to, std::int64_t first, int rows, int columns,
                                       HiddenActivation activation, const FlatDropout* dropout, std::int64_t panel) {
    using Vec = simd::Vec<float, Isa>;
    using Vector = typename Vec::Vector;
    alignas(64) float factors[kPanel];
    for (int i = 0; i < rows; ++i) {
      if (dropout->is_active()) FlatDropoutFactors::run<Isa>(*dropout, first + i, panel, factors);
      for (int j = 0; j < columns; j += Vec::kLanes) {
        Vector a, factor;
        Vec::load(a, from + i * kPanel + j);
        if (activation == HiddenActivation::kReLU) {
          a = a < Vector{} ? Vector{} : a;  // NaN stays NaN
        } else {
          NormalDistribution<Isa>::cdf(a, factor);
          a *= factor;
        }
        if (dropout->is_active()) {
          Vec::load(factor, factors + j);
          a *= factor;
        }
        Vec::store(to + i * kPanel + j, a);
      }
    }
  }
};

/// sums[j] += Σ_i numbers[i · row + j]. The rows are summed in four parts, which is more accurate than one sum.
struct AddRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* numbers, int rows, std::int64_t columns, std::int64_t row,
                                       float* sums) {
    using Vec = simd::Vec<float, Isa>;
    using Vector = typename Vec::Vector;
    constexpr int kParts = 4;
    for (std::int64_t j = 0; j < columns; j += Vec::kLanes) {
      Vector parts[kParts]{}, one;
      int i = 0;
      for (; i + kParts <= rows; i += kParts) ATTEND_UNROLL for (int part = 0; part < kParts; ++part) {
          Vec::load(one, numbers + (i + part) * row + j);
          parts[part] += one;
        }
      for (; i < rows; ++i) {
        Vec::load(one, numbers + i * row + j);
        parts[0] += one;
      }
      Vec::load(one, sums + j);
      one += (parts[0] + parts[1]) + (parts[2] + parts[3]);
      Vec::store(sums + j, one);
    }
  }
};

/// The gradient of ActivatePanel, in place. It reads the numbers that the forward pass saved: with ReLU the results,
/// with GELU the inputs. With GELU it also writes the results to `results`. It adds the sum over the rows to `sums`.
struct ActivationGradient {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(float* gradients, const float* saved, float* results, std::int64_t first,
                                       int rows, int columns, HiddenActivation activation, const FlatDropout* dropout,
                                       std::int64_t panel, float* sums) {
    if (activation == HiddenActivation::kGELU)
      gelu<Isa>(gradients, saved, results, first, rows, columns, *dropout, panel);
    else
      relu<Isa>(gradients, saved, rows, columns, dropout->kept);
    AddRows::run<Isa>(gradients, rows, columns, kPanel, sums);
  }

 private:
  /// A gradient becomes 0 if the result is 0. The others are multiplied by `kept`.
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void relu(float* gradients, const float* results, int rows, int columns, float kept) {
    using Vec = simd::Vec<float, Isa>;
    using Vector = typename Vec::Vector;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; j += Vec::kLanes) {
        Vector gradient, result;
        Vec::load(gradient, gradients + i * kPanel + j);
        Vec::load(result, results + i * kPanel + j);
        gradient = result == Vector{} ? Vector{} : gradient * kept;
        Vec::store(gradients + i * kPanel + j, gradient);
      }
  }

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void gelu(float* gradients, const float* inputs, float* results, std::int64_t first,
                                        int rows, int columns, const FlatDropout& dropout, std::int64_t panel) {
    using Vec = simd::Vec<float, Isa>;
    using Vector = typename Vec::Vector;
    alignas(64) float factors[kPanel];
    for (int i = 0; i < rows; ++i) {
      if (dropout.is_active()) FlatDropoutFactors::run<Isa>(dropout, first + i, panel, factors);
      for (int j = 0; j < columns; j += Vec::kLanes) {
        Vector gradient, x, cdf, density, factor{};
        Vec::load(gradient, gradients + i * kPanel + j);
        Vec::load(x, inputs + i * kPanel + j);
        if (dropout.is_active())
          Vec::load(factor, factors + j);
        else
          factor += 1.0f;
        NormalDistribution<Isa>::cdf(x, cdf);
        NormalDistribution<Isa>::density(x, density);
        gradient *= (cdf + x * density) * factor;
        Vec::store(gradients + i * kPanel + j, gradient);
        x *= cdf * factor;
        Vec::store(results + i * kPanel + j, x);
      }
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
