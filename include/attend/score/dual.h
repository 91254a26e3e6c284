// SPDX-License-Identifier: MIT
#pragma once

#include <attend/score/real.h>
#include <attend/version.h>

#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A number and its derivative. V is float or double, or a Dual for second derivatives.
///
/// With kByTensor, the derivative may be with respect to a value that a TensorView reads. Without kByTensor, values
/// that a TensorView reads are constants.
///
/// At 0, the derivative of abs is 0, as in torch. max and min of equal numbers return the first, with its derivative.
template <class V, bool kByTensor = false>
struct Dual {
  /// The type of both members.
  using Number = std::conditional_t<std::is_arithmetic_v<V>, Real<V>, V>;

  /// The value.
  Number value;
  /// The derivative of the value.
  Number derivative;

  Dual() = default;
  /// A constant, whose derivative is 0.
  template <class Constant, class = std::enable_if_t<std::is_arithmetic_v<Constant>>>
  ATTEND_NUMBER constexpr Dual(Constant constant) : value(constant), derivative(0) {}
  /// A number with this derivative.
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
    // As in torch: the derivative with respect to x is 0 if y = 0. The one with respect to y is 0 if x = 0 and y ≥ 0.
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
  /// derivative · factor, but 0 if the derivative is 0 and the factor is infinite: a constant has the derivative 0.
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

/// Whether a call with the number type T looks for reads outside of the tensors. This is so for a Dual of a Dual, a
/// type that no kernel uses.
template <class T>
inline constexpr bool kIsChecking = kDepth<T> == 2;

}  // namespace detail

/// a becomes the sum of a and b.
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator+=(T& a, const std::type_identity_t<T>& b) {
  return a = a + b;
}
/// a becomes the difference of a and b.
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator-=(T& a, const std::type_identity_t<T>& b) {
  return a = a - b;
}
/// a becomes the product of a and b.
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator*=(T& a, const std::type_identity_t<T>& b) {
  return a = a * b;
}
/// a becomes the quotient of a and b.
template <class T>
requires detail::kIsNumber<T> ATTEND_NUMBER constexpr T& operator/=(T& a, const std::type_identity_t<T>& b) {
  return a = a / b;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
