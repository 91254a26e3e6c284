// SPDX-License-Identifier: MIT
#pragma once

// The gradient of the queries on tensor cores, for float16 and bfloat16, and for float32 in tf32.
//
//   for a tile of 64 queries, 16 for each of 4 warps, over the keys, kStep at a time:
//     S = Q Kᵀ,   dP = dO Vᵀ                                    (queries, keys)
//     P = 2^((score − log-sum-exp) · log₂ e),  dS = P (dP − δ) score′
//     dQ += dS K                                                 (queries, width)
//
// It is built like the kernel of backward_keys.cuh. The operands of Q and dO stay in registers for heads of up to 128
// columns. Both kernels together compute 7 products, where a kernel that adds dQ atomically has 5.
//
// In a step with masked scores, numbers of K that are not finite count as 0 in dS K: a masked key may hold NaN.
//
//   128 threads; nvcc 13.0, sm_80, Unchanged and EveryKey, no spills. mma to ex2: how many a step of one warp has.
//   width   step  registers  shared memory   mma  ldmatrix  cp.async  ex2   share of sm_80's peak on paper
//      32     32  162               16,384    24        12         2   16   0.86
//      64     32  233               32,768    48        24         4   16   0.86
//      96     32  247               49,152    72        36         6   16   0.86
//     128     32  252               65,536    96        48         8   16   0.86
//     192     32  252               98,304   144        96        12   16   0.67
//     256     16  255               98,304    96        80         8    8   0.55
//
// The share is computed as in backward_keys.cuh. Nothing here has run on a GPU.

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
namespace detail {

/// The gradient of a tile of queries, by one block.
template <NumberType kType, int kWidth, class Score, class Mask>
class QueryGradients {
 public:
  using Shape = BackwardShape<kType, kWidth>;
  using Scores = HeadScores<float, Score, Mask>;

  ATTEND_HOST_DEVICE QueryGradients(const BackwardCall& call, const Scores& scores, const KeyRange& rows)
      : call_(call), forward_(call.forward), scores_(scores), rows_(rows) {}

  ATTEND_HOST_DEVICE void run() {
    const Sequence& sequence = scores_.sequence();
    range_ = scores_.keys(rows_);
    Step step = next(range_.begin & ~3);  // dropout_words_of_queries() needs a multiple of 4
    if (step.key < range_.end) {
      copy_rows<Shape::kThreads>(forward_.query, sequence.batch, scores_.head(), rows_.begin, rows_, forward_.head_dim,
                                 Shape::own(0));
      copy_rows<Shape::kThreads>(call_.output_gradient, sequence.batch, scores_.head(), rows_.begin, rows_,
                                 forward_.value_dim, Shape::own(1));
      copy(step, 0);
    }
    copy_async_commit();
    if (rotates<kType>(forward_) && step.key < range_.end) rotate_queries();
    ATTEND_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int32_t i = query(half);
      row_sums_[half] =
          i < rows_.end
              ? load_global(static_cast<const TensorRow*>(call_.rows) + forward_.row(sequence.batch, scores_.head(), i))
              : TensorRow{0.0f, 0.0f, 0.0f};
    }
    bool is_first = true;
    for (int buffer = 0; step.key < range_.end; buffer ^= 1) {
      copy_async_wait<0>();
      finish_copies(buffer, is_first);
      if (rotates<kType>(forward_)) rotate_keys(step, buffer);
      barrier();  // the tiles are there, and nobody reads the other buffer any more
      if (is_first) {
        queries_.keep(Shape::own(0));
        output_gradients_.keep(Shape::own(1));
      }
      is_first = false;
      const Step after = next(step.key + Shape::kStep);
      if (after.key < range_.end) copy(after, buffer ^ 1);
      copy_async_commit();
      add(step, buffer);
      step = after;
    }
    copy_async_wait<0>();
    if (rotates<kType>(forward_))
      store_rows_rotated_back<kType, Shape>(forward_, forward_.query_rotary, call_.query_gradient, sequence.batch,
                                            scores_.head(), rows_.begin, rows_, sums_);
    else
      store_rows<kType, Shape>(call_.query_gradient, sequence.batch, scores_.head(), rows_.begin, rows_,
                               forward_.head_dim, static_cast<float>(forward_.scale), sums_);
  }

 private:
  /// Some keys. There are none if `key` is not below range_.end.
  struct Step {
    std::int32_t key;
    bool is_full;
  };

  /// The first step from `key` on in which any score is not masked.
  ATTEND_HOST_DEVICE Step next(std::int32_t key) const {
    for (; key < range_.end; key += Shape::kStep) {
      const MaskCover cover = scores_.cover({rows_.begin, rows_.begin + Shape::kRows}, {key, key + Shape::kStep});
      if (cover != MaskCover::kEmpty) return {key, cover == MaskCover::kFull};
    }
    return {key, false};
  }

  /// The query of this thread in the upper or lower half of a tile of 16 rows.
  ATTEND_HOST_DEVICE std::int32_t query(int half) const {
    return rows_.begin + warp_index() * 16 + half * 8 + lane_index() / 4;
  }

  ATTEND_HOST_DEVICE void copy(const Step& step, int buffer) const {
    const Sequence& sequence = scores_.sequence();
    const std::int32_t head = scores_.head() / forward_.group;
    copy_rows<Shape::kThreads>(forward_.key, sequence.batch, head, step.key, sequence.keys, forward_.head_dim,
                               Shape::step(buffer, 0));
    copy_rows<Shape::kThreads>(forward_.value, sequence.batch, head, step.key, sequence.keys, forward_.value_dim,
                               Shape::step(buffer, 1));
  }

  ATTEND_HOST_DEVICE void rotate_queries() const {
    copy_async_wait<0>();
    rotate_rows<kType, Shape::kThreads>(forward_, forward_.query_rotary, scores_.sequence().batch, rows_.begin, rows_,
                                        Shape::own(0));
  }

  ATTEND_HOST_DEVICE void rotate_keys(const Step& step, int buffer) const {
    const Sequence& sequence = scores_.sequence();
    rotate_rows<kType, Shape::kThreads>(forward_, forward_.key_rotary, sequence.batch, step.key, sequence.keys,
                                        Shape::step(buffer, 0));
  }

  /// Makes the numbers that have arrived operands of mma.
  ATTEND_HOST_DEVICE static void finish_copies(int buffer, bool is_first) {
    ATTEND_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (is_first) Shape::own(i).template finish_copy<Shape::kThreads>();
      Shape::step(buffer, i).template finish_copy<Shape::kThreads>();
    }
  }

  ATTEND_HOST_DEVICE void add(const Step& step, int buffer) {
    const typename Shape::StepTile keys = Shape::step(buffer, 0), values = Shape::step(buffer, 1);
    float weights[Shape::kTiles][4] = {}, gradients[Shape::kTiles][4] = {};
    queries_.multiply(Shape::own(0), keys, weights);
    output_gradients_.multiply(Shape::own(1), values, gradients);
    const int column = lane_index() % 4 * 2;
    const auto of_half = [&](int half) { return query(half); };
    differentiate</*kByProduct=*/true>(
        forward_, scores_, step.is_full,
        [&](int n, int i) {
          return ScorePlace{query(i / 2), step.key + n * 8 + column + i % 2};
        },
        [&](int, int i) { return row_sums_[i / 2]; },
        [&](int n) { return dropout_words_of_queries(scores_, of_half, step.key + n * 8); }, weights, gradients);
    if (step.is_full)
      add_rows<kType, Shape, /*kIsFinite=*/false>(gradients, keys, sums_);
    else
      add_rows<kType, Shape, /*kIsFinite=*/true>(gradients, keys, sums_);
  }

  const BackwardCall& call_;
  const Call& forward_;
  const Scores& scores_;
  KeyRange rows_, range_{0, 0};
  OwnRows<kType, kWidth, /*kIsKept=*/kWidth <= 8 * Operands<kType>::kDepth> queries_, output_gradients_;
  TensorRow row_sums_[2];
  float sums_[Shape::kOutputs][4] = {};
};

}  // namespace detail

/// One thread of the kernel that writes the gradient of the queries.
template <NumberType kType, int kWidth, class Score, class Mask>
struct TensorCoreQueries {
  static constexpr const char* name() { return "backward_queries"; }
  using Gradients = detail::QueryGradients<kType, kWidth, Score, Mask>;
  static constexpr int kThreads = Gradients::Shape::kThreads, kSharedBytes = Gradients::Shape::kSharedBytes;

  static std::int64_t blocks(const BackwardCall& call) {
    return detail::query_tiles(call.forward, Gradients::Shape::kRows);
  }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const detail::Tile tile = detail::query_tile(call.forward, block_index().x, Gradients::Shape::kRows);
    if (tile.rows.begin >= tile.rows.end) return;
    const detail::HeadScores<float, Score, Mask> scores(call.forward, score, mask, tile.sequence, tile.head);
    Gradients(call, scores, tile.rows).run();
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
