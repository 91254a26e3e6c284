// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask given as data: for each key, two ranges of queries that may not attend to it. With LibTorch use FlashMask.
///
/// `rows` (N, H, S, 4) has the two ranges of each key. Query i may not attend to key j if rows[j][0] ≤ i < rows[j][1]
/// or rows[j][2] ≤ i < rows[j][3]. flash_mask_bounds() computes `bounds` (N, H, ⌈S / 64⌉, 8) from `rows`. If N or H is
/// 1 with the stride 0, all batch entries or heads share the numbers. The sizes are not checked.
///
/// Source: Wang et al., "FlashMask: Efficient and Rich Mask Extension of FlashAttention", 2024.
struct FlashMaskView : detail::MaskOperators {
  /// The number of keys that share bounds.
  static constexpr std::int32_t kBlock = 64;

  IntegerView rows,  ///< the ranges of masked queries of each key
      bounds;        ///< the bounds of these ranges, for each block of kBlock keys
  bool is_causal;    ///< whether the keys after a query's position are masked too

  /// @param masked_rows, bounds_of_blocks The members `rows` and `bounds`.
  /// @param causal Whether the keys after a query's position are masked too, as in Causal.
  ATTEND_HOST_DEVICE constexpr FlashMaskView(const IntegerView& masked_rows, const IntegerView& bounds_of_blocks,
                                             bool causal)
      : rows(masked_rows), bounds(bounds_of_blocks), is_causal(causal) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const {
    const auto row = [&](int k) { return rows.read_unchecked(at.batch, at.head, at.key, k); };
    const bool is_masked = (row(0) <= at.query && at.query < row(1)) || (row(2) <= at.query && at.query < row(3));
    return !is_masked && (!is_causal || Causal{}(at));
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange keys) const {
    bool is_empty = true, is_full = true;
    for (std::int32_t j = keys.begin / kBlock; j <= (keys.end - 1) / kBlock && (is_empty || is_full); ++j) {
      const auto bound = [&](int k) { return bounds.read_unchecked(queries.batch, queries.head, j, k); };
      bool are_all_masked = false, is_any_masked = false;
      for (int k = 0; k < 8; k += 4) {
        are_all_masked = are_all_masked || (bound(k) <= queries.query_begin && queries.query_end <= bound(k + 1));
        is_any_masked = is_any_masked || (bound(k + 2) < queries.query_end && queries.query_begin < bound(k + 3));
      }
      const std::int32_t last = detail::smaller((j + 1) * kBlock, keys.end) - 1,
                         first = detail::larger(j * kBlock, keys.begin);
      are_all_masked = are_all_masked || (is_causal && first > queries.last_position());
      is_any_masked = is_any_masked || (is_causal && last > queries.first_position());
      is_empty = is_empty && are_all_masked;
      is_full = is_full && !is_any_masked;
    }
    return detail::cover_of(is_empty, is_full);
  }
};

/// Computes the bounds for FlashMaskView.
///
/// @param rows The ranges of masked queries of each key of one head, (keys, 4).
/// @param keys The number of keys.
/// @param bounds The result, (⌈keys / 64⌉, 8): four numbers for the first ranges of 64 keys, then four for their second
/// ranges. The four numbers are the largest begin and the smallest end of all ranges, and the smallest begin and the
/// largest end of the ranges that are not empty.
inline void flash_mask_bounds(const std::int32_t* rows, std::int64_t keys, std::int32_t* bounds) {
  using Limits = std::numeric_limits<std::int32_t>;
  for (std::int64_t first = 0; first < keys; first += FlashMaskView::kBlock, bounds += 8)
    for (int k = 0; k < 2; ++k) {
      std::int32_t* const own = bounds + 4 * k;
      own[0] = own[3] = Limits::min();
      own[1] = own[2] = Limits::max();
      for (std::int64_t j = first; j < std::min(keys, first + FlashMaskView::kBlock); ++j) {
        const std::int32_t begin = rows[4 * j + 2 * k], end = rows[4 * j + 2 * k + 1];
        own[0] = std::max(own[0], begin);
        own[1] = std::min(own[1], end);
        if (begin >= end) continue;
        own[2] = std::min(own[2], begin);
        own[3] = std::max(own[3], end);
      }
    }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
