// SPDX-License-Identifier: MIT
#pragma once

// Forward pass of fused attention on the CPU.
//
//   for each block of 64 queries of a head (one task):
//     for each tile of 64 keys that the scores do not rule out:
//       Sᵀ = K (scale · Q)ᵀ             (keys, queries)
//       scores changed and masked; P = exp(Sᵀ − m), where m is each query's largest score so far
//       rescale Oᵀ and l by exp(m_old − m)
//       Oᵀ += Vᵀ P                      (value width, queries)
//     write O = Oᵀᵀ / l, and m + log l for the backward pass
//
// Where there are few keys (kFewKeys), all tiles of a block are taken in one softmax, and if a backward pass will
// follow P / l is kept, which that takes up instead of computing it again.
//
// Everything is transposed, so that the queries of a block lie side by side in the lanes of vectors: maximum, sum and
// rescaling need no step across lanes, and K and V are read number by number where they are, whatever their strides.
// No (L, S) tensor exists but that, and no copy of K or V.

#include <attend/attention/cpu/block_products.h>
#include <attend/attention/cpu/call.h>
#include <attend/attention/cpu/scores.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Memory that forward_block() needs, in numbers of T.
template <class T>
std::int64_t forward_workspace(const Call<T>& call) {
  return BlockProducts<T>::size(call) + kTileQueries * (call.value_width + 2 * kTileKeys + 2 * kFewKeys + 4);
}

template <class T>
void write_log_sum_exp(const Call<T>& call, const Place& place, const T* largest, const T* sum) {
  const std::int64_t row = call.row_of(place.batch, place.head) + place.block.query_begin;
  for (int i = 0; i < place.block.queries; ++i) {
    const double exact = static_cast<double>(largest[i]) + std::log(static_cast<double>(sum[i]));
    const bool has_infinity = largest[i] == -kNever<T>;  // then the sum is NaN, but its logarithm is not
    const T rounded = sum[i] == T(0) ? kNever<T> : has_infinity ? largest[i] : static_cast<T>(exact);
    call.log_sum_exp[row + i] = rounded;
    if (call.log_sum_exp_rest != nullptr)
      call.log_sum_exp_rest[row + i] = rounded == kNever<T> ? T(0) : static_cast<T>(exact - rounded);
  }
}

/// Replaces what is not finite in a row by `instead`. `nans` has NaN there, and 0 elsewhere.
template <class T>
void take_nans(T* row, int columns, T instead, T* nans) {
  for (int i = 0; i < columns; ++i) {
    nans[i] = row[i] * T(0);
    if (!std::isfinite(row[i])) row[i] = instead;
  }
}

/// The output of one block of queries, its log-sum-exp if it is wanted, and its weights if they are kept. Returns
/// whether the output is finite; is_careful as in BlockProducts.
template <class T>
bool compute_block(const Call<T>& call, const Scores<T>& scores, const Place& place, bool is_careful,
                   Workspace<T>& memory) {
  const TileOperations<T>& operations = *call.operations;
  const int queries = place.block.queries, columns = columns_for(queries);
  memory.begin_again();
  BlockProducts<T> products(call, place, /*has_scores=*/true, is_careful, memory);
  T* output = memory.take(call.value_width * kTileQueries);  // Oᵀ
  T *tile_scores = memory.take(kTileSize), *factors = memory.take(kTileSize);
  T *largest = memory.take(kTileQueries), *sum = memory.take(kTileQueries), *rescale = memory.take(kTileQueries);
  std::fill_n(output, call.value_width * kTileQueries, T(0));
  std::fill_n(largest, kTileQueries, kNever<T>);
  std::fill_n(sum, kTileQueries, T(0));

  const KeyRange range = scores.keys(call, place);
  const auto each_tile = [&](T* to, int step, const auto& visit) {
    for (std::int32_t key = range.begin; key < range.end; key += kTileKeys, to += step) {
      const Tile<T> tile = scores.tile(call, place, key, range, to);
      products.set_tile(key, tile.keys);
      visit(tile);
    }
  };
  const auto set_scores = [&](const Tile<T>& tile) {
    products.scores(tile.scores);
    scores.apply(operations, tile, is_careful);
  };
  const auto finish_sums = [&] {
    std::fill(sum + queries, sum + columns, T(1));
    if (call.log_sum_exp != nullptr) write_log_sum_exp(call, place, largest, sum);
    for (int i = 0; i < queries; ++i)
      if (sum[i] == T(0)) sum[i] = T(1);  // no key: zeros
  };

  if (call.takes_keys_at_once) {
    T* const weights = call.weights != nullptr ? call.weights_of(place) : memory.take(kFewKeys * kTileQueries);
    T* const score_copies = is_careful ? memory.take(kFewKeys * kTileQueries) : nullptr;
    const int keys = range.end - range.begin;
    each_tile(weights, kTileSize, set_scores);
    if (is_careful) std::copy_n(weights, keys * kTileQueries, score_copies);
    operations.softmax_step(weights, keys, columns, largest, sum, rescale);
    finish_sums();
    if (is_careful) {
      take_nans(sum, columns, T(1), rescale);
      operations.spread_nans(weights, score_copies, keys, columns, rescale);
    }
    operations.divide_columns(weights, keys, columns, sum);
    each_tile(weights, kTileSize, [&](const Tile<T>& tile) { products.add_values(tile.scores, output); });
  } else {
    each_tile(tile_scores, 0, [&](const Tile<T>& tile) {
      set_scores(tile);
      operations.softmax_step(tile.scores, tile.keys, columns, largest, sum, rescale);
      const bool has_changed = std::any_of(rescale, rescale + columns, [](T factor) { return factor != T(1); });
      if (has_changed && tile.first.key > range.begin)
        operations.scale_columns(output, call.value_width, columns, rescale);
      if (scores.standard.dropout > 0) {
        scores.standard.dropout_factors(operations, tile, factors);
        operations.multiply(tile.scores, factors, tile.keys);
      }
      products.add_values(tile.scores, output);
    });
    finish_sums();
    operations.divide_columns(output, call.value_width, columns, sum);
  }
  operations.write_transposed(call.output.of(place.batch, place.head), place.block.query_begin, queries,
                              call.value_width, T(1), output);
  return !call.may_rule_out || operations.is_finite(output, kTileQueries, call.value_width, columns);
}

/// The same, without a trace of what is ruled out.
template <class T>
void forward_block(const Call<T>& call, const Scores<T>& scores, const Place& place, Workspace<T>& memory) {
  if (!compute_block(call, scores, place, /*is_careful=*/false, memory))
    compute_block(call, scores, place, /*is_careful=*/true, memory);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
