// SPDX-License-Identifier: MIT
#include <attend/score/dual.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>

using attend::Dual;
using attend::Real;

namespace {

/// A function of a score, for every number type with which a kernel calls a score_mod.
struct Score {
  template <class Function>
  Score(const std::string& name, const Function& function)
      : name(name), value(function), with_derivative(function), with_two(function) {}

  std::string name;
  std::function<Real<double>(Real<double>)> value;
  std::function<Dual<double>(Dual<double>)> with_derivative;
  std::function<Dual<Dual<double>>(Dual<Dual<double>>)> with_two;

  double at(double x) const { return value(x).value; }
  double derivative(double x) const { return with_derivative({x, 1}).derivative.value; }
  Dual<Dual<double>> twice(double x) const { return with_two({Dual<double>(x, 1), Dual<double>(1)}); }
};

const Score kScores[] = {
    {"x", [](auto x) { return x; }},
    {"a constant", [](auto x) { return decltype(x)(3); }},
    {"soft sign", [](auto x) { return x / (1 + abs(x) * 0.5f); }},
    {"cap", [](auto x) { return 2.5 * tanh(x / 2.5); }},
    {"exp", [](auto x) { return exp(x); }},
    {"gaussian", [](auto x) { return exp(-x * x / 2); }},
    {"log", [](auto x) { return log(abs(x)); }},
    {"soft plus", [](auto x) { return log(1 + exp(x)); }},
    {"sigmoid", [](auto x) { return 1 / (1 + exp(-x)); }},
    {"root", [](auto x) { return sqrt(x * x + 0.25); }},
    {"signed root", [](auto x) { return select(x < 0, -sqrt(abs(x)), sqrt(abs(x))); }},
    {"clamp", [](auto x) { return min(max(x, decltype(x)(-1)), decltype(x)(0.5)); }},
    {"leaky", [](auto x) { return max(x, x * 0.125); }},
    {"piecewise",
     [](auto x) {
       if (x > 1) return x * x;
       if (x < -1) return -x / 3;
       return 2 * x - 1;
     }},
    {"sine", [](auto x) { return sin(2 * x); }},
    {"cosine", [](auto x) { return cos(x * x); }},
    {"tangent", [](auto x) { return tan(x / 8); }},
    {"sigmoid by name", [](auto x) { return sigmoid(3 * x); }},
    {"error function", [](auto x) { return erf(x / 2); }},
    {"power", [](auto x) { return pow(abs(x) + 1, 2.5); }},
    {"whole power", [](auto x) { return pow(x, 3); }},
    {"power of a number", [](auto x) { return pow(2, x); }},
    {"power by itself", [](auto x) { return pow(abs(x) + 0.5, x); }},
    {"floor", [](auto x) { return x * floor(x); }},
    {"round", [](auto x) { return x * round(x); }},
    {"polynomial", [](auto x) { return ((0.25 * x - 1) * x + 2) * x - 5; }},
    {"rational", [](auto x) { return (x * x - 1) / (x * x + 2); }},
    {"accumulated",
     [](auto x) {
       auto sum = x;
       sum += 1;
       sum *= x;
       sum -= 0.5f;
       sum /= x * x + 1;
       return sum;
     }},
    {"a sum of powers",
     [](auto x) {
       decltype(x) sum = 0, power = 1;
       for (int k = 1; k < 6; ++k) sum += (power *= x / k);
       return sum;
     }},
    {"tanh of exp of minus abs", [](auto x) { return tanh(exp(-abs(x))); }},
    {"swish", [](auto x) { return x * (0.5 + 0.5 * tanh(x / 2)); }},
    {"quotient of functions", [](auto x) { return tanh(x) / sqrt(exp(x) + 1); }},
    {"power of its own", [](auto x) { return exp(x * log(abs(x) + 0.5)); }},
};

/// Points away from the kinks of the functions above.
constexpr double kPoints[] = {-3.1, -1.7, -0.6, -0.2, 0.15, 0.4, 0.85, 1.3, 2.9};

constexpr double kStep = 1e-5;

/// Equal but for rounding: on aarch64 compilers fuse multiplications with additions, not the same ones in both types.
bool is_same(double a, double b) { return std::abs(a - b) <= 1e-14 * std::max(1.0, std::abs(b)); }

}  // namespace

TEST_CASE("Dual: derivatives equal finite differences to 1e-6, for at least 20 scores") {
  CHECK(std::size(kScores) >= 20);
  for (const Score& score : kScores) {
    for (const double x : kPoints) {
      CAPTURE(score.name);
      CAPTURE(x);
      const double difference = (score.at(x + kStep) - score.at(x - kStep)) / (2 * kStep);
      CHECK(std::abs(score.derivative(x) - difference) <= 1e-6 * std::max(1.0, std::abs(difference)));
      CHECK(is_same(score.with_derivative({x, 1}).value.value, score.at(x)));
    }
  }
}

TEST_CASE("Dual: second derivatives equal finite differences of the first derivatives to 1e-6") {
  for (const Score& score : kScores) {
    for (const double x : kPoints) {
      CAPTURE(score.name);
      CAPTURE(x);
      const Dual<Dual<double>> both = score.twice(x);
      const double difference = (score.derivative(x + kStep) - score.derivative(x - kStep)) / (2 * kStep);
      CHECK(std::abs(both.derivative.derivative.value - difference) <= 1e-6 * std::max(1.0, std::abs(difference)));
      CHECK(is_same(both.value.value.value, score.at(x)));
      CHECK(std::abs(both.value.derivative.value - score.derivative(x)) < 1e-14 * std::max(1.0, std::abs(difference)));
      CHECK(std::abs(both.derivative.value.value - score.derivative(x)) < 1e-14 * std::max(1.0, std::abs(difference)));
    }
  }
}

TEST_CASE("Dual: the derivative is proportional to that of the argument, and 0 for a constant") {
  for (const Score& score : kScores) {
    CAPTURE(score.name);
    const double three_times = score.with_derivative({0.4, 3}).derivative.value;
    CHECK(std::abs(three_times - 3 * score.derivative(0.4)) < 1e-14 * std::max(1.0, std::abs(three_times)));
    CHECK(score.with_derivative(0.4).derivative.value == 0);
  }
}

TEST_CASE("Dual: where a function has no derivative, it equals torch's; max and min of equal values take the first") {
  const auto slope = [](const auto& function) { return function(Dual<double>(0, 1)).derivative.value; };
  CHECK(slope([](auto x) { return abs(x); }) == 0);
  CHECK(slope([](auto x) { return max(x, 2 * x); }) == 1);
  CHECK(slope([](auto x) { return max(2 * x, x); }) == 2);
  CHECK(slope([](auto x) { return min(x, 2 * x); }) == 1);
  CHECK(slope([](auto x) { return min(2 * x, x); }) == 2);
  CHECK(slope([](auto x) { return max(x, decltype(x)(0)); }) == 1);
  CHECK(slope([](auto x) { return select(x < 0, -x, 3 * x); }) == 3);
  CHECK(std::isinf(slope([](auto x) { return sqrt(x); })));
}

TEST_CASE("Dual: pow, floor, round and sigmoid at special values equal torch's") {
  const auto slope = [](double x, const auto& function) { return function(Dual<double>(x, 1)).derivative.value; };
  CHECK(slope(0, [](auto x) { return pow(x, 0); }) == 0);
  CHECK(slope(0, [](auto x) { return pow(x, 1); }) == 1);
  CHECK(slope(0, [](auto x) { return pow(x, 2); }) == 0);
  CHECK(slope(0, [](auto x) { return pow(0, x); }) == 0);
  CHECK(slope(-2, [](auto x) { return pow(x, 2); }) == -4);
  CHECK(round(Real<double>(0.5)).value == 0);
  CHECK(round(Real<double>(1.5)).value == 2);
  CHECK(round(Real<double>(-2.5)).value == -2);
  CHECK(floor(Real<double>(-0.5)).value == -1);
  CHECK(sigmoid(Real<float>(-1000)).value == 0);
  CHECK(sigmoid(Real<float>(1000)).value == 1);
  CHECK(sigmoid(Dual<float>(-1000, 1)).derivative.value == 0);
}

TEST_CASE("Dual: sqrt of a constant 0 has derivative 0") {
  CHECK(sqrt(Dual<double>(0)).derivative.value == 0);
  CHECK(sqrt(Dual<float>(0)).derivative.value == 0);
  const Dual<Dual<double>> root = sqrt(Dual<Dual<double>>(0));
  CHECK(root.value.derivative.value == 0);
  CHECK(root.derivative.value.value == 0);
  CHECK(root.derivative.derivative.value == 0);
}

TEST_CASE("Dual: max and min return NaN if either argument is NaN, as in torch") {
  const auto check = [](auto number) {
    using T = decltype(number);
    const T nan = std::numeric_limits<double>::quiet_NaN();
    for (const T result : {max(nan, number), max(number, nan), min(nan, number), min(number, nan)})
      CHECK_FALSE(result == result);
  };
  check(Real<float>(1));
  check(Real<double>(1));
  check(Dual<float>(1));
  check(Dual<double>(1));
}

TEST_CASE_TEMPLATE("Dual, Real: operators take a C++ number on either side", T, Real<float>, Real<double>, Dual<float>,
                   Dual<double>, Dual<Dual<double>>) {
  const T x = 6;
  const auto equals = [](T a, double b) { return a == T(b); };
  CHECK(equals(x + 2, 8));
  CHECK(equals(2 + x, 8));
  CHECK(equals(x - 2.0f, 4));
  CHECK(equals(2.0f - x, -4));
  CHECK(equals(x * 2.5, 15));
  CHECK(equals(2.5 * x, 15));
  CHECK(equals(x / 4u, 1.5));
  CHECK(equals(3L / x, 0.5));
  CHECK(equals(x + true, 7));
  CHECK(equals(std::size_t{2} * x, 12));
  CHECK(equals(T(std::int32_t{-7}) + std::int64_t{7}, 0));
  CHECK(equals(-x, -6));
  CHECK(equals(max(x, 7), 7));
  CHECK(equals(max(7, x), 7));
  CHECK(equals(min(x, 5.0), 5));
  CHECK(equals(select(true, x, 1), 6));
  CHECK(equals(select(false, x, 1), 1));
  CHECK(equals(abs(-x), 6));
  CHECK(equals(abs(x), 6));
  CHECK(equals(sqrt(x - 2), 2));

  T y = x;
  y += 2;
  CHECK(equals(y, 8));
  y -= x;
  CHECK(equals(y, 2));
  y *= 1.5f;
  CHECK(equals(y, 3));
  (y /= 2.0) += 1;
  CHECK(equals(y, 2.5));
}

TEST_CASE_TEMPLATE("Dual: comparisons use only the value", T, Real<float>, Real<double>, Dual<float>, Dual<double>,
                   Dual<Dual<double>>) {
  const T small = 1, large = 2;
  CHECK(small < large);
  CHECK_FALSE(large < small);
  CHECK(large > small);
  CHECK_FALSE(small > large);
  CHECK(small <= large);
  CHECK(small <= T(1));
  CHECK_FALSE(large <= small);
  CHECK(large >= small);
  CHECK(large >= T(2));
  CHECK_FALSE(small >= large);
  CHECK(small == T(1));
  CHECK_FALSE(small == large);
  CHECK(small != large);
  CHECK_FALSE(small < 1);
  CHECK(small < 1.5f);
  CHECK(0.5 < small);
  CHECK(2 == large);
  const T nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_FALSE(nan == nan);
  CHECK_FALSE(nan < small);
  CHECK_FALSE(nan > small);
}

TEST_CASE("Dual: two Duals with the same value and different derivatives are equal") {
  CHECK(Dual<double>(2, 1) == Dual<double>(2, 5));
  CHECK_FALSE(Dual<double>(2, 1) < Dual<double>(2, 5));
}

TEST_CASE("Real, Dual: they are not arithmetic types, and they are constexpr") {
  static_assert(!std::is_arithmetic_v<Real<float>>);
  static_assert(sizeof(Real<float>) == sizeof(float));
  static_assert(std::is_trivially_copyable_v<Dual<Dual<double>>>);
  static_assert(Real<float>(2) * 3 + 1 == 7);
  static_assert(max(Real<double>(2), Real<double>(5)) - 1 == 4);
  static_assert((Dual<double>(3, 1) * Dual<double>(3, 1)).derivative == 6);
  CHECK(Real<float>(0.1).value == 0.1f);
  CHECK(Real<double>(0.1f).value == static_cast<double>(0.1f));
}
