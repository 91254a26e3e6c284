// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/version.h>

#include <concepts>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The mask_mod that all_of() and the operator & return: the keys that both allow.
template <class A, class B>
struct And : detail::MaskOperators {
  /// The first operand.
  A a;
  /// The second operand.
  B b;

  /// The mask that allows the keys that both operands allow.
  ATTEND_HOST_DEVICE constexpr And(const A& first, const B& second) : a(first), b(second) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(
      Coordinate at) const requires detail::MaskFunction<A> && detail::MaskFunction<B> {
    return a(at) && b(at);
  }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE constexpr KeyRange keys(QueryBlock block) const {
    const KeyRange x = detail::key_range(a, block), y = detail::key_range(b, block);
    return {detail::larger(x.begin, y.begin), detail::smaller(x.end, y.end)};
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    return detail::cover_of_and(detail::mask_cover(a, queries, keys), detail::mask_cover(b, queries, keys));
  }
  /// Called by attention: binds the tensors of the operands.
  auto bind(Binder& binder) const requires detail::Bindable<A> || detail::Bindable<B> {
    auto bound_a = detail::bound(a, binder);
    auto bound_b = detail::bound(b, binder);
    return And<decltype(bound_a), decltype(bound_b)>(bound_a, bound_b);
  }
};

/// The mask_mod that any_of() and the operator | return: the keys that at least one allows.
template <class A, class B>
struct Or : detail::MaskOperators {
  /// The first operand.
  A a;
  /// The second operand.
  B b;

  /// The mask that allows the keys that at least one operand allows.
  ATTEND_HOST_DEVICE constexpr Or(const A& first, const B& second) : a(first), b(second) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(
      Coordinate at) const requires detail::MaskFunction<A> && detail::MaskFunction<B> {
    return a(at) || b(at);
  }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE constexpr KeyRange keys(QueryBlock block) const {
    const KeyRange x = detail::key_range(a, block), y = detail::key_range(b, block);
    if (x.end <= x.begin) return y;
    if (y.end <= y.begin) return x;
    return {detail::smaller(x.begin, y.begin), detail::larger(x.end, y.end)};
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    return detail::cover_of_or(detail::mask_cover(a, queries, keys), detail::mask_cover(b, queries, keys));
  }
  /// Called by attention: binds the tensors of the operands.
  auto bind(Binder& binder) const requires detail::Bindable<A> || detail::Bindable<B> {
    auto bound_a = detail::bound(a, binder);
    auto bound_b = detail::bound(b, binder);
    return Or<decltype(bound_a), decltype(bound_b)>(bound_a, bound_b);
  }
};

/// The mask_mod that not_() and the operator ! return: the keys that the mask does not allow.
template <class A>
struct Not : detail::MaskOperators {
  /// The operand.
  A a;

  /// The mask that allows the keys that `mask` does not allow.
  ATTEND_HOST_DEVICE constexpr explicit Not(const A& mask) : a(mask) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate at) const requires detail::MaskFunction<A> { return !a(at); }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    return detail::cover_of_not(detail::mask_cover(a, queries, keys));
  }
  /// Called by attention: binds the tensors of the operands.
  auto bind(Binder& binder) const requires detail::Bindable<A> {
    auto bound_a = detail::bound(a, binder);
    return Not<decltype(bound_a)>(bound_a);
  }
};

/// The keys that both masks allow.
///
/// The operators &, | and ! do the same as all_of(), any_of() and not_() if an operand is a mask of attend.
///
/// @param a A mask_mod.
/// @param b A mask_mod.
/// @return A mask_mod.
///
/// @code
/// auto mask_mod = attend::all_of(attend::PrefixLM(16), attend::SlidingWindow(256, 0));
/// @endcode
template <MaskMod A, MaskMod B>
constexpr And<A, B> all_of(const A& a, const B& b) {
  return {a, b};
}
/// The keys that all masks allow, for three or more masks.
///
/// @param a A mask_mod.
/// @param b A mask_mod.
/// @param rest More of them.
/// @return A mask_mod.
template <MaskMod A, MaskMod B, MaskMod... Rest>
requires(sizeof...(Rest) > 0) constexpr auto all_of(const A& a, const B& b, const Rest&... rest) {
  return all_of(all_of(a, b), rest...);
}
/// The keys that at least one of two masks allows.
///
/// @param a A mask_mod.
/// @param b A mask_mod.
/// @return A mask_mod.
template <MaskMod A, MaskMod B>
constexpr Or<A, B> any_of(const A& a, const B& b) {
  return {a, b};
}
/// The keys that at least one mask allows, for three or more masks.
///
/// @param a A mask_mod.
/// @param b A mask_mod.
/// @param rest More of them.
/// @return A mask_mod.
template <MaskMod A, MaskMod B, MaskMod... Rest>
requires(sizeof...(Rest) > 0) constexpr auto any_of(const A& a, const B& b, const Rest&... rest) {
  return any_of(any_of(a, b), rest...);
}
/// The keys that a mask does not allow.
///
/// @param a A mask_mod.
/// @return A mask_mod.
template <MaskMod A>
constexpr Not<A> not_(const A& a) {
  return Not<A>(a);
}

// The operators do not require MaskMod. If an operand is not a mask_mod, flex_attention() reports what it lacks.
/// The same as all_of(), if one operand is a mask of attend.
template <class A, class B>
requires(std::derived_from<A, detail::MaskOperators> || std::derived_from<B, detail::MaskOperators>) constexpr And<A, B>
operator&(const A& a, const B& b) {
  return {a, b};
}
/// The same as any_of(), if one operand is a mask of attend.
template <class A, class B>
requires(std::derived_from<A, detail::MaskOperators> || std::derived_from<B, detail::MaskOperators>) constexpr Or<A, B>
operator|(const A& a, const B& b) {
  return {a, b};
}
/// The same as not_(), for a mask of attend.
template <class A>
requires std::derived_from<A, detail::MaskOperators>
constexpr Not<A> operator!(const A& a) { return Not<A>(a); }

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
