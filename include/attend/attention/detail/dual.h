// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/elementary.h>
#include <attend/version.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

// On the CPU a call that is not drawn in would end a vector.
#define ATTEND_NUMBER ATTEND_HOST_DEVICE __attribute__((always_inline))

namespace attend::inline ATTEND_VERSION_NAMESPACE {

// What a score_mod computes with. It is written once, for any type T:
//
//   template <class T> T operator()(T score, Coordinate at) const { return score - abs(score) * 0.5f; }
//
// and called with Real<V> for its value, and with Dual<V> for its value and derivative (V: float or double). Both have
// + - * /, comparisons, which look at the value, and abs exp log tanh sqrt max min select, which are found without a
// namespace before them. Both are made from any number, so that numbers may stand beside them.

/// A number. A class, because for a built-in float the name abs may mean that of int, and exp that of double.
template <class V>
struct Real {
  V value;

  Real() = default;
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
  ATTEND_NUMBER friend constexpr Real unless_zero(Real x, Real y) {  // y, or 0 if x is; by its bits, because g++
    using Bits = typename detail::FloatFormat<V>::Bits;              // makes a branch of a ?: here
    return __builtin_bit_cast(V, static_cast<Bits>(__builtin_bit_cast(Bits, y.value) & (Bits{0} - (x.value != V(0)))));
  }

  ATTEND_NUMBER friend constexpr Real select(bool condition, Real a, Real b) { return condition ? a : b; }
  ATTEND_NUMBER friend constexpr Real max(Real a, Real b) { return a < b || b.value != b.value ? b : a; }
  ATTEND_NUMBER friend constexpr Real min(Real a, Real b) { return a > b || b.value != b.value ? b : a; }
  ATTEND_NUMBER friend constexpr Real abs(Real x) { return x.value < V(0) ? -x.value : x.value; }
  ATTEND_NUMBER friend Real exp(Real x) {
    detail::exponential<V, /*kIsBounded=*/false, typename detail::FloatFormat<V>::Bits>(x.value);
    return x;
  }
  ATTEND_NUMBER friend Real tanh(Real x) {
    detail::hyperbolic_tangent<V, typename detail::FloatFormat<V>::Bits>(x.value);
    return x;
  }
  ATTEND_NUMBER friend Real log(Real x) { return detail::logarithm(x.value); }
  ATTEND_NUMBER friend Real sqrt(Real x) { return std::sqrt(x.value); }
};

/// A number and its derivative. V is float or double, or a Dual again, for derivatives of derivatives.
///
/// Where a function has no derivative, it is that of torch: 0 for abs at 0. max and min of equals take the first.
template <class V>
struct Dual {
  using Number = std::conditional_t<std::is_arithmetic_v<V>, Real<V>, V>;

  Number value;
  Number derivative;
  /// Which value of a tensor the derivative is by (its place + 1; TensorView); 0 if by the score or by nothing.
  std::int64_t source = 0;

  Dual() = default;
  template <class Constant, class = std::enable_if_t<std::is_arithmetic_v<Constant>>>
  ATTEND_NUMBER constexpr Dual(Constant constant) : value(constant), derivative(0) {}
  ATTEND_NUMBER constexpr Dual(Number number, Number by_source, std::int64_t place)
      : value(number), derivative(by_source), source(place) {}

  ATTEND_NUMBER friend constexpr Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.derivative + b.derivative, both(a, b)};
  }
  ATTEND_NUMBER friend constexpr Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.derivative - b.derivative, both(a, b)};
  }
  ATTEND_NUMBER friend constexpr Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, times(a.derivative, b.value) + times(b.derivative, a.value), both(a, b)};
  }
  ATTEND_NUMBER friend constexpr Dual operator/(Dual a, Dual b) {
    const Number quotient = a.value / b.value;
    return {quotient, times(a.derivative - times(b.derivative, quotient), Number(1) / b.value), both(a, b)};
  }
  ATTEND_NUMBER friend constexpr Dual operator-(Dual a) { return {-a.value, -a.derivative, a.source}; }

  ATTEND_NUMBER friend constexpr bool operator<(Dual a, Dual b) { return a.value < b.value; }
  ATTEND_NUMBER friend constexpr bool operator>(Dual a, Dual b) { return a.value > b.value; }
  ATTEND_NUMBER friend constexpr bool operator<=(Dual a, Dual b) { return a.value <= b.value; }
  ATTEND_NUMBER friend constexpr bool operator>=(Dual a, Dual b) { return a.value >= b.value; }
  ATTEND_NUMBER friend constexpr bool operator==(Dual a, Dual b) { return a.value == b.value; }
  ATTEND_NUMBER friend constexpr bool is_zero(Dual x) { return is_zero(x.value) && is_zero(x.derivative); }
  ATTEND_NUMBER friend constexpr Dual unless_zero(Dual x, Dual y) { return is_zero(x) ? Dual(0) : y; }

  ATTEND_NUMBER friend constexpr Dual select(bool condition, Dual a, Dual b) { return condition ? a : b; }
  ATTEND_NUMBER friend constexpr Dual max(Dual a, Dual b) { return a.value < b.value || b != b ? b : a; }
  ATTEND_NUMBER friend constexpr Dual min(Dual a, Dual b) { return a.value > b.value || b != b ? b : a; }
  ATTEND_NUMBER friend constexpr Dual abs(Dual x) {
    const Number sign = x.value < Number(0) ? Number(-1) : x.value > Number(0) ? Number(1) : Number(0);
    return {abs(x.value), sign * x.derivative, x.source};
  }
  ATTEND_NUMBER friend Dual exp(Dual x) {
    const Number power = exp(x.value);
    return {power, times(x.derivative, power), x.source};
  }
  ATTEND_NUMBER friend Dual log(Dual x) { return {log(x.value), times(x.derivative, Number(1) / x.value), x.source}; }
  ATTEND_NUMBER friend Dual tanh(Dual x) {
    const Number tangent = tanh(x.value);
    return {tangent, times(x.derivative, Number(1) - tangent * tangent), x.source};
  }
  ATTEND_NUMBER friend Dual sqrt(Dual x) {
    const Number root = sqrt(x.value);
    return {root, times(x.derivative, Number(1) / (root + root)), x.source};
  }

 private:
  /// A constant's derivative is 0, also where that of the function is infinite.
  ATTEND_NUMBER static constexpr Number times(const Number& derivative, const Number& factor) {
    return derivative * unless_zero(derivative, factor);
  }

  /// One of two sources, or −1 for two different ones.
  ATTEND_NUMBER static constexpr std::int64_t both(const Dual& a, const Dual& b) {
    return a.source == 0 || a.source == b.source ? b.source : b.source == 0 ? a.source : -1;
  }
};

namespace detail {

template <class T>
inline constexpr bool kIsNumber = false;
template <class V>
inline constexpr bool kIsNumber<Real<V>> = true;
template <class V>
inline constexpr bool kIsNumber<Dual<V>> = true;

template <class T>
struct Type {};

/// How many Duals are inside a Dual<V>.
template <class V>
inline constexpr int kDepth = 0;
template <class V>
inline constexpr int kDepth<Dual<V>> = 1 + kDepth<V>;

}  // namespace detail

template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator+=(T& a, const std::type_identity_t<T>& b) {
  return a = a + b;
}
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator-=(T& a, const std::type_identity_t<T>& b) {
  return a = a - b;
}
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator*=(T& a, const std::type_identity_t<T>& b) {
  return a = a * b;
}
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator/=(T& a, const std::type_identity_t<T>& b) {
  return a = a / b;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
