// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The place of a score: a query and a key of one head of one batch entry, and the number of queries and keys.
struct Coordinate {
  std::int32_t batch,         ///< the batch entry
      head;                   ///< the query head
  std::int32_t query,         ///< the query, from 0
      key;                    ///< the key, from 0
  std::int32_t query_length,  ///< the number of queries, L
      key_length;             ///< the number of keys, S

  /// The key position of the query: the last query is at the last key. In packed batches (the options query_offsets and
  /// key_offsets) it is counted through all sequences, unlike the options is_causal and window.
  ATTEND_HOST_DEVICE constexpr std::int32_t query_position() const { return query + key_length - query_length; }
};

/// Neighbouring queries of one head of one batch entry, at least one.
struct QueryBlock {
  std::int32_t batch,         ///< the batch entry
      head;                   ///< the query head
  std::int32_t query_begin,   ///< the first query of the block
      query_end;              ///< one past its last query
  std::int32_t query_length,  ///< the number of queries of the call, L
      key_length;             ///< the number of keys of the call, S

  /// The key position of the first query of the block.
  ATTEND_HOST_DEVICE constexpr std::int32_t first_position() const { return query_begin + key_length - query_length; }
  /// The key position of the last query of the block.
  ATTEND_HOST_DEVICE constexpr std::int32_t last_position() const { return query_end - 1 + key_length - query_length; }
};

/// The keys begin … end − 1. There are none if end ≤ begin.
struct KeyRange {
  std::int32_t begin,  ///< the first key
      end;             ///< one past the last key
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
