// SPDX-License-Identifier: MIT
#pragma once

// The gradients of the keys and values on tensor cores, for float16 and bfloat16, and for float32 in tf32.
//
//   for a tile of 64 keys, 16 for each of 4 warps, over the query heads of its key head, over their queries, kStep at a
//   time:
//     Sᵀ = K Qᵀ,   dPᵀ = V dOᵀ                                  (keys, queries)
//     P = 2^((score − log-sum-exp) · log₂ e),  dS = P (dP − δ) score′
//     dV += Pᵀ dO,   dK += dSᵀ Q                                 (keys, width)
//
// Every product is mma.sync m16n8k16 with sums in float32. The tile of keys stays in shared memory, for heads of up to
// 64 columns in registers. Queries and dO are copied by cp.async into one buffer while the other is read. Sᵀ and dPᵀ
// are operand A of the last two products as they are, so they never leave the registers. A step in which all scores are
// masked is skipped. For a step without masked scores, of a call without options, differentiate() has a short branch.
// The block writes each result once, in a fixed order of additions.
//
// Heads of more than 128 columns have one kernel for dK and one for dV, because the sums of both would not fit into the
// registers. The second kernel computes S only.
//
//   128 threads; nvcc 13.0, sm_80, Unchanged and EveryKey, no spills. mma to ex2: how many a step of one warp has.
//   width   step  registers  shared memory   mma  ldmatrix  cp.async  ex2   share of sm_80's peak on paper
//      32     32  168               17,408    32        16         3   16   0.80
//      64     32  226               33,792    64        32         5   16   0.84
//      96     32  229               50,176    96        60         7   16   0.71
//     128     32  254               66,560   128        80         9   16   0.71
//     192, dK 32  235               99,328   144        96        13   16   0.65
//     192, dV 32  214               99,328    96        60        13   16   0.65
//     256, dK 16  240               98,816    96        80         9    8   0.54
//     256, dV 16  239               98,816    64        48         9    8   0.56
//
// The share is mma · 8 clocks, divided by the clocks of shared memory, which limits all these kernels: an ldmatrix of 4
// warps takes 16 clocks, and the copies of a step take its bytes / 128. On sm_90, where mma.sync is up to twice as
// fast, the share is half as large. tf32_tile.cuh has the numbers of float32. Nothing here has run on a GPU.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/backward_tile.cuh>
#include <attend/kernels/cuda/dropout.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/row_sums.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// Which gradients a kernel writes. With more than 128 columns the sums of both would not fit into the registers.
enum class KeyPart { kBoth, kKeys, kValues };

namespace detail {

/// The gradients of a tile of keys, by one block.
template <NumberType kType, int kWidth, KeyPart kPart, class Score, class Mask>
class KeyGradients {
 public:
  using Shape = BackwardShape<kType, kWidth>;
  static constexpr int kRowsBytes = Shape::kStep * static_cast<int>(sizeof(TensorRow));
  static constexpr int kSharedBytes = Shape::kSharedBytes + 2 * kRowsBytes;

  ATTEND_HOST_DEVICE KeyGradients(const BackwardCall& call, const Score& score, const Mask& mask, const Tile& tile)
      : call_(call), forward_(call.forward), score_(score), mask_(mask), tile_(tile), first_(tile.rows.begin & ~3) {}

  ATTEND_HOST_DEVICE void run() {
    const Sequence& sequence = tile_.sequence;
    Step step = keys().begin < keys().end ? next({0, 0, false}, /*is_first=*/true) : Step{forward_.group, 0, false};
    if (step.head < forward_.group) {
      copy_rows<Shape::kThreads>(forward_.key, sequence.batch, tile_.head, first_, sequence.keys, forward_.head_dim,
                                 Shape::own(0));
      if constexpr (kHasKeys)
        copy_rows<Shape::kThreads>(forward_.value, sequence.batch, tile_.head, first_, sequence.keys,
                                   forward_.value_dim, Shape::own(1));
      copy(step, 0);
    }
    copy_async_commit();
    if (rotates<kType>(forward_) && step.head < forward_.group) rotate_keys();
    bool is_first = true;
    for (int buffer = 0; step.head < forward_.group; buffer ^= 1) {
      copy_async_wait<0>();
      finish_copies(buffer, is_first);
      if (rotates<kType>(forward_)) rotate_queries(step, buffer);
      barrier();  // the tiles are there, and nobody reads the other buffer any more
      if (is_first) {
        keys_.keep(Shape::own(0));
        if constexpr (kHasKeys) values_.keep(Shape::own(1));
      }
      is_first = false;
      const Step after = next(step, /*is_first=*/false);
      if (after.head < forward_.group) copy(after, buffer ^ 1);
      copy_async_commit();
      add(step, buffer);
      step = after;
    }
    copy_async_wait<0>();
    const KeyRange written = written_keys(forward_, keys(), Shape::kRows);
    if constexpr (kHasValues)
      store_rows<kType, Shape>(call_.value_gradient, sequence.batch, tile_.head, first_, written, forward_.value_dim,
                               1.0f, value_sums_);
    if constexpr (kHasKeys) {
      if (rotates<kType>(forward_))
        store_rows_rotated_back<kType, Shape>(forward_, forward_.key_rotary, call_.key_gradient, sequence.batch,
                                              tile_.head, first_, written, key_sums_);
      else
        store_rows<kType, Shape>(call_.key_gradient, sequence.batch, tile_.head, first_, written, forward_.head_dim,
                                 static_cast<float>(forward_.scale), key_sums_);
    }
  }

 private:
  static constexpr bool kHasKeys = kPart != KeyPart::kValues, kHasValues = kPart != KeyPart::kKeys;
  using Scores = HeadScores<float, Score, Mask>;

  /// Some queries of a head. There are none if `head`, counted from the first of the key head, is the number of heads.
  struct Step {
    std::int32_t head, query;
    bool is_full;
  };

  /// The keys of the block.
  ATTEND_HOST_DEVICE KeyRange keys() const {
    const KeyRange& all = tile_.sequence.keys;
    return {larger(first_, all.begin), smaller(first_ + Shape::kRows, all.end)};
  }

  ATTEND_HOST_DEVICE Scores scores(std::int32_t head) const {
    return {forward_, score_, mask_, tile_.sequence, query_head(head)};
  }
  ATTEND_HOST_DEVICE std::int32_t query_head(std::int32_t head) const { return tile_.head * forward_.group + head; }

  /// The next step in which any score is not masked.
  ATTEND_HOST_DEVICE Step next(const Step& step, bool is_first) const {
    const KeyRange range = scores(0).queries(keys());
    std::int32_t query = is_first ? range.begin : step.query + Shape::kStep;
    for (std::int32_t head = step.head; head < forward_.group; ++head, query = range.begin) {
      const Scores of_head = scores(head);
      for (; query < range.end; query += Shape::kStep) {
        const MaskCover cover = of_head.cover({query, query + Shape::kStep}, {first_, first_ + Shape::kRows});
        if (cover != MaskCover::kEmpty) return {head, query, cover == MaskCover::kFull};
      }
    }
    return {forward_.group, 0, false};
  }

  ATTEND_HOST_DEVICE static Shared<TensorRow> rows(int buffer) {
    return shared_memory<TensorRow>(Shape::kSharedBytes + buffer * kRowsBytes, Shape::kStep);
  }

  ATTEND_HOST_DEVICE void copy(const Step& step, int buffer) const {
    const Sequence& sequence = tile_.sequence;
    const std::int32_t head = query_head(step.head);
    copy_rows<Shape::kThreads>(forward_.query, sequence.batch, head, step.query, sequence.queries, forward_.head_dim,
                               Shape::step(buffer, 0));
    copy_rows<Shape::kThreads>(call_.output_gradient, sequence.batch, head, step.query, sequence.queries,
                               forward_.value_dim, Shape::step(buffer, 1));
    const std::int32_t i = thread_index(), query = step.query + i;
    if (i >= Shape::kStep) return;
    const auto* const row = static_cast<const TensorRow*>(call_.rows) + forward_.row(sequence.batch, head, query);
    copy_async_16(rows(buffer).sub(i, 1), row, query < sequence.queries.end);
  }

  ATTEND_HOST_DEVICE void rotate_keys() const {
    const Sequence& sequence = tile_.sequence;
    copy_async_wait<0>();
    rotate_rows<kType, Shape::kThreads>(forward_, forward_.key_rotary, sequence.batch, first_, sequence.keys,
                                        Shape::own(0));
  }

  ATTEND_HOST_DEVICE void rotate_queries(const Step& step, int buffer) const {
    const Sequence& sequence = tile_.sequence;
    rotate_rows<kType, Shape::kThreads>(forward_, forward_.query_rotary, sequence.batch, step.query, sequence.queries,
                                        Shape::step(buffer, 0));
  }

  /// Makes the numbers that have arrived operands of mma.
  ATTEND_HOST_DEVICE static void finish_copies(int buffer, bool is_first) {
    if (is_first) {
      Shape::own(0).template finish_copy<Shape::kThreads>();
      if constexpr (kHasKeys) Shape::own(1).template finish_copy<Shape::kThreads>();
    }
    ATTEND_UNROLL
    for (int i = 0; i < 2; ++i) Shape::step(buffer, i).template finish_copy<Shape::kThreads>();
  }

  ATTEND_HOST_DEVICE void add(const Step& step, int buffer) {
    const typename Shape::StepTile queries = Shape::step(buffer, 0), output_gradients = Shape::step(buffer, 1);
    float weights[Shape::kTiles][4] = {}, gradients[Shape::kTiles][4] = {};
    keys_.multiply(Shape::own(0), queries, weights);
    if constexpr (kHasKeys) values_.multiply(Shape::own(1), output_gradients, gradients);
    const std::int32_t first_key = first_ + warp_index() * 16, key = first_key + lane_index() / 4;
    const int column = lane_index() % 4 * 2;
    const Shared<TensorRow> sums = rows(buffer);
    const Scores own_scores = scores(step.head);
    differentiate</*kByProduct=*/true>(
        forward_, own_scores, step.is_full,
        [&](int n, int i) {
          return ScorePlace{step.query + n * 8 + column + i % 2, key + i / 2 * 8};
        },
        [&](int n, int i) { return sums.load(n * 8 + column + i % 2); },
        [&](int n) { return dropout_words_of_keys(own_scores, step.query + n * 8, first_key); }, weights, gradients);
    if constexpr (kHasValues) add_rows<kType, Shape, /*kIsFinite=*/false>(weights, output_gradients, value_sums_);
    if constexpr (kHasKeys) add_rows<kType, Shape, /*kIsFinite=*/false>(gradients, queries, key_sums_);
  }

  const BackwardCall& call_;
  const Call& forward_;
  const Score& score_;
  const Mask& mask_;
  const Tile& tile_;
  std::int32_t first_;  // the key of the first row; dropout_words_of_keys() needs a multiple of 4
  OwnRows<kType, kWidth, /*kIsKept=*/kWidth <= 4 * Operands<kType>::kDepth> keys_, values_;
  float key_sums_[Shape::kOutputs][4] = {}, value_sums_[Shape::kOutputs][4] = {};
};

}  // namespace detail

/// One thread of the kernel that writes the gradients of the keys and values, or one of both.
template <NumberType kType, int kWidth, KeyPart kPart, class Score, class Mask>
struct TensorCoreKeys {
  static constexpr const char* name() {
    return kPart == KeyPart::kBoth   ? "backward_keys"
           : kPart == KeyPart::kKeys ? "backward_keys_only"
                                     : "backward_values";
  }
  using Gradients = detail::KeyGradients<kType, kWidth, kPart, Score, Mask>;
  static constexpr int kThreads = Gradients::Shape::kThreads, kSharedBytes = Gradients::kSharedBytes;

  static std::int64_t blocks(const BackwardCall& call) {
    return detail::key_tiles(call.forward, Gradients::Shape::kRows);
  }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const detail::Tile tile = detail::key_tile(call.forward, block_index().x, Gradients::Shape::kRows);
    Gradients(call, score, mask, tile).run();
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
