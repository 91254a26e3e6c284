// SPDX-License-Identifier: MIT
#pragma once

// The gradients that are sums over many scores: of an added mask, of ALiBi's slopes, and of the tensors that a
// score_mod reads. All are summed in float64 and in a fixed order, without atomic additions: each block adds to memory
// of its own, and AddPartials adds up the partial sums of the blocks.
//
//   mask, slopes:  A block has the scores of 32 queries and 32 keys, over all heads and batch entries that share them.
//                  If the gradient has no keys, it has all keys. If the gradient has no queries, each tile of queries
//                  has a row of partial sums.
//   tensors:       Only the score_mod knows which numbers it reads. Each warp has a row of partial sums as large as the
//                  tensor. Lanes that read the same number in the same step are added up by the first of them.
//
// The scores are computed again, with plain products (plain_tile.cuh). tensor_core_sums.cuh has the first kernel on
// tensor cores.

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/mask_cover.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/plain_backward.cuh>
#include <attend/kernels/cuda/plain_tile.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

/// Blocks of kRows queries and kColumns keys for the gradient of an added mask or of slopes.
template <int kRows, int kColumns, int kThreads>
struct EntryTiles {
  static constexpr int kStride = kColumns + 1, kBytes = kRows * kStride * static_cast<int>(sizeof(double));

  /// What a block adds up: for the batch entries and heads that have the gradient of these, or all.
  struct Work {
    std::int32_t query_tile, head, batch;
    KeyRange queries, keys;
  };

  ATTEND_HOST_DEVICE static std::int64_t query_tiles(const BackwardCall& call) {
    return tiles(call.forward.queries, kRows);
  }

  static std::int64_t blocks(const BackwardCall& call) {
    const SumJob& sum = call.sum;
    return query_tiles(call) * (sum.has_keys ? tiles(call.forward.keys, kColumns) : 1) *
           (sum.has_heads ? call.forward.heads : 1) * (sum.has_batch ? call.forward.batch_size : 1);
  }

  /// How many rows of partial sums there are: 0 if the blocks write the gradient.
  static std::int64_t rows(const BackwardCall& call) { return call.sum.has_queries ? 0 : query_tiles(call); }

  ATTEND_HOST_DEVICE static Work work(const BackwardCall& call) {
    const Call& forward = call.forward;
    const SumJob& sum = call.sum;
    std::int64_t block = block_index().x;
    const auto next = [&](bool is_counted, std::int64_t count) {
      if (!is_counted) return std::int32_t{0};
      const std::int64_t index = block % count;
      block /= count;
      return static_cast<std::int32_t>(index);
    };
    const std::int32_t key_tile = next(sum.has_keys, tiles(forward.keys, kColumns)),
                       query_tile = next(true, query_tiles(call)), head = next(sum.has_heads, forward.heads),
                       batch = next(sum.has_batch, forward.batch_size);
    Work own;  // set one by one: nvcc 13.0 crashes at a nested list of initializers
    own.query_tile = query_tile;
    own.head = head;
    own.batch = batch;
    own.queries.begin = query_tile * kRows;
    own.queries.end = smaller(forward.queries, own.queries.begin + kRows);
    own.keys.begin = key_tile * kColumns;
    own.keys.end = sum.has_keys ? smaller(forward.keys, own.keys.begin + kColumns) : forward.keys;
    return own;
  }

  /// Calls action(sequence, head) for each head whose scores the block adds up.
  template <class Action>
  ATTEND_HOST_DEVICE static void for_each_head(const BackwardCall& call, const Work& work, const Action& action) {
    const Call& forward = call.forward;
    const SumJob& sum = call.sum;
    for (std::int32_t n = work.batch; n < (sum.has_batch ? work.batch + 1 : forward.batch_size); ++n)
      for (std::int32_t s = 0; s < (forward.num_sequences > 0 ? forward.num_sequences : 1); ++s) {
        const Sequence sequence =
            forward.num_sequences > 0 ? packed_sequence(forward, n, s) : whole_sequence(forward, n);
        for (std::int32_t h = work.head; h < (sum.has_heads ? work.head + 1 : forward.heads); ++h) action(sequence, h);
      }
  }

  /// Stores the sums of the block, (kRows, kColumns) in rows of kStride. If the gradient has no queries or no keys,
  /// they are summed over those first.
  ATTEND_HOST_DEVICE static void write(const BackwardCall& call, const Work& work, const Shared<double>& sums) {
    const Call& forward = call.forward;
    const SumJob& sum = call.sum;
    barrier();
    const int rows = sum.has_queries ? work.queries.end - work.queries.begin : 1;
    const int columns = sum.has_keys ? work.keys.end - work.keys.begin : 1;
    double* const to = sum.has_queries ? sum.gradient : sum.partials + work.query_tile * sum.size;
    std::int64_t first = sum.has_batch ? work.batch : 0;
    first = first * (sum.has_heads ? forward.heads : 1) + work.head;
    first = first * (sum.has_queries ? forward.queries : 1) + (sum.has_queries ? work.queries.begin : 0);
    for (int entry = thread_index(); entry < rows * columns; entry += kThreads) {
      const int row = entry / columns, column = entry % columns;
      double total = 0;
      for (int i = sum.has_queries ? row : 0; i < (sum.has_queries ? row + 1 : kRows); ++i)
        for (int j = sum.has_keys ? column : 0; j < (sum.has_keys ? column + 1 : kColumns); ++j)
          total += sums.load(i * kStride + j);
      const std::int64_t place =
          (first + row) * (sum.has_keys ? forward.keys : 1) + (sum.has_keys ? work.keys.begin + column : 0);
      store_global(to + place, total);
    }
  }

 private:
  ATTEND_HOST_DEVICE static std::int64_t tiles(std::int32_t rows, std::int32_t tile_rows) {
    return (std::int64_t{rows} + tile_rows - 1) / tile_rows;
  }
};

}  // namespace detail

/// One thread of the kernel that adds up the gradient of an added mask or of slopes.
template <class T, class Score, class Mask>
struct EntrySums {
  using Tile = detail::PlainTile<T>;
  static constexpr const char* name() { return "entry_sums"; }
  static constexpr int kThreads = Tile::kThreads;
  using Tiles = detail::EntryTiles<Tile::kRows, Tile::kRows, kThreads>;
  static constexpr int kSharedBytes = Tile::kSharedBytes + Tiles::kBytes;

  static std::int64_t blocks(const BackwardCall& call) { return Tiles::blocks(call); }
  static std::int64_t rows(const BackwardCall& call) { return Tiles::rows(call); }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const typename Tiles::Work work = Tiles::work(call);
    const Tile tile;
    const Shared<double> sums = shared_memory<double>(Tile::kSharedBytes, Tile::kRows * Tiles::kStride);
    static_assert(Tiles::kStride == Tile::kStride);
    for (int k = 0; k < Tile::kScores; ++k) sums.store(tile.place(k), 0);
    Tiles::for_each_head(call, work, [&](const detail::Sequence& sequence, std::int32_t head) {
      const detail::HeadScores<T, Score, Mask> scores(call.forward, score, mask, sequence, head);
      detail::for_each_tile(work.keys, Tile::kRows, [&](const KeyRange& keys) {
        if (scores.cover(work.queries, keys) == MaskCover::kEmpty) return;
        const detail::PlainScores<T, Score, Mask> tile_scores(tile, call, scores, work.queries, keys);
        for (int k = 0; k < Tile::kScores; ++k) {
          const detail::PlainScore<T> one = tile_scores.score(k);
          const T factor = call.sum.is_of_slopes ? -static_cast<T>(scores.distance(tile_scores.place(k))) : T(1);
          const double gradient =
              static_cast<double>(one.gradient * one.derived.mod_slope) * static_cast<double>(factor);
          sums.store(tile.place(k), sums.load(tile.place(k)) + gradient);
        }
      });
    });
    Tiles::write(call, work, sums);
  }
};

/// One thread of the kernel that adds up the gradient of a tensor of the score_mod.
template <class T, class Score, class Mask>
struct TensorSums {
  using Tile = detail::PlainTile<T>;
  static constexpr const char* name() { return "tensor_sums"; }
  static constexpr int kThreads = Tile::kThreads, kWarps = kThreads / kWarpSize;
  static constexpr int kEntryBytes = 16;  // of a lane: the place and the number
  static constexpr int kSharedBytes = Tile::kSharedBytes + kThreads * kEntryBytes;

  static std::int64_t blocks(const BackwardCall& call) { return call.sum.workers; }

  /// How many rows of partial sums there are: one for each warp.
  static std::int64_t rows(const BackwardCall& call) { return call.sum.workers * kWarps; }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const Call& forward = call.forward;
    const std::int64_t row = std::int64_t{block_index().x} * kWarps + warp_index();
    double* const sums = call.sum.partials + row * call.sum.size;
    for (std::int64_t i = lane_index(); i < call.sum.size; i += kWarpSize) store_global(sums + i, 0.0);
    warp_barrier();

    attend::detail::TensorReads reads;
    attend::detail::TensorReads* const pointer = &reads;
    Score differentiated = score;
    for (int i = 0; i < call.sum.reads.count; ++i)
      __builtin_memcpy(reinterpret_cast<char*>(&differentiated) + call.sum.reads.offsets[i], &pointer, sizeof pointer);

    const Tile tile;
    const std::int64_t count = detail::query_tiles(forward, Tile::kRows);
    for (std::int64_t index = block_index().x; index < count; index += call.sum.workers) {
      const detail::Tile work = detail::query_tile(forward, index, Tile::kRows);
      if (work.rows.begin >= work.rows.end) continue;
      const detail::HeadScores<T, Score, Mask> scores(forward, score, mask, work.sequence, work.head);
      detail::for_each_tile(scores.keys(work.rows), Tile::kRows, [&](const KeyRange& keys) {
        if (scores.cover(work.rows, keys) == MaskCover::kEmpty) return;
        const detail::PlainScores<T, Score, Mask> tile_scores(tile, call, scores, work.rows, keys);
        for (int k = 0; k < Tile::kScores; ++k) {
          const detail::PlainScore<T> one = tile_scores.score(k);
          add_score(differentiated, reads, one.derived.before, one.gradient, scores.coordinate(tile_scores.place(k)),
                    sums);
        }
      });
    }
  }

 private:
  /// Adds the derivatives by each number that the score_mod reads, for the 32 scores of a warp. A gradient of 0 is that
  /// of a masked score, whose derivative may be infinite.
  ATTEND_HOST_DEVICE static void add_score(const Score& differentiated, attend::detail::TensorReads& reads, T before,
                                           T gradient, const Coordinate& at, double* sums) {
    using Number = Dual<T, /*kByTensor=*/true>;
    for (int turn = 0, turns = gradient == T(0) ? 0 : 1; any_in_warp(turn < turns); ++turn) {
      std::int64_t place = -1;
      double number = 0;
      if (turn < turns) {
        reads.begin(turn);
        const Number changed = differentiated(Number(before), at);
        turns = reads.turn;
        if (turn < turns) {
          place = reads.place;
          number = static_cast<double>(gradient * changed.derivative.value);
        }
      }
      add(place, number, sums);
    }
  }

  /// sums[place] += number for each lane with place ≥ 0, lane by lane where places are equal.
  ATTEND_HOST_DEVICE static void add(std::int64_t place, double number, double* sums) {
    const int first = Tile::kSharedBytes + warp_index() * kWarpSize * kEntryBytes;
    const Shared<std::int64_t> places = shared_memory<std::int64_t>(first, kWarpSize);
    const Shared<double> numbers = shared_memory<double>(first + kWarpSize * 8, kWarpSize);
    warp_barrier();  // the entries may still be read, and other lanes may have added
    places.store(lane_index(), place);
    numbers.store(lane_index(), number);
    warp_barrier();
    if (place < 0) return;
    double total = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (places.load(lane) != place) continue;
      if (lane < lane_index()) return;
      total += numbers.load(lane);
    }
    store_global(sums + place, load_global(sums + place) + total);
  }
};

/// One thread of the kernel that adds up rows of partial sums.
struct AddPartials {
  static constexpr const char* name() { return "add_partials"; }
  static constexpr int kThreads = 64, kSharedBytes = 0;

  static std::int64_t blocks(const BackwardCall& call) { return (call.sum.size + kThreads - 1) / kThreads; }

  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score&, const Mask&) {
    const std::int64_t entry = std::int64_t{block_index().x} * kThreads + thread_index();
    if (entry >= call.sum.size) return;
    double total = 0;
    for (std::int64_t row = 0; row < call.sum.rows; ++row)
      total += load_global(call.sum.partials + row * call.sum.size + entry);
    store_global(call.sum.gradient + entry, total);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
