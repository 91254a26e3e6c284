// SPDX-License-Identifier: MIT
#pragma once

// Backward pass of fused attention on the CPU, from the log-sum-exp or the weights that the forward pass has saved.
//
//   for each tile of 64 queries of a head (one work item), with δ = ΣP · dP − d(log-sum-exp):
//     for each tile of 64 keys that is not masked as a whole:
//       Sᵀ = scale · K Qᵀ,    P = exp(score(Sᵀ) − log-sum-exp)     (keys, queries)
//       dP = V dOᵀ,           dS = P (dP − δ) score′(Sᵀ)           (keys, queries)
//       dV += P dO                                                  (keys, value_dim)
//       dK += dS Q                                                  (keys, head_dim)
//       dQᵀ += Kᵀ dS                                                (head_dim, queries)
//     write scale · dQ; dK is multiplied by the scale at the end
//
// δ is also Σ dO · O, which is known before the first tile. But if nearly all weight of a query is on one key, dP − δ
// is a difference of nearly equal numbers, and δ must have the errors of dP. This matters most if an item has few tiles
// of keys. Then all of its tiles are computed before δ. That costs no arithmetic, and the gradients are as accurate as
// those of the dense formula. The gradient of a slope is a sum of dS times a distance over whole rows, and adds up
// every error of δ. If such sums are wanted, items with many tiles compute their tiles twice, first for δ.

#include <attend/kernels/cpu/forward.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/scores.h>
#include <attend/kernels/cpu/sums.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/tile_products.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The gradients that a backward pass reads and writes, as the kernels see them.
template <class T>
struct Gradients {
  HeadTensor<T> output;
  const T* log_sum_exp = nullptr;  // (N, H, L); null for zeros
  HeadTensor<T> query, key, value;
  Sums mask, slopes;                // zeros at first
  std::vector<Sums> score_tensors;  // of each tensor of the score_mod; empty if none is wanted

  /// Whether some gradient adds up dS over many scores.
  bool has_sums() const {
    return mask.data != nullptr || slopes.data != nullptr ||
           std::any_of(score_tensors.begin(), score_tensors.end(),
                       [](const Sums& sums) { return sums.data != nullptr; });
  }
};

/// The gradients of the keys (without the scale) and values of one key head, in rows of whole vectors.
template <class T>
struct KeyValueGradients {
  std::int64_t key_row = 0, value_row = 0;
  std::vector<T> key, value;

  KeyValueGradients() = default;
  explicit KeyValueGradients(const AttentionPlan<T>& plan)
      : key_row(TileProducts<T>::row_of(plan.head_dim)),
        value_row(TileProducts<T>::row_of(plan.value_dim)),
        key(static_cast<std::size_t>(plan.keys * key_row)),
        value(static_cast<std::size_t>(plan.keys * value_row)) {}

  void set_to_zero() {
    std::fill(key.begin(), key.end(), T(0));
    std::fill(value.begin(), value.end(), T(0));
  }
};

/// The backward pass of one work item at a time. Each thread has its own.
template <class T>
class BackwardItems {
 public:
  BackwardItems(const AttentionPlan<T>& plan, const Scores<T>& scores, const AttentionResults<T>& results,
                const Gradients<T>& gradients, int thread)
      : plan_(plan), scores_(scores), results_(results), gradients_(gradients), thread_(thread) {}

  /// Writes the query gradient of the item, and adds its part of all other gradients. is_careful as in TileProducts.
  /// Without is_careful it returns false if it meets a number that is not finite and may be masked. The gradients are
  /// then invalid.
  bool run(const WorkItem& item, bool is_careful, KeyValueGradients<T>& sums) {
    const TileOperations<T>& operations = *plan_.operations;
    const int queries = item.tile.queries, columns = columns_for(queries);
    const std::int64_t row = plan_.row_of(item.batch, item.head) + item.tile.query_begin;
    T* const saved_weights = results_.weights_of(plan_, item);
    const bool has_weights = saved_weights != nullptr;
    memory_.begin_again();
    TileProducts<T> products(plan_, item, /*has_scores=*/!has_weights, is_careful, memory_);
    products.set_output_gradient(gradients_.output.of(item.batch, item.head), memory_);
    const bool is_watched = plan_.may_mask && !is_careful;
    if (is_watched && !products.is_finite()) return false;

    T* query_gradient = memory_.take(plan_.head_dim * kTileQueries);  // dQᵀ / scale
    T *log_sum_exp = memory_.take(kTileQueries), *log_sum_exp_lo = memory_.take(kTileQueries);
    T *delta = memory_.take(kTileQueries), *delta_lo = memory_.take(kTileQueries);
    T *weight_sum = memory_.take(kTileQueries), *nans = memory_.take(kTileQueries);
    std::fill_n(query_gradient, plan_.head_dim * kTileQueries, T(0));
    std::fill_n(log_sum_exp, kTileQueries, std::numeric_limits<T>::infinity());  // of a query with no key
    std::fill_n(log_sum_exp_lo, kTileQueries, T(0));
    std::fill_n(delta, kTileQueries, T(0));
    std::fill_n(delta_lo, kTileQueries, T(0));
    std::fill_n(weight_sum, kTileQueries, has_weights ? T(1) : T(0));
    for (int i = 0; i < queries && !has_weights; ++i) {
      const T saved = results_.saved_log_sum_exp[row + i];
      if (saved != kNegativeInfinity<T>) log_sum_exp[i] = saved;
      log_sum_exp_lo[i] = results_.log_sum_exp_lo[row + i];
    }
    if (is_careful) take_nans(log_sum_exp_lo, columns, T(0), nans);  // NaN if the log-sum-exp is not finite
    if (is_careful) take_nans(log_sum_exp, columns, T(0), nans);

    scores_.find_tiles(plan_, item, keys_);
    const auto begin_tile = [&](const KeyTiles::Tile& found, TileMemory& tile_memory) {
      const Tile<T> tile = scores_.tile(plan_, item, found, tile_memory.weights);
      products.set_tile(found.key, found.keys);
      weights_and_gradients(products, tile, has_weights, is_careful, tile_memory);
      return tile;
    };
    const auto end_tile = [&](const Tile<T>& tile, TileMemory& tile_memory) {
      operations.softmax_gradient(tile.scores, tile_memory.gradients, tile.keys, columns, delta, delta_lo);
      to_first_scores(tile, tile_memory);
      products.add_value_gradients(tile.scores, sums.value.data() + tile.first.key * sums.value_row);
      products.add_key_gradients(tile_memory.gradients, sums.key.data() + tile.first.key * sums.key_row);
      products.add_query_gradients(tile_memory.gradients, query_gradient);
    };
    const auto recompute_softmax = [&](const Tile<T>& tile, const TileMemory& tile_memory, T* gradient_sum) {
      if (is_careful) operations.spread_nans(tile.scores, tile.scores, tile.keys, columns, nans);
      operations.recompute_softmax(tile.scores, tile_memory.gradients, tile.keys, columns, log_sum_exp, log_sum_exp_lo,
                                   weight_sum, gradient_sum);
    };
    const auto add_delta_residual = [&](const Tile<T>& tile, const TileMemory& tile_memory) {
      operations.add_delta_residual(tile.scores, tile_memory.gradients, tile.keys, columns, delta, delta_lo);
    };
    const auto divide_by_weights = [&](T* row_sums) {
      for (int i = 0; i < queries; ++i) row_sums[i] = weight_sum[i] > T(0) ? row_sums[i] / weight_sum[i] : T(0);
    };
    const auto finish_delta = [&] {
      for (int i = 0; i < queries; ++i)
        if (!std::isfinite(delta_lo[i])) delta_lo[i] = T(0);  // if some dP is infinite, δ alone is right
      if (gradients_.log_sum_exp != nullptr)
        for (int i = 0; i < queries; ++i) delta_lo[i] -= gradients_.log_sum_exp[row + i];
    };

    if (keys_.tiles.size() <= kFewTiles) {
      std::vector<std::pair<Tile<T>, TileMemory>> tiles;
      for (const KeyTiles::Tile& found : keys_.tiles) {
        T* const saved = has_weights ? saved_weights + (found.key - keys_.range.begin) * kTileQueries : nullptr;
        TileMemory tile_memory(memory_, saved);
        const Tile<T> tile = begin_tile(found, tile_memory);
        if (has_weights)
          operations.add_delta_residual(tile.scores, tile_memory.gradients, tile.keys, columns, /*delta=*/delta_lo,
                                        delta);
        else
          recompute_softmax(tile, tile_memory, delta);
        tiles.emplace_back(tile, tile_memory);
      }
      divide_by_weights(delta);
      for (const auto& [tile, tile_memory] : tiles) add_delta_residual(tile, tile_memory);
      divide_by_weights(delta_lo);
      finish_delta();
      for (auto& [tile, tile_memory] : tiles) {
        products.set_tile(tile.first.key, tile.keys);
        end_tile(tile, tile_memory);
      }
    } else {
      TileMemory tile_memory(memory_);
      T* ignored = memory_.take(kTileQueries);
      std::fill_n(ignored, kTileQueries, T(0));
      set_delta(item, products, delta, delta_lo);
      if (gradients_.has_sums()) {
        std::fill_n(delta_lo, kTileQueries, T(0));
        for (const KeyTiles::Tile& found : keys_.tiles) {
          const Tile<T> tile = begin_tile(found, tile_memory);
          recompute_softmax(tile, tile_memory, ignored);
          add_delta_residual(tile, tile_memory);
        }
        divide_by_weights(delta_lo);
      }
      finish_delta();
      for (const KeyTiles::Tile& found : keys_.tiles) {
        const Tile<T> tile = begin_tile(found, tile_memory);
        recompute_softmax(tile, tile_memory, ignored);
        end_tile(tile, tile_memory);
      }
    }
    operations.write_transposed(gradients_.query.of(item.batch, item.head), item.tile.query_begin, queries,
                                plan_.head_dim, plan_.scale, query_gradient);
    return !is_watched || operations.is_finite(query_gradient, kTileQueries, plan_.head_dim, columns);
  }

 private:
  // An item with at most this many tiles of keys keeps all of them until δ is known.
  static constexpr std::size_t kFewTiles = 6;
  static_assert(kSinglePassKeys <= kFewTiles * kTileKeys);

  /// The memory of a tile of keys. If there are few tiles, each keeps its own until δ is known.
  struct TileMemory {
    T *weights, *gradients, *slopes, *variant_slopes, *before, *factors;
    bool has_slopes = false, has_variant_slopes = false;

    /// `saved`: the weights, if the forward pass has saved them.
    explicit TileMemory(Workspace<T>& memory, T* saved = nullptr)
        : weights(saved != nullptr ? saved : memory.take(kTileSize)),
          gradients(memory.take(kTileSize)),
          slopes(memory.take(kTileSize)),
          variant_slopes(memory.take(kTileSize)),
          before(memory.take(kTileSize)),
          factors(memory.take(kTileSize)) {}
  };

  /// Computes dP and, unless the weights were saved, the scores that the softmax gets, with their slopes.
  void weights_and_gradients(TileProducts<T>& products, const Tile<T>& tile, bool has_weights, bool is_careful,
                             TileMemory& memory) const {
    const TileOperations<T>& operations = *plan_.operations;
    const OptionScores<T>& options = scores_.options;
    if (!has_weights) {
      products.scores(tile.scores);
      memory.has_slopes = options.change(operations, tile, memory.slopes, is_careful);
      if (!gradients_.score_tensors.empty()) std::copy_n(tile.scores, tile.keys * kTileQueries, memory.before);
      memory.has_variant_slopes = scores_.variant != nullptr && scores_.variant->apply(tile, memory.variant_slopes);
      options.apply_mask(operations, tile);
    }
    products.weight_gradients(memory.gradients);
    if (is_careful)
      operations.clear_gradients(tile.scores, memory.gradients, tile.keys, tile.columns,
                                 has_weights ? T(0) : kNegativeInfinity<T>);
    if (options.dropout > 0) {
      options.dropout_factors(operations, tile, memory.factors);
      operations.multiply(memory.gradients, memory.factors, tile.keys);
    }
  }

  /// Turns the gradients of the scores that the softmax gets into those of q·k, and adds those of the tensors that the
  /// scores read. Turns the weights into those after dropout.
  void to_first_scores(const Tile<T>& tile, TileMemory& memory) {
    const TileOperations<T>& operations = *plan_.operations;
    const OptionScores<T>& options = scores_.options;
    if (options.dropout > 0) operations.multiply(tile.scores, memory.factors, tile.keys);
    Tile<T> before = tile;
    before.scores = memory.before;
    for (std::size_t k = 0; k < gradients_.score_tensors.size(); ++k)
      if (const Sums& sums = gradients_.score_tensors[k]; sums.data != nullptr)
        scores_.variant->add_gradients(before, memory.gradients, static_cast<int>(k), thread_, sums.of(thread_));
    if (memory.has_variant_slopes) operations.multiply(memory.gradients, memory.variant_slopes, tile.keys);
    if (gradients_.mask.data != nullptr) options.add_mask_gradient(tile, memory.gradients, gradients_.mask.of(thread_));
    if (gradients_.slopes.data != nullptr)
      options.add_slope_gradient(tile, memory.gradients, plan_.heads, gradients_.slopes.of(thread_));
    if (memory.has_slopes) operations.multiply(memory.gradients, memory.slopes, tile.keys);
  }

  /// Sets delta + delta_lo to Σ dO · O.
  void set_delta(const WorkItem& item, const TileProducts<T>& products, T* delta, T* delta_lo) {
    const int columns = columns_for(item.tile.queries);
    T* output = memory_.take(plan_.value_dim * kTileQueries);  // Oᵀ
    plan_.operations->read_transposed(results_.read_output(plan_).of(item.batch, item.head), item.tile.query_begin,
                                      item.tile.queries, columns, plan_.value_dim, T(1), output);
    double sums[kTileQueries] = {};
    for (int d = 0; d < plan_.value_dim; ++d)
      for (int i = 0; i < columns; ++i) {
        const int entry = d * kTileQueries + i;
        sums[i] += static_cast<double>(products.gradient_columns()[entry]) * static_cast<double>(output[entry]);
      }
    for (int i = 0; i < item.tile.queries; ++i) {
      delta[i] = static_cast<T>(sums[i]);
      delta_lo[i] = static_cast<T>(sums[i] - static_cast<double>(delta[i]));
    }
  }

  const AttentionPlan<T>& plan_;
  const Scores<T>& scores_;
  const AttentionResults<T>& results_;
  const Gradients<T>& gradients_;
  const int thread_;
  KeyTiles keys_;
  Workspace<T> memory_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
