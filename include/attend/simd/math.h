// SPDX-License-Identifier: MIT
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "attend: attention needs IEEE arithmetic (infinity, and sums that are not reordered): compile without -ffast-math"
#endif

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

// eˣ, log x and tanh x without a branch or a call, so that a compiler turns a loop of them into vectors, which it does
// not do for calls of the standard library. The same code serves a number, a vector type of the compiler with elements
// of type V, and a GPU. Arguments that may be vectors are passed by reference, because the calling convention of
// vectors by value differs between instruction sets.

template <class V>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  static constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                         kNaN = std::numeric_limits<float>::quiet_NaN();
  static constexpr float kSmallestNormal = std::numeric_limits<float>::min();
  using Bits = std::uint32_t;
  static constexpr int kMantissaBits = 23, kBias = 127, kExpTerms = 7, kLogTerms = 5;
  static constexpr float kShifter = 12582912.0f;  // 1.5 · 2²³: adding it rounds, and leaves n in the lowest bits
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // ln 2 in two; n · high is exact
  static constexpr float kLargest = 88.722839f, kSmallest = -86.6f;           // eˣ is computed between these
};

template <>
struct FloatFormat<double> {
  static constexpr double kInfinity = std::numeric_limits<double>::infinity(),
                          kNaN = std::numeric_limits<double>::quiet_NaN();
  static constexpr double kSmallestNormal = std::numeric_limits<double>::min();
  using Bits = std::uint64_t;
  static constexpr int kMantissaBits = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 11;
  static constexpr double kShifter = 6755399441055744.0;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kLargest = 709.782712893384, kSmallest = -707.7;
};

/// sum = f/k! + f²/(k + 1)! + … + fⁿ⁻ᵏ⁺¹/n!, where n is kExpTerms. It is called with k = 1.
template <class V, int k, class Lanes>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE void sum_exponential_series(const Lanes& f, Lanes& sum, V coefficient = 1) {
  coefficient = coefficient / static_cast<V>(k);
  if constexpr (k == FloatFormat<V>::kExpTerms) {
    sum = f * coefficient;
  } else {
    sum_exponential_series<V, k + 1>(f, sum, coefficient);
    sum = (sum + coefficient) * f;
  }
}

/// For x = n · ln 2 + f with n whole and |f| ≤ ½ ln 2: eᶠ − 1 and 2ⁿ⁺ᵏ, where n + k must be an exponent of a normal
/// number.
template <class V, int k, class Bits, class Lanes>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE void split_exponential(const Lanes& x, Lanes& rest, Lanes& power) {
  using Format = FloatFormat<V>;
  const Lanes shifted = x * static_cast<V>(1.4426950408889634074) + Format::kShifter, n = shifted - Format::kShifter;
  const Lanes f = (x - n * Format::kLn2High) - n * Format::kLn2Low;
  sum_exponential_series<V, 1>(f, rest);
  const Bits exponent = __builtin_bit_cast(Bits, shifted) + static_cast<typename Format::Bits>(Format::kBias + k);
  const Bits bits = exponent << Format::kMantissaBits;
  power = __builtin_bit_cast(Lanes, bits);
}

/// x becomes eˣ, to a unit or two in the last place; 0 below kSmallest, −∞ included; NaN stays NaN. With kIsBounded x
/// must not be above 80. Without it, results that are too large become +∞.
template <class V, bool kIsBounded, class Bits, class Lanes>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE void exponential(Lanes& x) {
  using Format = FloatFormat<V>;
  constexpr int k = kIsBounded ? 0 : -1;  // half of it, because 2ⁿ alone may be too large
  Lanes rest, power;
  split_exponential<V, k, Bits>(x, rest, power);
  Lanes result = power + power * rest;
  if constexpr (!kIsBounded) {
    result = result + result;
    result = x > Format::kLargest ? Lanes{} + Format::kInfinity : result;
  }
  x = x < Format::kSmallest ? Lanes{} : result;
}

/// x becomes tanh x = (e²ˣ − 1) / (e²ˣ + 1), to a few units in the last place, near 0 too; NaN stays NaN.
template <class V, class Bits, class Lanes>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE void hyperbolic_tangent(Lanes& x) {
  constexpr V kLimit = 40;  // tanh is ±1 beyond it
  Lanes twice = x + x, rest, power;
  twice = twice > kLimit ? Lanes{} + kLimit : twice;
  twice = twice < -kLimit ? Lanes{} - kLimit : twice;
  split_exponential<V, 0, Bits>(twice, rest, power);
  const Lanes less_one = power * rest + (power - V(1));  // e²ˣ − 1, without the loss of a difference
  x = less_one / (less_one + V(2));
}

/// sum = x/(2k + 1) + x²/(2k + 3) + … up to the divisor 2n + 1, where n is kLogTerms. It is called with k = 1.
template <class V, int k>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE void sum_logarithm_series(V x, V& sum) {
  if constexpr (k < FloatFormat<V>::kLogTerms) sum_logarithm_series<V, k + 1>(x, sum);
  sum = (sum + V(1) / V(2 * k + 1)) * x;
}

/// log x of a number, to a unit or two in the last place: −∞ for 0, NaN below, +∞ for +∞; NaN stays NaN.
template <class V>
ATTEND_HOST_DEVICE ATTEND_ALWAYS_INLINE V logarithm(V x) {
  using Format = FloatFormat<V>;
  using Bits = typename Format::Bits;
  constexpr V kNormalize = static_cast<V>(std::uint64_t{1} << (Format::kMantissaBits + 1));
  constexpr Bits kRootHalf = __builtin_bit_cast(Bits, static_cast<V>(0.70710678118654752440));
  constexpr Bits kMantissa = (Bits{1} << Format::kMantissaBits) - 1;
  // x = 2ᵉ · m, with √½ ≤ m < √2
  const bool is_subnormal = x < Format::kSmallestNormal;
  const Bits bits = __builtin_bit_cast(Bits, is_subnormal ? x * kNormalize : x) - kRootHalf;
  const auto e = static_cast<V>(static_cast<std::make_signed_t<Bits>>(bits) >> Format::kMantissaBits) -
                 (is_subnormal ? V(Format::kMantissaBits + 1) : V(0));
  const V m = __builtin_bit_cast(V, static_cast<Bits>((bits & kMantissa) + kRootHalf));
  const V f = (m - V(1)) / (m + V(1)), square = f * f;  // log m = 2 (f + f³/3 + f⁵/5 + …)
  V sum = 0;
  sum_logarithm_series<V, 1>(square, sum);
  const V result = e * Format::kLn2High + (V(2) * f + (V(2) * f * sum + e * Format::kLn2Low));
  return x == Format::kInfinity || x != x ? x : x < V(0) ? Format::kNaN : x == V(0) ? -Format::kInfinity : result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
