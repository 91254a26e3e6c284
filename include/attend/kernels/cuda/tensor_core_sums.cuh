// SPDX-License-Identifier: MIT
#pragma once

// The gradient of an added mask, or of ALiBi's slopes, on tensor cores, for float16 and bfloat16.
//
//   for a tile of 64 queries and kStep keys, over the heads and batch entries that share it:
//     S = Q Kᵀ,   dP = dO Vᵀ                                    (queries, keys)
//     P = 2^((score − log-sum-exp) · log₂ e),   sums += P (dP − δ) score_mod′
//
// The sums are float64, in registers. If the gradient has no keys, the block has all keys, kStep at a time. sums.cuh
// has the rest. There is one buffer of tiles: other blocks compute while one waits for its copies.
//
//   128 threads; nvcc 13.0, sm_80, a score_mod and a window, no spills. mma to ex2: how many a step of one warp has.
//   width   step  registers  shared memory   mma  ldmatrix  cp.async  ex2   share of sm_80's peak on paper
//      32     32  172              29,184    16        12         6   16   0.44
//      64     32  198              41,472    32        24        12   16   0.44
//      96     32  194              53,760    48        36        18   16   0.44
//     128     32  200              66,048    64        48        24   16   0.44
//     192     32  200              90,624    96        72        36   16   0.44
//     256     16  156              90,624    64        64        40    8   0.31
//
// The share is computed as in backward_keys.cuh, for a gradient with keys. Nothing here has run on a GPU.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/backward_tile.cuh>
#include <attend/kernels/cuda/dropout.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/plain_backward.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/row_sums.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/sums.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// One thread of the kernel that adds up the gradient of an added mask or of slopes on tensor cores.
template <NumberType kType, int kWidth, class Score, class Mask>
struct TensorCoreEntrySums {
  static_assert(kType != NumberType::kFloat32);  // see launch_tf32_backward()
  using Shape = detail::BackwardShape<kType, kWidth>;
  static constexpr const char* name() { return "tensor_core_entry_sums"; }
  static constexpr int kThreads = Shape::kThreads;
  using Tiles = detail::EntryTiles<Shape::kRows, Shape::kStep, kThreads>;
  static constexpr int kTilesBytes = 2 * Shape::OwnTile::kBytes + 2 * Shape::StepTile::kBytes;
  static constexpr int kSharedBytes = kTilesBytes + Tiles::kBytes;

  static std::int64_t blocks(const BackwardCall& call) { return Tiles::blocks(call); }
  static std::int64_t rows(const BackwardCall& call) { return Tiles::rows(call); }

  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score& score, const Mask& mask) {
    const typename Tiles::Work work = Tiles::work(call);
    double sums[Shape::kTiles][4] = {};
    Tiles::for_each_head(call, work, [&](const detail::Sequence& sequence, std::int32_t head) {
      const Scores scores(call.forward, score, mask, sequence, head);
      bool has_queries = false;
      for (std::int32_t key = work.keys.begin; key < work.keys.end; key += Shape::kStep) {
        const MaskCover cover =
            scores.cover({work.queries.begin, work.queries.begin + Shape::kRows}, {key, key + Shape::kStep});
        if (cover == MaskCover::kEmpty) continue;
        barrier();  // the tiles may still be read
        const bool is_new = !has_queries;
        copy(call, scores, work.queries, key, has_queries);
        has_queries = true;
        copy_async_commit();
        copy_async_wait<0>();
        if (detail::rotates<kType>(call.forward)) rotate(call.forward, sequence, work.queries, key, is_new);
        barrier();
        add(call, scores, work.queries, key, cover == MaskCover::kFull, sums);
      }
    });

    const Shared<double> all = shared_memory<double>(kTilesBytes, Shape::kRows * Tiles::kStride);
    ATTEND_UNROLL
    for (int n = 0; n < Shape::kTiles; ++n) {
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i) all.store(row(i / 2) * Tiles::kStride + column(n, i), sums[n][i]);
    }
    Tiles::write(call, work, all);
  }

 private:
  using Scores = detail::HeadScores<float, Score, Mask>;

  /// The query and the key of a score of this thread, from the first of the tile on.
  ATTEND_HOST_DEVICE static int row(int half) { return warp_index() * 16 + half * 8 + lane_index() / 4; }
  ATTEND_HOST_DEVICE static int column(int n, int i) { return n * 8 + lane_index() % 4 * 2 + i % 2; }

  ATTEND_HOST_DEVICE static void copy(const BackwardCall& call, const Scores& scores, const KeyRange& queries,
                                      std::int32_t key, bool has_queries) {
    const Call& forward = call.forward;
    const detail::Sequence& sequence = scores.sequence();
    const std::int32_t batch = sequence.batch, head = scores.head(), kv_head = head / forward.group;
    if (!has_queries) {
      detail::copy_rows<kThreads>(forward.query, batch, head, queries.begin, queries, forward.head_dim, Shape::own(0));
      detail::copy_rows<kThreads>(call.output_gradient, batch, head, queries.begin, queries, forward.value_dim,
                                  Shape::own(1));
    }
    detail::copy_rows<kThreads>(forward.key, batch, kv_head, key, sequence.keys, forward.head_dim, Shape::step(0, 0));
    detail::copy_rows<kThreads>(forward.value, batch, kv_head, key, sequence.keys, forward.value_dim,
                                Shape::step(0, 1));
  }

  ATTEND_HOST_DEVICE static void rotate(const Call& forward, const detail::Sequence& sequence, const KeyRange& queries,
                                        std::int32_t key, bool has_queries) {
    if (has_queries)
      detail::rotate_rows<kType, kThreads>(forward, forward.query_rotary, sequence.batch, queries.begin, queries,
                                           Shape::own(0));
    detail::rotate_rows<kType, kThreads>(forward, forward.key_rotary, sequence.batch, key, sequence.keys,
                                         Shape::step(0, 0));
  }

  ATTEND_HOST_DEVICE static void add(const BackwardCall& call, const Scores& scores, const KeyRange& queries,
                                     std::int32_t key, bool is_full, double (&sums)[Shape::kTiles][4]) {
    detail::TensorRow row_sums[2];
    ATTEND_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int32_t query = queries.begin + row(half);
      row_sums[half] = query < queries.end
                           ? load_global(static_cast<const detail::TensorRow*>(call.rows) +
                                         call.forward.row(scores.sequence().batch, scores.head(), query))
                           : detail::TensorRow{0.0f, 0.0f, 0.0f};
    }
    const auto place = [&](int n, int i) { return detail::ScorePlace{queries.begin + row(i / 2), key + column(n, i)}; };
    const auto query = [&](int half) { return queries.begin + row(half); };
    float weights[Shape::kTiles][4] = {}, gradients[Shape::kTiles][4] = {};
    detail::OwnRows<kType, kWidth, /*kIsKept=*/false> rows{};
    rows.multiply(Shape::own(0), Shape::step(0, 0), weights);
    rows.multiply(Shape::own(1), Shape::step(0, 1), gradients);
    detail::differentiate</*kByProduct=*/false>(
        call.forward, scores, is_full, place, [&](int, int i) { return row_sums[i / 2]; },
        [&](int n) { return detail::dropout_words_of_queries(scores, query, key + n * 8); }, weights, gradients);
    ATTEND_UNROLL
    for (int n = 0; n < Shape::kTiles; ++n) {
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float factor = call.sum.is_of_slopes ? -static_cast<float>(scores.distance(place(n, i))) : 1.0f;
        sums[n][i] += static_cast<double>(gradients[n][i]) * static_cast<double>(factor);
      }
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
