// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Which score is meant: that of a query and a key of one head of one batch entry; and how many queries and keys there
/// are.
struct Coordinate {
  std::int32_t batch, head;
  std::int32_t query, key;
  std::int32_t query_length, key_length;

  /// The key position at which the query stands: the last query stands at the last key. In packed batches (the options
  /// query_offsets and key_offsets) that is counted through all sequences; the options is_causal and window are not.
  ATTEND_HOST_DEVICE constexpr std::int32_t query_position() const { return query + key_length - query_length; }
};

/// Neighbouring queries query_begin … query_end − 1, at least one, of one head of one batch entry.
struct QueryBlock {
  std::int32_t batch, head;
  std::int32_t query_begin, query_end;
  std::int32_t query_length, key_length;

  /// Where the first and the last of them stand among the keys.
  ATTEND_HOST_DEVICE constexpr std::int32_t first_position() const { return query_begin + key_length - query_length; }
  ATTEND_HOST_DEVICE constexpr std::int32_t last_position() const { return query_end - 1 + key_length - query_length; }
};

/// The keys begin … end − 1; none if end ≤ begin.
struct KeyRange {
  std::int32_t begin, end;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
