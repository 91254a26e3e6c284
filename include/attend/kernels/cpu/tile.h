// SPDX-License-Identifier: MIT
#pragma once

#include <attend/score/coordinate.h>
#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

using namespace simd;  // NOLINT: the kernels' vocabulary

/// The kernels work on tiles of so many keys and queries; a tile has one row for each key, its queries side by side.
inline constexpr int kTileKeys = 64, kTileQueries = 64;
inline constexpr int kTileSize = kTileKeys * kTileQueries;

/// The scores of some queries and keys: that of query i and key j is scores[j · kTileQueries + i].
///
/// All rows are kTileQueries long; columns from `queries` on are padding, whose results nobody reads, and those from
/// `columns` on, a multiple of every instruction set's lanes, are not even computed.
template <class T>
struct Tile {
  T* scores;
  Coordinate first;       // of i = j = 0
  std::int32_t position;  // where query i = 0 stands among the keys
  int queries, columns, keys;
};

/// So many columns are computed for so many queries: whole vectors of every instruction set.
constexpr int columns_for(int queries) { return (queries + 15) / 16 * 16; }

/// The score of what must not be attended.
template <class T>
inline constexpr T kNegativeInfinity = -std::numeric_limits<T>::infinity();

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
