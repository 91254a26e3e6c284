// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/math.h>
#include <attend/version.h>

#include <cmath>
#include <type_traits>

// A call that is not inlined would keep the compiler from making vectors of a loop.
#define ATTEND_NUMBER ATTEND_HOST_DEVICE __attribute__((always_inline))

namespace attend::inline ATTEND_VERSION_NAMESPACE {

// The numbers that a score_mod computes with. A score_mod is written once, for any type T:
//
//   template <class T> T operator()(T score, Coordinate at) const { return score - abs(score) * 0.5f; }
//
// It is called with Real<V> for its value, and with Dual<V> (dual.h) for its value and derivative. V is float or
// double. Both types have + - * /, comparisons of the values, and abs exp log pow sqrt sin cos tan tanh sigmoid erf
// floor round max min select, which are found without a namespace. Both convert from any built-in number.

/// A number of type V, float or double. It is a class because with a built-in float, abs(x) could call the function for
/// int, and exp(x) the function for double.
template <class V>
struct Real {
  /// The number.
  V value;

  Real() = default;
  /// The nearest number of type V.
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  ATTEND_NUMBER constexpr Real(Number number) : value(static_cast<V>(number)) {}

  ATTEND_NUMBER friend constexpr Real operator+(Real a, Real b) { return a.value + b.value; }
  ATTEND_NUMBER friend constexpr Real operator-(Real a, Real b) { return a.value - b.value; }
  ATTEND_NUMBER friend constexpr Real operator*(Real a, Real b) { return a.value * b.value; }
  ATTEND_NUMBER friend constexpr Real operator/(Real a, Real b) { return a.value / b.value; }
  ATTEND_NUMBER friend constexpr Real operator-(Real a) { return -a.value; }

  ATTEND_NUMBER friend constexpr bool operator<(Real a, Real b) { return a.value < b.value; }
  ATTEND_NUMBER friend constexpr bool operator>(Real a, Real b) { return a.value > b.value; }
  ATTEND_NUMBER friend constexpr bool operator<=(Real a, Real b) { return a.value <= b.value; }
  ATTEND_NUMBER friend constexpr bool operator>=(Real a, Real b) { return a.value >= b.value; }
  ATTEND_NUMBER friend constexpr bool operator==(Real a, Real b) { return a.value == b.value; }
  ATTEND_NUMBER friend constexpr bool is_zero(Real x) { return x.value == V(0); }
  ATTEND_NUMBER friend constexpr Real unless_zero(Real x, Real y) {  // y, or 0 if x is 0. It masks bits, because
    using Bits = typename simd::FloatFormat<V>::Bits;                // g++ compiles ?: to a branch here
    return __builtin_bit_cast(V, static_cast<Bits>(__builtin_bit_cast(Bits, y.value) & (Bits{0} - (x.value != V(0)))));
  }

  ATTEND_NUMBER friend constexpr Real select(bool condition, Real a, Real b) { return condition ? a : b; }
  ATTEND_NUMBER friend constexpr Real max(Real a, Real b) { return a < b || b.value != b.value ? b : a; }
  ATTEND_NUMBER friend constexpr Real min(Real a, Real b) { return a > b || b.value != b.value ? b : a; }
  ATTEND_NUMBER friend constexpr Real abs(Real x) { return x.value < V(0) ? -x.value : x.value; }
  ATTEND_NUMBER friend Real exp(Real x) {
    simd::exponential<V, /*kIsBounded=*/false, typename simd::FloatFormat<V>::Bits>(x.value);
    return x;
  }
  ATTEND_NUMBER friend Real tanh(Real x) {
    simd::hyperbolic_tangent<V, typename simd::FloatFormat<V>::Bits>(x.value);
    return x;
  }
  ATTEND_NUMBER friend Real log(Real x) { return simd::logarithm(x.value); }
  ATTEND_NUMBER friend Real sqrt(Real x) { return std::sqrt(x.value); }
  ATTEND_NUMBER friend Real sin(Real x) { return std::sin(x.value); }
  ATTEND_NUMBER friend Real cos(Real x) { return std::cos(x.value); }
  ATTEND_NUMBER friend Real tan(Real x) { return std::tan(x.value); }
  ATTEND_NUMBER friend Real erf(Real x) { return std::erf(x.value); }
  ATTEND_NUMBER friend Real pow(Real x, Real y) { return std::pow(x.value, y.value); }
  ATTEND_NUMBER friend Real floor(Real x) { return std::floor(x.value); }
  ATTEND_NUMBER friend Real round(Real x) { return std::rint(x.value); }  // halves to even, as torch
  ATTEND_NUMBER friend Real sigmoid(Real x) { return Real(1) / (Real(1) + exp(-x)); }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
