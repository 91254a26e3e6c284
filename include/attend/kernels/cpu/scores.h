// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/option_scores.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The steps between the product of queries and keys and the softmax: the options, then the caller's score_mod, then all
/// masks.
template <class T>
struct Scores {
  OptionScores<T> options;
  CpuVariant<T>* variant;  // null: none

  Scores(const AttentionParams& params, CpuVariant<T>* caller) : options(params), variant(caller) {}

  /// The keys that any query of the item may see.
  KeyRange keys(const AttentionPlan<T>& plan, const WorkItem& item) const {
    const QueryTile& tile = item.tile;
    KeyRange range = options.keys(tile);
    if (variant != nullptr) {
      const KeyRange own = variant->keys(
          {item.batch, item.head, tile.query_begin, tile.query_begin + tile.queries, plan.queries, plan.keys});
      range.begin = std::max(range.begin, own.begin);
      range.end = std::min(range.end, own.end);
    }
    return range.begin < range.end ? range : KeyRange{0, 0};
  }

  /// The tile of the keys from `key` on, within the range.
  Tile<T> tile(const AttentionPlan<T>& plan, const WorkItem& item, std::int32_t key, const KeyRange& range,
               T* scores) const {
    const QueryTile& tile = item.tile;
    return {scores,
            {item.batch, item.head, tile.query_begin, key, plan.queries, plan.keys},
            tile.position,
            tile.queries,
            columns_for(tile.queries),
            std::min(kTileKeys, range.end - key)};
  }

  /// Makes the scores what the softmax takes. is_careful as in OptionScores::change().
  void apply(const TileOperations<T>& operations, const Tile<T>& tile, bool is_careful) const {
    options.change(operations, tile, nullptr, is_careful);
    if (variant != nullptr) variant->apply(tile, nullptr);
    options.apply_mask(operations, tile);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
