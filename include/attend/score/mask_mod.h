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

/// A mask_mod in the form that kernels call.
template <class Mod>
concept MaskFunction = requires(const Mod& mod, Coordinate at) {
  { mod(at) } -> std::same_as<bool>;
};

/// The base of attend's masks. The operators & | ! of mask_operators.h apply to types that derive from it.
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
/// With operator() alone, the scores of all keys are computed, and the mask is called for each. Two optional functions
/// avoid that. For long sequences write `cover`. `keys` is simpler; use it if the allowed keys are one range.
///
/// - `MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const`: how much of this block of scores the
///   mask allows. Empty blocks are skipped. For full blocks the mask is not called. kPartial is always correct. `cover`
///   is called for blocks of any size, each with at least one query and one key.
/// - `KeyRange keys(attend::QueryBlock block) const`: one range that contains all keys that the queries of the block
///   may attend to. It may be too large, but not too small. The mask is called for every score in the range. In a mask
///   with both functions, the range only limits the keys for which `cover` is called.
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
/// All masks of attend have `cover`, and most have `keys`. The operators & and | combine both, and ! negates `cover`.
/// If `cover` or `keys` is wrong, the results are wrong, but no memory outside of the tensors is accessed.
///
/// A struct that holds tensors has `bind` instead of operator(), like a score_mod; see Binder.
template <class Mod>
concept MaskMod = std::is_trivially_copyable_v<detail::Bound<Mod>> && detail::MaskFunction<detail::Bound<Mod>>;

/// A mask_mod that allows every key. It is the default of flex_attention().
struct EveryKey : detail::MaskOperators {
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE constexpr bool operator()(Coordinate) const { return true; }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE constexpr MaskCover cover(QueryBlock, KeyRange) const { return MaskCover::kFull; }
};

/// A mask_mod that allows the keys up to the query's own position: j ≤ i + S − L for query i and key j.
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

/// A mask_mod that allows the key at the query's position, `left` keys before it and `right` keys after it. A negative
/// number means unlimited.
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
/// j < prefix_length or j ≤ i + S − L, for query i and key j.
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

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
