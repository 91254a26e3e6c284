// SPDX-License-Identifier: MIT
#include <attend/simd/math.h>
#include <attend/simd/vector.h>

#include "simd/isas.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

using attend::simd::exponential;
using attend::simd::FloatFormat;
using attend::simd::hyperbolic_tangent;
using attend::simd::logarithm;

namespace {

template <class V>
V exp_of(V x) {
  exponential<V, /*kIsBounded=*/false, typename FloatFormat<V>::Bits>(x);
  return x;
}
template <class V>
V bounded_exp_of(V x) {
  exponential<V, /*kIsBounded=*/true, typename FloatFormat<V>::Bits>(x);
  return x;
}
template <class V>
V tanh_of(V x) {
  hyperbolic_tangent<V, typename FloatFormat<V>::Bits>(x);
  return x;
}

/// Vec::exp or Vec::tanh of many numbers.
template <class V, bool kIsExp>
struct OfNumbers {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(V* numbers, int count) {
    using Vec = attend::simd::Vec<V, Isa>;
    for (int i = 0; i < count; i += Vec::kLanes) {
      typename Vec::Vector x;
      Vec::load(x, numbers + i);
      if constexpr (kIsExp)
        Vec::exp(x);
      else
        Vec::tanh(x);
      Vec::store(numbers + i, x);
    }
  }
};

/// The type of the exact results: <cmath> has these functions for it, with more digits.
template <class V>
using Wide = std::conditional_t<std::is_same_v<V, float>, double, long double>;

/// The error of a result in units in the last place of V.
template <class V>
double error_in_units(V result, Wide<V> exact) {
  if (std::isnan(exact)) return std::isnan(result) ? 0 : INFINITY;
  if (static_cast<V>(exact) == result) return 0;
  if (!std::isfinite(result) || !std::isfinite(exact)) return INFINITY;
  using Limits = std::numeric_limits<V>;
  const int exponent = exact == 0 ? Limits::min_exponent : std::ilogb(exact) + 1;
  const int lowest = exponent < Limits::min_exponent ? Limits::min_exponent : exponent;
  return static_cast<double>(std::abs(result - exact) / std::ldexp(Wide<V>(1), lowest - Limits::digits));
}

/// Numbers of every magnitude and both signs: a regular sample of all values of V, and the values near ±0, ±1 and ±∞.
template <class V>
std::vector<V> numbers() {
  using Bits = typename FloatFormat<V>::Bits;
  const auto of_bits = [](Bits bits) {
    V number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
  };
  std::vector<V> numbers;
  constexpr Bits kStep = (~Bits{0} / 200'000) | 1;
  for (Bits k = 0; k < 200'000; ++k) numbers.push_back(of_bits(k * kStep));
  for (const V start : {V(0), std::numeric_limits<V>::min(), V(1), std::numeric_limits<V>::max()}) {
    Bits bits;
    std::memcpy(&bits, &start, sizeof bits);
    for (Bits k = 0; k < 100; ++k) {
      numbers.push_back(of_bits(bits + k));
      numbers.push_back(-of_bits(bits + k));
      if (bits >= k) numbers.push_back(of_bits(bits - k));
    }
  }
  for (int k = -80'000; k <= 80'000; ++k) numbers.push_back(static_cast<V>(k) / V(100));  // exp matters here
  return numbers;
}

}  // namespace

TEST_CASE_TEMPLATE(
    "elementary functions: exp equals <cmath>'s to two units in the last place; 0 below kSmallest; ±∞ and NaN", V,
    float, double) {
  int computed = 0;
  double largest = 0;
  for (const V x : numbers<V>()) {
    const V result = exp_of(x);
    if (x < FloatFormat<V>::kSmallest) {
      if (result != 0) FAIL_CHECK("exp(" << x << ") = " << result << ", not 0");
      continue;
    }
    const double error = error_in_units(result, std::exp(Wide<V>(x)));
    if (!(error <= 2)) FAIL_CHECK("exp(" << x << ") = " << result << ", wrong by " << error << " units");
    largest = error > largest ? error : largest;
    ++computed;
  }
  CHECK(computed > 100'000);
  CHECK(largest > 0.5);  // otherwise nothing was measured

  // exp returns 0 only for results below four times the smallest normal number of V, and does not overflow early.
  CHECK(std::exp(Wide<V>(FloatFormat<V>::kSmallest)) < 4 * Wide<V>(std::numeric_limits<V>::min()));
  CHECK(exp_of(FloatFormat<V>::kSmallest) > 0);
  CHECK(exp_of(V(0)) == 1);
  CHECK(exp_of(-V(0)) == 1);
  CHECK(exp_of(std::numeric_limits<V>::infinity()) == std::numeric_limits<V>::infinity());
  CHECK(exp_of(-std::numeric_limits<V>::infinity()) == 0);
  CHECK(exp_of(std::numeric_limits<V>::lowest()) == 0);
  CHECK(std::isnan(exp_of(std::numeric_limits<V>::quiet_NaN())));
}

TEST_CASE_TEMPLATE("elementary functions: the bounded exp equals exp for arguments up to 80", V, float, double) {
  for (const V x : numbers<V>())
    if (x <= 80 && error_in_units(bounded_exp_of(x), static_cast<Wide<V>>(exp_of(x))) > 2)
      FAIL_CHECK("exp(" << x << ") = " << bounded_exp_of(x));
  CHECK(bounded_exp_of(-std::numeric_limits<V>::infinity()) == 0);
  CHECK(std::isnan(bounded_exp_of(std::numeric_limits<V>::quiet_NaN())));
}

TEST_CASE_TEMPLATE("elementary functions: tanh equals <cmath>'s to a few units in the last place, for all magnitudes",
                   V, float, double) {
  double largest = 0;
  for (const V x : numbers<V>()) {
    const double error = error_in_units(tanh_of(x), std::tanh(Wide<V>(x)));
    if (!(error <= 4)) FAIL_CHECK("tanh(" << x << ") = " << tanh_of(x) << ", wrong by " << error << " units");
    largest = error > largest ? error : largest;
    if (std::abs(tanh_of(x)) > 1) FAIL_CHECK("tanh(" << x << ") = " << tanh_of(x));
  }
  CHECK(largest > 0.5);
  CHECK(tanh_of(V(0)) == 0);
  CHECK(tanh_of(std::numeric_limits<V>::infinity()) == 1);
  CHECK(tanh_of(-std::numeric_limits<V>::infinity()) == -1);
  CHECK(std::isnan(tanh_of(std::numeric_limits<V>::quiet_NaN())));
}

TEST_CASE_TEMPLATE(
    "elementary functions: log equals <cmath>'s to two units in the last place, also for subnormal numbers", V, float,
    double) {
  double largest = 0;
  for (const V x : numbers<V>()) {
    const double error = error_in_units(logarithm(x), std::log(Wide<V>(x)));
    if (!(error <= 2)) FAIL_CHECK("log(" << x << ") = " << logarithm(x) << ", wrong by " << error << " units");
    largest = error > largest ? error : largest;
  }
  CHECK(largest > 0.5);
  constexpr V kInfinity = std::numeric_limits<V>::infinity();
  CHECK(logarithm(V(1)) == 0);
  CHECK(logarithm(V(0)) == -kInfinity);
  CHECK(logarithm(-V(0)) == -kInfinity);
  CHECK(logarithm(kInfinity) == kInfinity);
  CHECK(std::isnan(logarithm(-kInfinity)));
  CHECK(std::isnan(logarithm(V(-1))));
  CHECK(std::isnan(logarithm(-std::numeric_limits<V>::denorm_min())));
  CHECK(std::isnan(logarithm(std::numeric_limits<V>::quiet_NaN())));
}

TEST_CASE_TEMPLATE("elementary functions: a vector gives the same numbers as its elements", V, float, double) {
  using Bits = typename FloatFormat<V>::Bits;
  constexpr std::size_t kLanes = 16 / sizeof(V);
  typedef V Lanes __attribute__((vector_size(16)));
  typedef Bits LanesOfBits __attribute__((vector_size(16)));
  const std::vector<V> all = numbers<V>();
  int differences = 0;
  for (std::size_t begin = 0; begin + kLanes <= all.size(); begin += 7 * kLanes) {
    Lanes x, exps, tanhs;
    for (std::size_t i = 0; i < kLanes; ++i) x[i] = all[begin + i];
    exps = tanhs = x;
    exponential<V, /*kIsBounded=*/false, LanesOfBits>(exps);
    hyperbolic_tangent<V, LanesOfBits>(tanhs);
    for (std::size_t i = 0; i < kLanes; ++i) {
      differences += error_in_units<V>(exps[i], exp_of(all[begin + i])) > 0;
      differences += error_in_units<V>(tanhs[i], tanh_of(all[begin + i])) > 0;
    }
  }
  CHECK(differences == 0);
}

TEST_CASE_TEMPLATE("Vec::exp and Vec::tanh: to two and four units in the last place on every instruction set", V, float,
                   double) {
  std::vector<V> all = numbers<V>();
  all.resize(all.size() / 16 * 16);
  attend::test::for_each_isa([&](auto isa) {
    using Isa = decltype(isa);
    std::vector<V> exps = all, tanhs = all;
    for (V& x : exps) x = x > 80 ? V(80) : x;
    const std::vector<V> bounded = exps;
    attend::simd::CompiledFor<Isa, OfNumbers<V, true>>::call(exps.data(), static_cast<int>(exps.size()));
    attend::simd::CompiledFor<Isa, OfNumbers<V, false>>::call(tanhs.data(), static_cast<int>(tanhs.size()));
    double exp_error = 0, tanh_error = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool is_cut_off = bounded[i] < FloatFormat<V>::kSmallest;
      const double error =
          is_cut_off ? (exps[i] == 0 ? 0 : INFINITY) : error_in_units(exps[i], std::exp(Wide<V>(bounded[i])));
      exp_error = std::max(exp_error, error);
      tanh_error = std::max(tanh_error, error_in_units(tanhs[i], std::tanh(Wide<V>(all[i]))));
    }
    CHECK(exp_error <= 2);
    CHECK(tanh_error <= 4);
    CHECK(exp_error > 0.5);  // otherwise nothing was measured
    CHECK(tanh_error > 0.5);
  });
}
