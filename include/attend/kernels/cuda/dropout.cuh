// SPDX-License-Identifier: MIT
#pragma once

// The random words of dropout for a tile of 16 × 8 scores as mma leaves it: the thread of lane 4 g + t has rows g and
// g + 8, and of each the columns 2 t and 2 t + 1.
//
// A draw of Philox takes about 65 instructions and gives the words of one query and four neighbouring keys. The threads
// that have these scores make one draw each and exchange words: one draw for four scores.

#include <attend/detail/philox.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// The words of a tile whose rows are queries and whose columns are keys: words[2 r + c] is that of row g + 8 r and
/// column 2 t + c.
///
/// Lanes 2 k and 2 k + 1 have the same four keys. One draws for row g, the other for row g + 8.
///
/// @param query query(r) is the query of row g + 8 r.
/// @param first_key The key of the first column, a multiple of 4.
template <class Scores, class Query>
ATTEND_HOST_DEVICE attend::detail::PhiloxBlock dropout_words_of_queries(const Scores& scores, const Query& query,
                                                                        std::int32_t first_key) {
  const int lane = lane_index();
  const bool is_odd = lane % 2 != 0;
  const attend::detail::PhiloxBlock drawn = scores.dropout_words({query(is_odd), first_key + lane % 4 / 2 * 4});
  attend::detail::PhiloxBlock own;
  ATTEND_UNROLL
  for (int c = 0; c < 2; ++c) {
    const std::uint32_t kept = is_odd ? drawn.words[2 + c] : drawn.words[c];
    const std::uint32_t received = shuffle_xor(is_odd ? drawn.words[c] : drawn.words[2 + c], 1);
    own.words[c] = is_odd ? received : kept;
    own.words[2 + c] = is_odd ? kept : received;
  }
  return own;
}

/// The words of a tile whose rows are keys and whose columns are queries: words[2 r + c] is that of row g + 8 r and
/// column 2 t + c.
///
/// The four lanes with the same ⌊g / 4⌋ and t have four keys of row g and four of row g + 8, for two queries. The lane
/// with g mod 4 = 2 r + c draws for keys r and query c. Then the 4 × 4 words are transposed, in two exchanges.
///
/// @param first_query The query of the first column.
/// @param first_key The key of the first row, a multiple of 4.
template <class Scores>
ATTEND_HOST_DEVICE attend::detail::PhiloxBlock dropout_words_of_keys(const Scores& scores, std::int32_t first_query,
                                                                     std::int32_t first_key) {
  const int lane = lane_index(), g = lane / 4;
  const bool is_odd = g % 2 != 0, is_upper = g / 2 % 2 != 0;
  const attend::detail::PhiloxBlock drawn =
      scores.dropout_words({first_query + lane % 4 * 2 + g % 2, first_key + g / 4 * 4 + g / 2 % 2 * 8});
  std::uint32_t columns[2][2];  // columns[c][k]: of the keys in the row k of this lane, query c
  ATTEND_UNROLL
  for (int k = 0; k < 2; ++k) {
    const std::uint32_t kept = is_odd ? drawn.words[2 * k + 1] : drawn.words[2 * k];
    const std::uint32_t received = shuffle_xor(is_odd ? drawn.words[2 * k] : drawn.words[2 * k + 1], 4);
    columns[0][k] = is_odd ? received : kept;
    columns[1][k] = is_odd ? kept : received;
  }
  attend::detail::PhiloxBlock own;
  ATTEND_UNROLL
  for (int c = 0; c < 2; ++c) {
    const std::uint32_t kept = is_upper ? columns[c][1] : columns[c][0];
    const std::uint32_t received = shuffle_xor(is_upper ? columns[c][0] : columns[c][1], 8);
    own.words[c] = is_upper ? received : kept;
    own.words[2 + c] = is_upper ? kept : received;
  }
  return own;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
