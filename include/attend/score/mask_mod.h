// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/score_mod.h>
#include <attend/version.h>

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// A mask_mod as kernels call it.
template <class Mod>
concept MaskFunction = requires(const Mod& mod, Coordinate at) {
  { mod(at) } -> std::same_as<bool>;
};

/// The types whose operators & | ! are those of masks.
struct MaskOperators {};

ATTEND_HOST_DEVICE constexpr std::int32_t smaller(std::int32_t a, std::int32_t b) { return b < a ? b : a; }
ATTEND_HOST_DEVICE constexpr std::int32_t within(std::int64_t key, std::int32_t key_length) {
  return static_cast<std::int32_t>(key < 0 ? 0 : key < key_length ? key : key_length);
}
ATTEND_HOST_DEVICE constexpr std::int32_t larger(std::int32_t a, std::int32_t b) { return a < b ? b : a; }

}  // namespace detail

/// A mask_mod says which keys a query may attend to. It is any trivially copyable struct like this one:
///
/// @code
/// struct SameParity {
///   ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return (at.query - at.key) % 2 == 0; }
/// };
/// @endcode
///
/// Without more, the scores of all keys are computed, and the mask is called for each. Two optional functions avoid
/// that. A mask for long sequences has `cover`; `keys` is a short form for a mask that is one range of keys.
///
/// - `MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const`: how much the mask allows of these
///   scores. Empty blocks are skipped, and for full blocks the mask is not called. kPartial is always a right answer.
///   It is called for blocks of any size, each with at least one query and one key.
/// - `KeyRange keys(attend::QueryBlock block) const`: the keys outside of which no query of the block may attend.
///   The range may be too large, but not too small. It has no holes, and the mask is called for every score in it. In a
///   mask that has both functions, the range only limits for which keys `cover` is called.
///
/// @code
/// struct SameHalf {  // of an even number of positions
///   ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
///     return (at.query < at.query_length / 2) == (at.key < at.key_length / 2);
///   }
///   ATTEND_HOST_DEVICE attend::MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const {
///     const std::int32_t query_half = queries.query_length / 2, key_half = queries.key_length / 2;
///     const bool are_cut = queries.query_begin < query_half && query_half < queries.query_end;
///     if (are_cut || (keys.begin < key_half && key_half < keys.end)) return attend::MaskCover::kPartial;
///     const bool is_same = (queries.query_begin < query_half) == (keys.begin < key_half);
///     return is_same ? attend::MaskCover::kFull : attend::MaskCover::kEmpty;
///   }
/// };
/// @endcode
///
/// The masks of attend have both functions. The operators & and | keep both, and ! keeps `cover`. A wrong answer gives
/// wrong results, but no access outside of the tensors.
///
/// A struct that holds tensors has `bind` instead of operator(), as a score_mod does; see Binder.
template <class Mod>
concept MaskMod = std::is_trivially_copyable_v<detail::Bound<Mod>> && detail::MaskFunction<detail::Bound<Mod>>;

/// A mask_mod that allows every key. It is the default of flex_attention().
struct EveryKey : detail::MaskOperators {
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate) const { return true; }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock, KeyRange) const { return MaskCover::kFull; }
};

/// A mask_mod that allows the keys up to the query's own position: j ≤ p = i + S − L for query i and key j.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, attend::Causal{});
/// @endcode
struct Causal : detail::MaskOperators {
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate at) const { return at.key <= at.query_position(); }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE constexpr KeyRange keys(QueryBlock block) const { return {0, block.last_position() + 1}; }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    return detail::cover_of(keys.begin > queries.last_position(), keys.end - 1 <= queries.first_position());
  }
};

/// A mask_mod that allows the keys from `left` before the query's position to `right` after it, both inclusive. A
/// negative number means unlimited.
///
/// Source: Beltagy et al., "Longformer", 2020.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, attend::SlidingWindow(256, 0));
/// @endcode
struct SlidingWindow : detail::MaskOperators {
  std::int32_t left,  ///< the number of keys before the query's position; negative = unlimited
      right;          ///< the number of keys after it; negative = unlimited

  /// A window of these sizes.
  ///
  /// @param keys_left Keys before the query's position; negative = unlimited.
  /// @param keys_right Keys after it; negative = unlimited.
  ATTEND_HOST_DEVICE constexpr SlidingWindow(std::int32_t keys_left, std::int32_t keys_right)
      : left(keys_left), right(keys_right) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate at) const {
    const std::int32_t distance = at.key - at.query_position();
    return (left < 0 || distance >= -left) && (right < 0 || distance <= right);
  }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE constexpr KeyRange keys(QueryBlock block) const {
    const std::int64_t begin = std::int64_t{block.first_position()} - left,
                       end = std::int64_t{block.last_position()} + right + 1;
    return {left < 0 ? 0 : detail::within(begin, block.key_length),
            right < 0 ? block.key_length : detail::within(end, block.key_length)};
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    const std::int32_t nearest_left = queries.first_position() - (keys.end - 1),  // the smallest distance to the left
        farthest_left = queries.last_position() - keys.begin;                     // and the largest
    return detail::cover_of((left >= 0 && nearest_left > left) || (right >= 0 && -farthest_left > right),
                            (left < 0 || farthest_left <= left) && (right < 0 || -nearest_left <= right));
  }
};

/// A mask_mod that allows the first keys (the prefix) to every query, and the keys up to the query's own position.
///
/// j < prefix_length or j ≤ p = i + S − L, for query i and key j.
///
/// Source: Raffel et al., "T5", 2020.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, attend::PrefixLM(16));
/// @endcode
struct PrefixLM : detail::MaskOperators {
  /// The number of keys that every query may attend to.
  std::int32_t prefix_length;

  /// A prefix of this length.
  ///
  /// @param length The number of keys that every query may attend to.
  ATTEND_HOST_DEVICE constexpr explicit PrefixLM(std::int32_t length) : prefix_length(length) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate at) const {
    return at.key < prefix_length || at.key <= at.query_position();
  }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE constexpr KeyRange keys(QueryBlock block) const {
    return {0, detail::larger(prefix_length, block.last_position() + 1)};
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock queries, KeyRange keys) const {
    return detail::cover_of(keys.begin >= detail::larger(prefix_length, queries.last_position() + 1),
                            keys.end <= detail::larger(prefix_length, queries.first_position() + 1));
  }
};

/// The mask_mod that all_of() and the operator & return: the keys that both allow.
template <class A, class B>
struct And : detail::MaskOperators {
  /// The first operand.
  A a;
  /// The second operand.
  B b;

  /// The mask that allows what both allow.
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

  /// The mask that allows what one of them allows.
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

  /// The mask that allows what this one does not.
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
/// attend::all_of(SameParity{}, attend::Causal{})
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

// The operators do not require MaskMod, so that flex_attention() can say what an operand lacks.
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
