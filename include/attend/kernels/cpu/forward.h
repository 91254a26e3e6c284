// SPDX-License-Identifier: MIT
#pragma once

// Forward pass of fused attention on the CPU.
//
//   for each tile of 64 queries of a head (one work item):
//     for each tile of 64 keys that is not masked as a whole:
//       Sᵀ = K (scale · Q)ᵀ             (keys, queries)
//       scores changed and masked; P = exp(Sᵀ − m), where m is each query's largest score so far
//       rescale Oᵀ and l by exp(m_old − m)
//       Oᵀ += Vᵀ P                      (value_dim, queries)
//     write O = Oᵀᵀ / l, and m + log l for the backward pass
//
// With few keys (kSinglePassKeys) the softmax takes all tiles of keys at once. Then P / l is saved for the backward
// pass, which does not compute it again.
//
// Everything is transposed, so that the queries of a tile are side by side in the lanes of vectors. Maximum, sum and
// rescaling need no step across lanes. K and V are read number by number in place, at any strides. No (L, S) tensor is
// allocated except these saved weights, and K and V are not copied.

#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/scores.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/tile_products.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

template <class T>
void write_log_sum_exp(const AttentionPlan<T>& plan, const AttentionResults<T>& results, const WorkItem& item,
                       const T* largest, const T* sum) {
  if (results.log_sum_exp == nullptr && results.saved_log_sum_exp == nullptr) return;
  const std::int64_t row = plan.row_of(item.batch, item.head) + item.tile.query_begin;
  for (int i = 0; i < item.tile.queries; ++i) {
    const double most = static_cast<double>(largest[i]), log_sum = std::log(static_cast<double>(sum[i]));
    const bool has_infinity = largest[i] == -kNegativeInfinity<T>;  // then the sum is NaN, but its logarithm is not
    const T rounded = sum[i] == T(0) ? kNegativeInfinity<T>
                      : has_infinity ? largest[i]
                                     : static_cast<T>(most + log_sum);
    if (results.log_sum_exp != nullptr) results.log_sum_exp[row + i] = rounded;
    if (results.saved_log_sum_exp == nullptr) continue;
    results.saved_log_sum_exp[row + i] = rounded;
    // The difference comes first: log_sum is lost in the sum of a very large score and log_sum, even in double.
    results.log_sum_exp_lo[row + i] =
        rounded == kNegativeInfinity<T> ? T(0) : static_cast<T>((most - static_cast<double>(rounded)) + log_sum);
  }
}

/// Replaces the numbers of a row that are not finite by `instead`. `nans` becomes NaN there, and 0 elsewhere.
template <class T>
void take_nans(T* row, int columns, T instead, T* nans) {
  for (int i = 0; i < columns; ++i) {
    nans[i] = row[i] * T(0);
    if (!std::isfinite(row[i])) row[i] = instead;
  }
}

/// Computes the output of one item and, if they are wanted, its log-sum-exp and weights. Returns false if a key may be
/// masked and the output is not finite. is_careful as in TileProducts.
template <class T>
bool compute_item(const AttentionPlan<T>& plan, const Scores<T>& scores, const AttentionResults<T>& results,
                  const WorkItem& item, const KeyTiles& keys, bool is_careful, Workspace<T>& memory) {
  const TileOperations<T>& operations = *plan.operations;
  const int queries = item.tile.queries, columns = columns_for(queries);
  memory.begin_again();
  TileProducts<T> products(plan, item, /*has_scores=*/true, is_careful, memory);
  T* output = memory.take(plan.value_dim * kTileQueries);  // Oᵀ
  T *largest = memory.take(kTileQueries), *sum = memory.take(kTileQueries), *rescale = memory.take(kTileQueries);
  std::fill_n(output, plan.value_dim * kTileQueries, T(0));
  std::fill_n(largest, kTileQueries, kNegativeInfinity<T>);
  std::fill_n(sum, kTileQueries, T(0));

  const auto each_tile = [&](const auto& scores_of, const auto& visit) {
    for (const KeyTiles::Tile& found : keys.tiles) {
      const Tile<T> tile = scores.tile(plan, item, found, scores_of(found.key));
      products.set_tile(found.key, found.keys);
      visit(tile);
    }
  };
  const auto set_scores = [&](const Tile<T>& tile) {
    products.scores(tile.scores);
    scores.apply(operations, tile, is_careful);
  };
  const auto finish_sums = [&] {
    std::fill(sum + queries, sum + columns, T(1));
    write_log_sum_exp(plan, results, item, largest, sum);
    for (int i = 0; i < queries; ++i)
      if (sum[i] == T(0)) sum[i] = T(1);  // no key: zeros
  };

  if (plan.is_single_pass) {
    T* const saved = results.weights_of(plan, item);
    T* const weights = saved != nullptr ? saved : memory.take(kSinglePassKeys * kTileQueries);
    T* const score_copies = is_careful ? memory.take(kSinglePassKeys * kTileQueries) : nullptr;
    const int all_keys = keys.range.end - keys.range.begin;
    const auto weights_of = [&](std::int32_t key) { return weights + (key - keys.range.begin) * kTileQueries; };
    if (keys.has_holes()) std::fill_n(weights, all_keys * kTileQueries, kNegativeInfinity<T>);
    each_tile(weights_of, set_scores);
    if (is_careful) std::copy_n(weights, all_keys * kTileQueries, score_copies);
    operations.softmax_step(weights, all_keys, columns, largest, sum, rescale);
    finish_sums();
    if (is_careful) {
      take_nans(sum, columns, T(1), rescale);
      operations.spread_nans(weights, score_copies, all_keys, columns, rescale);
    }
    operations.divide_columns(weights, all_keys, columns, sum);
    each_tile(weights_of, [&](const Tile<T>& tile) { products.add_values(tile.scores, output); });
  } else {
    T *tile_scores = memory.take(kTileSize), *factors = memory.take(kTileSize);
    bool is_first = true;
    each_tile([&](std::int32_t) { return tile_scores; },
              [&](const Tile<T>& tile) {
                set_scores(tile);
                operations.softmax_step(tile.scores, tile.keys, columns, largest, sum, rescale);
                const bool has_changed =
                    std::any_of(rescale, rescale + columns, [](T factor) { return factor != T(1); });
                if (has_changed && !is_first) operations.scale_columns(output, plan.value_dim, columns, rescale);
                is_first = false;
                if (scores.options.dropout > 0) {
                  scores.options.dropout_factors(operations, tile, factors);
                  operations.multiply(tile.scores, factors, tile.keys);
                }
                products.add_values(tile.scores, output);
              });
    finish_sums();
    operations.divide_columns(output, plan.value_dim, columns, sum);
  }
  const auto write = [&](const HeadTensor<T>& to) {
    operations.write_transposed(to.of(item.batch, item.head), item.tile.query_begin, queries, plan.value_dim, T(1),
                                output);
  };
  write(results.output);
  if (results.exact_output != nullptr) write(results.read_output(plan));
  return !plan.may_mask || operations.is_finite(output, kTileQueries, plan.value_dim, columns);
}

/// Computes one item so that masked entries have no effect, even if they are not finite. `keys` is memory for one item.
template <class T>
void forward_item(const AttentionPlan<T>& plan, const Scores<T>& scores, const AttentionResults<T>& results,
                  const WorkItem& item, KeyTiles& keys, Workspace<T>& memory) {
  scores.find_tiles(plan, item, keys);
  if (!compute_item(plan, scores, results, item, keys, /*is_careful=*/false, memory))
    compute_item(plan, scores, results, item, keys, /*is_careful=*/true, memory);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
