// SPDX-License-Identifier: MIT
#pragma once

// The backward pass without tensor cores: every number type, size, stride and option. Three kernels, each of which
// computes the scores of 32 queries × 32 keys at a time (plain_tile.cuh) and writes every result once, in a fixed
// order:
//
// rows: for a tile of queries, over the keys
//     largest score,  1 / Σ exp(score − largest),  δ = Σ P · dP − d(log-sum-exp)
//
// keys: for a tile of keys, over the query heads of the key head and their queries
//     dV = Pᵀ dO,  dK = dSᵀ Q
//
// queries: for a tile of queries, over the keys
//     dQ = dS K
//
//   P = exp(score − largest) / Σ,   dP = dO Vᵀ · dropout,   dS = P (dP − δ) · score′
//
// The first kernel computes the softmax again instead of reading what the forward pass has saved. So P and δ have the
// errors of the dense formula, also where nearly all weight of a query is on one key and dP − δ is a difference of
// nearly equal numbers.
//
// Each score makes a draw of Philox of its own, about 65 instructions. Its products take about 3 (D + Dv), so sharing a
// draw among four lanes, as the kernels on tensor cores do, would save little.
//
// Keys and queries compute kColumns (float32: 64, float64: 32) columns of D and Dv in a block; wider heads have more
// blocks, which compute the scores again.

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/real.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/plain_tile.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {
namespace detail {

/// Calls action(range) for each tile of `range`.
template <class Action>
ATTEND_HOST_DEVICE void for_each_tile(const KeyRange& range, std::int32_t tile_rows, const Action& action) {
  for (std::int32_t begin = range.begin; begin < range.end; begin += tile_rows)
    action(KeyRange{begin, smaller(range.end, begin + tile_rows)});
}

/// The softmax of one query and its δ, key by key.
template <class T>
struct RunningRow {
  T largest, sum = T(0), delta = T(0);

  ATTEND_HOST_DEVICE explicit RunningRow(T masked) : largest(masked) {}

  ATTEND_HOST_DEVICE void add(T score, T weight_gradient, T masked) {
    if (score == masked) return;
    if (!(score <= largest)) {
      const T rescale = largest == masked ? T(0) : exp(Real<T>(largest - score)).value;
      sum *= rescale;
      delta *= rescale;
      largest = score;
    }
    const T weight = exp(Real<T>(score - largest)).value;
    sum += weight;
    if (weight != T(0)) delta += weight * weight_gradient;
  }
};

}  // namespace detail

/// One thread of the kernel that writes BackwardCall::plain_rows.
template <class T, class Score, class Mask>
struct PlainRowSums {
  using Tile = detail::PlainTile<T>;
  static constexpr const char* name() { return "plain_backward_rows"; }
  static constexpr int kThreads = Tile::kThreads, kSharedBytes = Tile::kSharedBytes;

  /// The number of blocks.
  static std::int64_t blocks(const BackwardCall& call) { return detail::query_tiles(call.forward, Tile::kRows); }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const detail::Tile work = detail::query_tile(call.forward, block_index().x, Tile::kRows);
    if (work.rows.begin >= work.rows.end) return;
    const detail::HeadScores<T, Score, Mask> scores(call.forward, score, mask, work.sequence, work.head);
    constexpr T kMasked = detail::HeadScores<T, Score, Mask>::kMasked;
    const Tile tile;
    const int row = thread_index();
    detail::RunningRow<T> running(kMasked);
    detail::for_each_tile(scores.keys(work.rows), Tile::kRows, [&](const KeyRange& keys) {
      if (scores.cover(work.rows, keys) == MaskCover::kEmpty) return;
      const detail::PlainScores<T, Score, Mask> tile_scores(tile, call, scores, work.rows, keys);
      for (int k = 0; k < Tile::kScores; ++k) {
        tile.weights().store(tile.place(k), tile_scores.derived(k).value);
        tile.gradients().store(tile.place(k), tile_scores.weight_gradient(k));
      }
      barrier();
      for (int j = 0; j < Tile::kRows && row < Tile::kRows; ++j)
        running.add(tile.weights().load(row * Tile::kStride + j), tile.gradients().load(row * Tile::kStride + j),
                    kMasked);
    });
    if (row >= work.rows.end - work.rows.begin) return;
    const std::int64_t index = call.forward.row(work.sequence.batch, work.head, work.rows.begin + row);
    const bool has_keys = running.largest != kMasked;
    T delta = has_keys ? running.delta / running.sum : T(0);
    if (call.log_sum_exp_gradient != nullptr)
      delta -= load_global(static_cast<const T*>(call.log_sum_exp_gradient) + index);
    T* const to = static_cast<T*>(call.plain_rows) + 3 * index;
    store_global(to, running.largest);
    store_global(to + 1, has_keys ? T(1) / running.sum : T(0));
    store_global(to + 2, delta);
  }
};

/// One thread of the kernel that writes the gradients of the keys and values.
template <class T, class Score, class Mask>
struct PlainKeys {
  using Tile = detail::PlainTile<T>;
  static constexpr const char* name() { return "plain_backward_keys"; }
  static constexpr int kThreads = Tile::kThreads, kSharedBytes = Tile::kSharedBytes;

  static std::int64_t blocks(const BackwardCall& call) {
    return detail::key_tiles(call.forward, Tile::kRows) * chunks(call);
  }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const Call& forward = call.forward;
    const int column = static_cast<int>(block_index().x % chunks(call)) * Tile::kColumns;
    const detail::Tile work = detail::key_tile(forward, block_index().x / chunks(call), Tile::kRows);
    const std::int32_t batch = work.sequence.batch;
    const Tile tile;
    T key_sums[Tile::kOutputs] = {}, value_sums[Tile::kOutputs] = {};
    for (std::int32_t h = 0; h < forward.group && work.rows.begin < work.rows.end; ++h) {
      const std::int32_t head = work.head * forward.group + h;
      const detail::HeadScores<T, Score, Mask> scores(forward, score, mask, work.sequence, head);
      detail::for_each_tile(scores.queries(work.rows), Tile::kRows, [&](const KeyRange& queries) {
        if (scores.cover(queries, work.rows) == MaskCover::kEmpty) return;
        const detail::PlainScores<T, Score, Mask> tile_scores(tile, call, scores, queries, work.rows);
        for (int k = 0; k < Tile::kScores; ++k) {
          const detail::PlainScore<T> one = tile_scores.score(k);
          tile.weights().store(tile.place(k), one.weight * scores.dropout_factor(tile_scores.place(k)));
          tile.gradients().store(tile.place(k), one.gradient * one.derived.mod_slope * one.derived.option_slope);
        }
        tile.template add</*kIsTransposed=*/true>(
            tile.weights(), {forward.dtype, call.output_gradient, batch, head, queries, forward.value_dim}, column,
            value_sums);
        tile.template add</*kIsTransposed=*/true>(
            tile.gradients(), {forward, forward.query, forward.query_rotary, batch, head, queries}, column, key_sums);
      });
    }
    const KeyRange rows = detail::written_keys(forward, work.rows, Tile::kRows);
    if (forward.has_rotary())
      tile.store_rotated_back(forward, forward.key_rotary, call.key_gradient, batch, work.head, rows, column,
                              static_cast<T>(forward.scale), key_sums);
    else
      tile.store(forward.dtype, call.key_gradient, batch, work.head, rows, column, forward.head_dim,
                 static_cast<T>(forward.scale), key_sums);
    tile.store(forward.dtype, call.value_gradient, batch, work.head, rows, column, forward.value_dim, T(1), value_sums);
  }

 private:
  ATTEND_HOST_DEVICE static std::int64_t chunks(const BackwardCall& call) {
    return (detail::larger(call.forward.head_dim, call.forward.value_dim) + Tile::kColumns - 1) / Tile::kColumns;
  }
};

/// One thread of the kernel that writes the gradient of the queries.
template <class T, class Score, class Mask>
struct PlainQueries {
  using Tile = detail::PlainTile<T>;
  static constexpr const char* name() { return "plain_backward_queries"; }
  static constexpr int kThreads = Tile::kThreads, kSharedBytes = Tile::kSharedBytes;

  static std::int64_t blocks(const BackwardCall& call) {
    return detail::query_tiles(call.forward, Tile::kRows) * chunks(call);
  }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const Call& forward = call.forward;
    const int column = static_cast<int>(block_index().x % chunks(call)) * Tile::kColumns;
    const detail::Tile work = detail::query_tile(forward, block_index().x / chunks(call), Tile::kRows);
    if (work.rows.begin >= work.rows.end) return;
    const std::int32_t batch = work.sequence.batch;
    const detail::HeadScores<T, Score, Mask> scores(forward, score, mask, work.sequence, work.head);
    const Tile tile;
    T sums[Tile::kOutputs] = {};
    detail::for_each_tile(scores.keys(work.rows), Tile::kRows, [&](const KeyRange& keys) {
      if (scores.cover(work.rows, keys) == MaskCover::kEmpty) return;
      const detail::PlainScores<T, Score, Mask> tile_scores(tile, call, scores, work.rows, keys);
      for (int k = 0; k < Tile::kScores; ++k) {
        const detail::PlainScore<T> one = tile_scores.score(k);
        tile.gradients().store(tile.place(k), one.gradient * one.derived.mod_slope * one.derived.option_slope);
      }
      tile.template add</*kIsTransposed=*/false>(
          tile.gradients(), {forward, forward.key, forward.key_rotary, batch, work.head / forward.group, keys}, column,
          sums);
    });
    if (forward.has_rotary())
      tile.store_rotated_back(forward, forward.query_rotary, call.query_gradient, batch, work.head, work.rows, column,
                              static_cast<T>(forward.scale), sums);
    else
      tile.store(forward.dtype, call.query_gradient, batch, work.head, work.rows, column, forward.head_dim,
                 static_cast<T>(forward.scale), sums);
  }

 private:
  ATTEND_HOST_DEVICE static std::int64_t chunks(const BackwardCall& call) {
    return (call.forward.head_dim + Tile::kColumns - 1) / Tile::kColumns;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
