// SPDX-License-Identifier: MIT
#pragma once

#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

using namespace simd;  // NOLINT: the kernels use its names everywhere

/// The size of a tile. It has one row for each key; the queries are side by side in a row.
inline constexpr int kTileKeys = 64, kTileQueries = 64;
inline constexpr int kTileSize = kTileKeys * kTileQueries;

/// The scores of some queries and keys. The score of query i and key j is scores[j · kTileQueries + i].
///
/// All rows are kTileQueries long. Columns from `queries` on are padding: their results are not read. Columns from
/// `columns` on, a multiple of the lanes of every instruction set, are not computed.
template <class T>
struct Tile {
  T* scores;
  Coordinate first;       // of i = j = 0
  std::int32_t position;  // of query i = 0 among the keys
  int queries, columns, keys;
  MaskCover cover;  // what the caller's mask allows of it
};

/// The number of columns that are computed for a number of queries: whole vectors of every instruction set.
constexpr int columns_for(int queries) { return (queries + 15) / 16 * 16; }

/// The score of a masked key.
template <class T>
inline constexpr T kNegativeInfinity = -std::numeric_limits<T>::infinity();

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
