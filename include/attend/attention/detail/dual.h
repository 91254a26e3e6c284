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
// + - * /, comparisons, which look at the value, and abs exp log pow sqrt sin cos tan tanh sigmoid erf floor round max
// min select, which are found without a namespace before them. Both are made from any number, so that numbers may stand
// beside them.

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
  ATTEND_NUMBER friend Real sin(Real x) { return std::sin(x.value); }
  ATTEND_NUMBER friend Real cos(Real x) { return std::cos(x.value); }
  ATTEND_NUMBER friend Real tan(Real x) { return std::tan(x.value); }
  ATTEND_NUMBER friend Real erf(Real x) { return std::erf(x.value); }
  ATTEND_NUMBER friend Real pow(Real x, Real y) { return std::pow(x.value, y.value); }
  ATTEND_NUMBER friend Real floor(Real x) { return std::floor(x.value); }
  ATTEND_NUMBER friend Real round(Real x) { return std::rint(x.value); }  // halves to even, as torch
  ATTEND_NUMBER friend Real sigmoid(Real x) { return Real(1) / (Real(1) + exp(-x)); }
};

/// A number and its derivative. V is float or double, or a Dual again, for derivatives of derivatives. kByTensor:
/// whether the derivative may be by a value that a TensorView reads; if not, what it reads is a constant.
///
/// Where a function has no derivative, it is that of torch: 0 for abs at 0. max and min of equals take the first.
template <class V, bool kByTensor = false>
struct Dual {
  using Number = std::conditional_t<std::is_arithmetic_v<V>, Real<V>, V>;

  Number value;
  Number derivative;

  Dual() = default;
  template <class Constant, class = std::enable_if_t<std::is_arithmetic_v<Constant>>>
  ATTEND_NUMBER constexpr Dual(Constant constant) : value(constant), derivative(0) {}
  ATTEND_NUMBER constexpr Dual(Number number, Number slope) : value(number), derivative(slope) {}

  ATTEND_NUMBER friend constexpr Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.derivative + b.derivative};
  }
  ATTEND_NUMBER friend constexpr Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.derivative - b.derivative};
  }
  ATTEND_NUMBER friend constexpr Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, times(a.derivative, b.value) + times(b.derivative, a.value)};
  }
  ATTEND_NUMBER friend constexpr Dual operator/(Dual a, Dual b) {
    const Number quotient = a.value / b.value;
    return {quotient, times(a.derivative - times(b.derivative, quotient), Number(1) / b.value)};
  }
  ATTEND_NUMBER friend constexpr Dual operator-(Dual a) { return {-a.value, -a.derivative}; }

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
    return {abs(x.value), sign * x.derivative};
  }
  ATTEND_NUMBER friend Dual exp(Dual x) {
    const Number power = exp(x.value);
    return {power, times(x.derivative, power)};
  }
  ATTEND_NUMBER friend Dual log(Dual x) { return {log(x.value), times(x.derivative, Number(1) / x.value)}; }
  ATTEND_NUMBER friend Dual tanh(Dual x) {
    const Number tangent = tanh(x.value);
    return {tangent, times(x.derivative, Number(1) - tangent * tangent)};
  }
  ATTEND_NUMBER friend Dual sqrt(Dual x) {
    const Number root = sqrt(x.value);
    return {root, times(x.derivative, Number(1) / (root + root))};
  }
  ATTEND_NUMBER friend Dual sin(Dual x) { return {sin(x.value), times(x.derivative, cos(x.value))}; }
  ATTEND_NUMBER friend Dual cos(Dual x) { return {cos(x.value), times(x.derivative, -sin(x.value))}; }
  ATTEND_NUMBER friend Dual tan(Dual x) {
    const Number tangent = tan(x.value);
    return {tangent, times(x.derivative, Number(1) + tangent * tangent)};
  }
  ATTEND_NUMBER friend Dual erf(Dual x) {
    const Number slope = Number(1.1283791670955126) * exp(-(x.value * x.value));  // 2 / √π · exp(−x²)
    return {erf(x.value), times(x.derivative, slope)};
  }
  ATTEND_NUMBER friend Dual pow(Dual x, Dual y) {
    const Number power = pow(x.value, y.value);
    // As torch: no derivative by x for the exponent 0, and none by y at 0 for an exponent that is not negative.
    const Number by_x = is_zero(y.value) ? Number(0) : y.value * pow(x.value, y.value - Number(1));
    const Number by_y = x.value == Number(0) && y.value >= Number(0) ? Number(0) : power * log(x.value);
    return {power, times(x.derivative, by_x) + times(y.derivative, by_y)};
  }
  ATTEND_NUMBER friend Dual floor(Dual x) { return {floor(x.value), Number(0)}; }
  ATTEND_NUMBER friend Dual round(Dual x) { return {round(x.value), Number(0)}; }
  ATTEND_NUMBER friend Dual sigmoid(Dual x) {
    const Number share = sigmoid(x.value);
    return {share, times(x.derivative, share * (Number(1) - share))};
  }

 private:
  /// A constant's derivative is 0, also where that of the function is infinite.
  ATTEND_NUMBER static constexpr Number times(const Number& derivative, const Number& factor) {
    return derivative * unless_zero(derivative, factor);
  }
};

namespace detail {

template <class T>
inline constexpr bool kIsNumber = false;
template <class V>
inline constexpr bool kIsNumber<Real<V>> = true;
template <class V, bool kByTensor>
inline constexpr bool kIsNumber<Dual<V, kByTensor>> = true;

template <class T>
struct Type {};

/// How many Duals are inside a Dual<V>.
template <class V>
inline constexpr int kDepth = 0;
template <class V, bool kByTensor>
inline constexpr int kDepth<Dual<V, kByTensor>> = 1 + kDepth<V>;

/// The type that a score_mod is called with to look for reads outside of its tensors: one that no kernel uses.
template <class T>
inline constexpr bool kIsChecking = kDepth<T> == 2;

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
