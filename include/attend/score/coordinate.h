// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The indices of a score: batch entry, head, query and key, and the number of queries and keys.
struct Coordinate {
  std::int32_t batch,         ///< the batch entry, 0 … N − 1
      head;                   ///< the query head, 0 … H − 1
  std::int32_t query,         ///< the query, 0 … L − 1
      key;                    ///< the key, 0 … S − 1
  std::int32_t query_length,  ///< the number of queries, L
      key_length;             ///< the number of keys: S, or key_lengths[batch] if the option key_lengths is set

  /// The position of the query among the keys, query + S − L: the last query is at the last key. Compare it with `key`.
  ///
  /// In packed batches (options query_offsets and key_offsets), `query` and `key` count through all sequences, so this
  /// is not a position within a sequence. The options is_causal and window do count within a sequence.
  ATTEND_HOST_DEVICE constexpr std::int32_t query_position() const { return query + key_length - query_length; }
};

/// A block of consecutive queries of one head of one batch entry, at least one query.
struct QueryBlock {
  std::int32_t batch,         ///< the batch entry, 0 … N − 1
      head;                   ///< the query head, 0 … H − 1
  std::int32_t query_begin,   ///< the first query of the block
      query_end;              ///< one past its last query
  std::int32_t query_length,  ///< the number of queries of the call, L
      key_length;             ///< the number of keys, as in Coordinate

  /// The position among the keys of the first query of the block; see Coordinate::query_position().
  ATTEND_HOST_DEVICE constexpr std::int32_t first_position() const { return query_begin + key_length - query_length; }
  /// The position among the keys of the last query of the block.
  ATTEND_HOST_DEVICE constexpr std::int32_t last_position() const { return query_end - 1 + key_length - query_length; }
};

/// A range of keys: begin … end − 1. It is empty if end ≤ begin.
struct KeyRange {
  std::int32_t begin,  ///< the first key
      end;             ///< one past the last key
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
