// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/call.h>
#include <attend/attention/cpu/modified_scores.h>
#include <attend/attention/cpu/standard_scores.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// All that happens to scores between the product and the softmax: what the options say, then a caller's score_mod,
/// then all masks.
template <class T>
struct Scores {
  StandardScores<T> standard;
  ModifiedScores<T>* modified = nullptr;  // null: none

  /// The keys that any query of the block may see.
  KeyRange keys(const Call<T>& call, const Place& place) const {
    const Block& block = place.block;
    KeyRange range = standard.keys(block);
    if (modified != nullptr) {
      const KeyRange own = modified->keys(
          {place.batch, place.head, block.query_begin, block.query_begin + block.queries, call.queries, call.keys});
      range.begin = std::max(range.begin, own.begin);
      range.end = std::min(range.end, own.end);
    }
    return range.begin < range.end ? range : KeyRange{0, 0};
  }

  /// The tile of the keys from `key` on, within the range.
  Tile<T> tile(const Call<T>& call, const Place& place, std::int32_t key, const KeyRange& range, T* scores) const {
    const Block& block = place.block;
    return {scores,
            {place.batch, place.head, block.query_begin, key, call.queries, call.keys},
            block.position,
            block.queries,
            columns_for(block.queries),
            std::min(kTileKeys, range.end - key)};
  }

  /// Scores as the softmax wants them; is_careful as in StandardScores::change().
  void apply(const TileOperations<T>& operations, const Tile<T>& tile, bool is_careful) const {
    standard.change(operations, tile, nullptr, is_careful);
    if (modified != nullptr) modified->apply(tile, nullptr);
    standard.rule_out(operations, tile);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
