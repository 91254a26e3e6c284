// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/real.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <concepts>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

class Binder;  // attention/binder.h

namespace detail {

template <class Mod, class T>
concept ChangesScore = requires(const Mod& mod, T score, Coordinate at) {
  { mod(score, at) } -> std::convertible_to<T>;
};

/// A score_mod in the form that kernels call.
template <class Mod>
concept ScoreFunction = ChangesScore<Mod, Real<float>> && ChangesScore<Mod, Dual<float>> &&
    ChangesScore<Mod, Real<double>> && ChangesScore<Mod, Dual<double>>;

/// A struct that holds tensors. Its bind() returns the struct that reads them through views.
template <class Mod>
concept Bindable = requires(const Mod& mod, Binder& binder) {
  mod.bind(binder);
};

template <class Mod>
const Mod& bound(const Mod& mod, Binder&) {
  return mod;
}
template <Bindable Mod>
auto bound(const Mod& mod, Binder& binder) {
  return mod.bind(binder);
}

/// A score_mod that adds one number of its only tensor to a score. added_place() is the place of the number in memory.
template <class Mod>
concept AddsNumber = requires(const Mod& mod, Coordinate at) {
  { mod.added_place(at) } -> std::same_as<std::int64_t>;
};

/// The TensorViews that a score_mod lists in tensors(). kernels::flex_attention_backward() writes their gradients.
/// Empty without tensors().
template <class Mod>
auto tensors_of(Mod& mod) {
  if constexpr (requires { mod.tensors(); })
    return mod.tensors();
  else
    return std::tuple<>();
}

template <class Mod>
using Bound = std::remove_cvref_t<decltype(bound(std::declval<const Mod&>(), std::declval<Binder&>()))>;

}  // namespace detail

/// A score_mod changes the score of a query and a key before the softmax. It is any trivially copyable struct like this
/// one:
///
/// @code
/// struct Tilted {
///   float slope;
///   template <class T>
///   ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
///     return score - slope * abs(T(at.query - at.key));
///   }
/// };
/// @endcode
///
/// T is a number type of attend, and T(i) converts an integer. The same function, called with another T, gives the
/// derivative. T has these operations; call the functions without a namespace:
/// - + - * / and comparisons
/// - abs exp log pow sqrt sin cos tan tanh sigmoid erf floor round max min select
///
/// A struct that holds tensors has `auto bind(attend::Binder& binder) const` instead of operator(). bind() returns a
/// second struct in the form above, which reads the tensors through views; see Binder.
///
/// A score_mod that reads one tensor and returns `score + tensor.read_unchecked<T>(i, j)` may also have
/// `std::int64_t added_place(attend::Coordinate at) const { return tensor.place(i, j); }`. The backward pass is then
/// faster: it needs no scores, and finds the gradient of the tensor without calling operator(). If it also has `bool
/// is_same_for_batch() const` and that returns true, the numbers must not depend on at.batch. Calls of many short
/// sequences then read them once for each head. RelativeBias and DenseBias in attend/attention/bias.h have both.
///
/// Differs from a score_mod of PyTorch:
/// - It is compiled with your program.
/// - It has gradients on the CPU.
/// - at.query_position() is the position of the query. It is not at.query if L ≠ S.
///
/// Source of the idea: Dong et al., "Flex Attention", 2024.
template <class Mod>
concept ScoreMod = std::is_trivially_copyable_v<detail::Bound<Mod>> && detail::ScoreFunction<detail::Bound<Mod>>;

/// A score_mod that changes nothing: pass it to flex_attention() for a mask_mod alone.
struct Unchanged {
  /// Called by attention for each score: the changed score.
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate) const {
    return score;
  }
};

/// A score_mod that keeps scores within ±limit: limit · tanh(score / limit).
///
/// Source: Gemma Team, "Gemma 2", 2024.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Softcap{30});
/// @endcode
struct Softcap {
  /// The bound of the absolute value of a score. It has no default. It must be positive; this is not checked.
  float limit;

  /// Called by attention for each score: the changed score.
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate) const {
    return T(limit) * tanh(score / T(limit));
  }
};

/// The score_mod that then() returns: it applies `second` to the result of `first`.
template <class First, class Second>
struct Then {
  /// The score_mod that is applied first.
  First first;
  /// The score_mod that is applied to its result.
  Second second;

  /// Called by attention for each score: the changed score.
  template <class T>
  ATTEND_HOST_DEVICE T
  operator()(T score, Coordinate at) const requires detail::ChangesScore<First, T> && detail::ChangesScore<Second, T> {
    return second(T(first(score, at)), at);
  }

  /// Called by attention: binds the tensors of both score_mods.
  auto bind(Binder& binder) const requires detail::Bindable<First> || detail::Bindable<Second> {
    auto bound_first = detail::bound(first, binder);
    auto bound_second = detail::bound(second, binder);
    return Then<decltype(bound_first), decltype(bound_second)>{bound_first, bound_second};
  }
  /// Called by the kernels: the tensors of both score_mods.
  auto tensors() { return std::tuple_cat(detail::tensors_of(first), detail::tensors_of(second)); }
};

/// Applies one score_mod after the other.
///
/// @param first The score_mod that is applied first.
/// @param second The score_mod that is applied to its result.
/// @return Both as one score_mod.
///
/// @code
/// attend::flex_attention(q, k, v, attend::then(attend::Softcap{50}, attend::Alibi(slopes)));
/// @endcode
template <class First, class Second>
Then<First, Second> then(const First& first, const Second& second) {
  return {first, second};
}
/// Applies three or more score_mods, one after the other.
///
/// @param first The score_mod that is applied first.
/// @param second The score_mod that is applied to its result.
/// @param rest The score_mods that follow, in this order.
/// @return All as one score_mod.
template <class First, class Second, class... Rest>
auto then(const First& first, const Second& second, const Rest&... rest) {
  return then(then(first, second), rest...);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
