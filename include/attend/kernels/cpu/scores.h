// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/option_scores.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The tiles of keys that are not masked as a whole, for one work item.
struct KeyTiles {
  struct Tile {
    std::int32_t key;  // the first
    int keys;
    MaskCover cover;  // what the caller's mask allows of it: kPartial or kFull
  };

  KeyRange range;           // of all keys from the first tile's to the last one's, or larger
  std::vector<Tile> tiles;  // in order; all but the last have kTileKeys keys if they are neighbours

  /// Whether some keys of the range are in no tile.
  bool has_holes() const {
    return tiles.size() < static_cast<std::size_t>((range.end - range.begin + kTileKeys - 1) / kTileKeys);
  }
};

/// The steps between the product of queries and keys and the softmax: the options, then the caller's score_mod, then
/// all masks.
template <class T>
struct Scores {
  OptionScores<T> options;
  CpuVariant<T>* variant;  // null: none

  Scores(const AttentionParams& params, CpuVariant<T>* caller) : options(params), variant(caller) {}

  /// Finds the keys that any query of the item may attend to.
  void find_tiles(const AttentionPlan<T>& plan, const WorkItem& item, KeyTiles& result) const {
    const QueryTile& tile = item.tile;
    const QueryBlock block{item.batch,       item.head,
                           tile.query_begin, tile.query_begin + tile.queries,
                           plan.queries,     plan.keys_of(item.batch)};
    KeyRange& range = result.range = options.keys(tile);
    if (variant != nullptr && range.begin < range.end) {
      const KeyRange own = variant->keys(block);
      range.begin = std::max(range.begin, own.begin);
      range.end = std::min(range.end, own.end);
    }
    result.tiles.clear();
    if (range.begin >= range.end)
      range = {0, 0};
    else
      add_tiles(block, range, result.tiles);
  }

  /// A tile that find_tiles() has found.
  Tile<T> tile(const AttentionPlan<T>& plan, const WorkItem& item, const KeyTiles::Tile& keys, T* scores) const {
    const QueryTile& tile = item.tile;
    return {scores,
            {item.batch, item.head, tile.query_begin, keys.key, plan.queries, plan.keys_of(item.batch)},
            tile.position,
            tile.queries,
            columns_for(tile.queries),
            keys.keys,
            keys.cover};
  }

  /// Changes and masks the scores for the softmax. is_careful as in OptionScores::change().
  void apply(const TileOperations<T>& operations, const Tile<T>& tile, bool is_careful) const {
    options.change(operations, tile, nullptr, is_careful);
    if (variant != nullptr) variant->apply(tile, nullptr);
    options.apply_mask(operations, tile);
  }

 private:
  /// Asks the caller's mask about all keys at once, and about each half if the answer is kPartial. So a few calls are
  /// enough for a row of many tiles that are all empty or all full.
  void add_tiles(const QueryBlock& block, const KeyRange& keys, std::vector<KeyTiles::Tile>& tiles) const {
    const MaskCover cover = variant == nullptr ? MaskCover::kFull : variant->cover(block, keys);
    if (cover == MaskCover::kEmpty) return;
    const std::int32_t count = (keys.end - keys.begin + kTileKeys - 1) / kTileKeys;
    if (cover == MaskCover::kPartial && count > 1) {
      const std::int32_t middle = keys.begin + count / 2 * kTileKeys;
      add_tiles(block, {keys.begin, middle}, tiles);
      add_tiles(block, {middle, keys.end}, tiles);
      return;
    }
    for (std::int32_t key = keys.begin; key < keys.end; key += kTileKeys)
      tiles.push_back({key, std::min(kTileKeys, keys.end - key), cover});
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
