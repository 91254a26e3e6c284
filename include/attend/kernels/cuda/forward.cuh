// SPDX-License-Identifier: MIT
#pragma once

// The forward pass on tensor cores, for float16 and bfloat16, and for float32 in tf32.
//
// A block has 4 warps and computes a tile of queries of one head. It visits the tiles of keys in which a query may
// attend to any key. For each tile and each 16 queries of a warp:
//   scores (16, keys) = queries (16, D) · keysᵀ, by mma m16n8k16 with sums in float32
//   scale, options and score_mod; masks, unless all of them allow the whole tile
//   an online softmax in powers of 2; dropout
//   output (16, Dv) += weights (16, keys) · values, with weights rounded to the type of the tensors
// With a rotary embedding, a warp rotates the rows that it has copied, before the barrier (rotate.cuh).
// There are two buffers of keys and values. The next tile is copied (cp.async) while this one is computed, and each
// tile takes one barrier. A weight is rounded before it is divided by the sum; log-sum-exp and sums are of float32
// weights.
//
// Registers (bfloat16, sm_80, without a struct; 255 is the limit) and shared memory of a block. "Options" are those of
// forward_block(). None of these kernels spills, with or without Softcap and Causal; on sm_120 neither. A struct that
// needs more registers may spill.
//
// | width                    |     32 |     64 |     96 |    128 |    192 |    256 |
// | ------------------------ | ------ | ------ | ------ | ------ | ------ | ------ |
// | queries · keys of a tile | 128·64 | 128·64 |  64·64 |  64·64 |  64·32 |  64·32 |
// | shared memory, KiB       |     24 |     48 |     60 |     80 |     72 |     96 |
// | registers                |    186 |    237 |    172 |    201 |    222 |    245 |
// | with options: tile       |  64·64 |  64·64 |  64·64 |  64·32 |  64·32 |  64·32 |
// | with options: KiB        |     20 |     40 |     60 |     48 |     72 |     96 |
// | with options: registers  |    240 |    238 |    248 |    206 |    236 |    255 |
//
// The loop for width 64 has, for each warp and tile: 128 mma, 40 ldmatrix, 8 cp.async, 68 ex2, and about 64 each of
// fma, add, max and the product of the rescaling, besides 32 packs. On an A100 a scheduler gives the mma 128 · 8 =
// 1,024 cycles, ex2 68 · 8 = 544, the float32 operations 256 · 2 = 512 and everything else about 200. Two warps share a
// scheduler. If they alternate, mma hides the rest, and the limit on paper is near the peak. If nothing overlaps, it is
// 1,024 / 2,280 = 45 %. On an H100 mma.sync takes half as many cycles: 512 / 1,770 = 29 % of the peak of mma.sync if
// nothing overlaps. If all overlaps, ex2 is the limit: 512 / 544. tf32_tile.cuh has the numbers of float32.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/copy_rows.cuh>
#include <attend/kernels/cuda/dropout.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/operands.cuh>
#include <attend/kernels/cuda/plain_forward.cuh>
#include <attend/kernels/cuda/results.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/softmax.cuh>
#include <attend/kernels/cuda/warp.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// The sizes of a block of forward_block(). kWidth is the number of columns of query, key and value in shared memory:
/// 32, 64, 96, 128, 192 or 256. kType and kHasOptions as in forward_block(). Every block fits into the 99 KiB of shared
/// memory that a block has on every GPU from sm_80 on.
template <NumberType kType, int kWidth, bool kHasOptions>
struct ForwardShape {
  static constexpr bool kIsTf32 = kType == NumberType::kFloat32;
  static constexpr int kWarps = kIsTf32 && kWidth == 256 ? 2 : 4, kThreads = kWarps * kWarpSize;
  /// Each warp computes this many tiles of 16 queries. Each part of a key or value that it loads serves all of them.
  static constexpr int kRowTiles = kWidth <= 64 && !kHasOptions ? 2 : 1;
  static constexpr int kQueries = kWarps * kRowTiles * 16;
  static constexpr int kKeys = kIsTf32 ? (kWidth <= 32   ? 64
                                          : kWidth <= 96 ? 32
                                                         : 16)
                                       : (kWidth <= (kHasOptions ? 96 : 128) ? 64 : 32);

  using QueryTile = typename detail::Operands<kType>::template Tile<kQueries, kWidth>;
  using KeyTile = typename detail::Operands<kType>::template Tile<kKeys, kWidth>;
  /// Two buffers of keys and values.
  static constexpr int kSharedBytes = QueryTile::kBytes + 4 * KeyTile::kBytes;
};

namespace detail {

/// The forward pass of a tile of queries by one block.
template <NumberType kType, int kWidth, class Score, class Mask, bool kHasOptions>
class ForwardTile {
  using Shape = ForwardShape<kType, kWidth, kHasOptions>;
  using Scores = HeadScores<float, Score, Mask, kHasOptions>;
  using Operand = Operands<kType>;
  static constexpr int kRowTiles = Shape::kRowTiles, kKeys = Shape::kKeys, kDepth = Operand::kDepth;
  // Of a row tile, for each thread.
  static constexpr int kScores = kKeys / 2, kOutputs = kWidth / 2;
  static constexpr float kLeastScale = simd::FloatFormat<float>::kSmallestNormal;  // −∞ · 0 would be NaN

 public:
  ATTEND_HOST_DEVICE ForwardTile(const Call& call, const Scores& scores, std::int32_t first_query)
      : call_(call),
        scores_(scores),
        first_query_(first_query),
        folds_scale_(scores.only_scales() && static_cast<float>(call.scale) >= kLeastScale),
        unit_(folds_scale_ ? static_cast<float>(call.scale) : 1.0f) {}

  ATTEND_HOST_DEVICE void run() {
    const Sequence& sequence = scores_.sequence();
    range_ = scores_.keys({first_query_, smaller(first_query_ + Shape::kQueries, sequence.queries.end)});
    // Tiles start at a multiple of 4 keys: a draw of Philox has the words of 4 keys.
    const std::int32_t base = sequence.keys.begin & ~3;
    KeyTile tile = next_tile(base + (larger(range_.begin, base) - base) / kKeys * kKeys);
    copy_queries();
    if (tile.key < range_.end) copy_keys_and_values(tile.key, 0);
    copy_async_commit();
    if (rotates<kType>(call_)) rotate_queries();
    bool is_first = true;
    for (int buffer = 0; tile.key < range_.end; buffer ^= 1) {
      copy_async_wait<0>();
      finish_copies(buffer, is_first);
      is_first = false;
      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer);
      barrier();  // the tile is there, and nobody reads the other buffer any more
      const KeyTile next = next_tile(tile.key + kKeys);
      if (next.key < range_.end) copy_keys_and_values(next.key, buffer ^ 1);
      copy_async_commit();
      add_tile(tile, buffer);
      tile = next;
    }
    copy_async_wait<0>();
    store();
  }

 private:
  struct KeyTile {
    std::int32_t key;  // the first; there is no tile if it is not below range_.end
    bool is_full;
  };

  /// The tiles in shared memory.
  ATTEND_HOST_DEVICE static typename Shape::QueryTile queries() { return typename Shape::QueryTile(0); }
  ATTEND_HOST_DEVICE static typename Shape::KeyTile keys(int buffer) {
    return typename Shape::KeyTile(Shape::QueryTile::kBytes + 2 * buffer * Shape::KeyTile::kBytes);
  }
  ATTEND_HOST_DEVICE static typename Shape::KeyTile values(int buffer) {
    return typename Shape::KeyTile(Shape::QueryTile::kBytes + (2 * buffer + 1) * Shape::KeyTile::kBytes);
  }

  /// The first tile from `key` on in which any key is allowed.
  ATTEND_HOST_DEVICE KeyTile next_tile(std::int32_t key) const {
    for (; key < range_.end; key += kKeys) {
      const MaskCover cover = scores_.cover({first_query_, first_query_ + Shape::kQueries}, {key, key + kKeys});
      if (cover != MaskCover::kEmpty) return {key, cover == MaskCover::kFull};
    }
    return {key, false};
  }

  ATTEND_HOST_DEVICE void copy_queries() const {
    const Sequence& sequence = scores_.sequence();
    copy_rows<Shape::kThreads>(call_.query, sequence.batch, scores_.head(), first_query_, sequence.queries,
                               call_.head_dim, queries());
  }

  ATTEND_HOST_DEVICE void copy_keys_and_values(std::int32_t first, int buffer) const {
    copy_key_rows(call_.key, call_.head_dim, first, keys(buffer));
    copy_key_rows(call_.value, call_.value_dim, first, values(buffer));
  }

  ATTEND_HOST_DEVICE void copy_key_rows(const ConstTensorView4d& tensor, std::int32_t columns, std::int32_t first,
                                        const typename Shape::KeyTile& to) const {
    const Sequence& sequence = scores_.sequence();
    detail::copy_key_rows<Shape::kThreads, kHasOptions>(call_, tensor, sequence.batch, scores_.head() / call_.group,
                                                        first, sequence.keys, columns, to);
  }

  ATTEND_HOST_DEVICE void rotate_queries() const {
    const Sequence& sequence = scores_.sequence();
    copy_async_wait<0>();
    rotate_rows<kType, Shape::kThreads>(call_, call_.query_rotary, sequence.batch, first_query_, sequence.queries,
                                        queries());
  }

  ATTEND_HOST_DEVICE void rotate_keys(std::int32_t first, int buffer) const {
    const Sequence& sequence = scores_.sequence();
    rotate_rows<kType, Shape::kThreads>(call_, call_.key_rotary, sequence.batch, first, sequence.keys, keys(buffer));
  }

  /// Makes the numbers that have arrived operands of mma.
  ATTEND_HOST_DEVICE static void finish_copies(int buffer, bool is_first) {
    if (is_first) queries().template finish_copy<Shape::kThreads>();
    keys(buffer).template finish_copy<Shape::kThreads>();
    values(buffer).template finish_copy<Shape::kThreads>();
  }

  /// The first row of row tile m of this warp, in the tile of the block.
  ATTEND_HOST_DEVICE static int row_of(int m) { return (warp_index() * kRowTiles + m) * 16; }

  /// The query of row r (0 or 1) of this thread in row tile m.
  ATTEND_HOST_DEVICE std::int32_t query_of(int m, int r) const {
    return first_query_ + row_of(m) + r * 8 + lane_index() / 4;
  }

  ATTEND_HOST_DEVICE void add_tile(const KeyTile& tile, int buffer) {
    float scores[kRowTiles][kScores] = {};
    multiply_queries(keys(buffer), scores);
    ATTEND_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      change(tile, m, scores[m]);
      float rescale[2];
      softmax_[m].step(scores[m], unit_ * kLog2e, rescale);
      if (scores_.has_dropout()) drop(tile.key, m, scores[m]);
      ATTEND_UNROLL
      for (int k = 0; k < kOutputs; ++k) output_[m][k] *= rescale[k / 2 % 2];
    }
    add_values(values(buffer), scores);
  }

  /// scores += queries · keysᵀ
  ATTEND_HOST_DEVICE void multiply_queries(const typename Shape::KeyTile& keys,
                                           float (&scores)[kRowTiles][kScores]) const {
    ATTEND_UNROLL
    for (int step = 0; step < kWidth / kDepth; ++step) {
      std::uint32_t own[kRowTiles][4];
      ATTEND_UNROLL
      for (int m = 0; m < kRowTiles; ++m) queries().load_a(row_of(m), step * kDepth, own[m]);
      ATTEND_UNROLL
      for (int n = 0; n < kKeys / 16; ++n) {
        std::uint32_t b[2][2];
        keys.load_b_of_rows(n * 16, step * kDepth, b);
        ATTEND_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          ATTEND_UNROLL
          for (int half = 0; half < 2; ++half) multiply_add<kType>(scores[m], 8 * n + 4 * half, own[m], b[half]);
        }
      }
    }
  }

  /// Turns q·k into what the softmax is given.
  ATTEND_HOST_DEVICE void change(const KeyTile& tile, int m, float (&scores)[kScores]) {
    const int column = tile.key + lane_index() % 4 * 2;
    const auto place = [&](int k) { return ScorePlace{query_of(m, k / 2 % 2), column + k / 4 * 8 + k % 2}; };
    has_masked_ = has_masked_ || !tile.is_full;
    if (!folds_scale_)
      scores_.apply(scores, place, tile.is_full);
    else if (!tile.is_full)
      scores_.apply_masks(scores, place);
  }

  /// Sets the weights to 0 that dropout drops. The factor of the others is in store().
  ATTEND_HOST_DEVICE void drop(std::int32_t first_key, int m, float (&weights)[kScores]) const {
    const auto query = [&](int r) { return query_of(m, r); };
    ATTEND_UNROLL
    for (int n = 0; n < kScores / 4; ++n) {
      const auto drawn = dropout_words_of_queries(scores_, query, first_key + n * 8);
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i)
        if (drawn.words[i] < call_.dropout_threshold) weights[4 * n + i] = 0;
    }
  }

  /// output += weights · values
  ATTEND_HOST_DEVICE void add_values(const typename Shape::KeyTile& values,
                                     const float (&weights)[kRowTiles][kScores]) {
    ATTEND_UNROLL
    for (int step = 0; step < kKeys / kDepth; ++step) {
      std::uint32_t own[kRowTiles][4];
      ATTEND_UNROLL
      for (int m = 0; m < kRowTiles; ++m)
        Operand::a_of_sums([&](int k) { return weights[m][step * kDepth / 2 + k]; }, own[m]);
      constexpr int kTiles = Operand::kColumnTiles;
      ATTEND_UNROLL
      for (int n = 0; n < kWidth / 8; n += kTiles) {
        std::uint32_t b[kTiles][2];
        values.load_b_of_columns(step * kDepth, n * 8, b);
        ATTEND_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          ATTEND_UNROLL
          for (int i = 0; i < kTiles; ++i) multiply_add<kType>(output_[m], 4 * (n + i), own[m], b[i]);
        }
      }
    }
  }

  ATTEND_HOST_DEVICE void store() const {
    if (has_masked_ && any_in_warp(!is_finite())) {
      compute_plainly();
      return;
    }
    const Sequence& sequence = scores_.sequence();
    ATTEND_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTEND_UNROLL
      for (int r = 0; r < 2; ++r) {
        const float sum = softmax_[m].sum(r);
        const float kept = scores_.has_dropout() ? static_cast<float>(call_.dropout_scale) : 1.0f;
        const float factor = sum == 0 ? 0 : kept / sum;
        const std::int32_t i = query_of(m, r);
        if (i >= sequence.queries.end) continue;
        ATTEND_UNROLL
        for (int run = 0; run < kOutputs / 2 / Operand::kRun; ++run) {
          float numbers[Operand::kRun];
          ATTEND_UNROLL
          for (int j = 0; j < Operand::kRun; ++j) numbers[j] = output_[m][Operand::sum_of_run(run, j) + 2 * r] * factor;
          const int column = Operand::column_of_run(run);
          if (column < call_.value_dim) store_outputs<kType>(call_, sequence.batch, scores_.head(), i, column, numbers);
        }
        if (lane_index() % 4 == 0)
          store_log_sum_exp(call_, sequence.batch, scores_.head(), i, softmax_[m].largest(r) * unit_, sum);
      }
    }
  }

  ATTEND_HOST_DEVICE bool is_finite() const {
    float sum_of_zeros = 0;
    ATTEND_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTEND_UNROLL
      for (int k = 0; k < kOutputs; ++k) sum_of_zeros += output_[m][k] * 0.0f;
    }
    return sum_of_zeros == 0;
  }

  /// Computes the queries of this warp again, without tensor cores. A product of tensor cores is NaN if a masked key
  /// has a value that is not finite, because 0 · ∞ is NaN.
  ATTEND_HOST_DEVICE void compute_plainly() const {
    const std::int32_t begin = first_query_ + row_of(0),
                       end = smaller(begin + kRowTiles * 16, scores_.sequence().queries.end);
    for (std::int32_t i = begin; i < end; ++i) PlainRows<kType, /*kRows=*/1, Scores>(call_, scores_, {i, i + 1}).run();
  }

  const Call& call_;
  const Scores& scores_;
  std::int32_t first_query_;
  bool folds_scale_;         // whether the scale is a factor in the exponent, in place of a product for each score
  bool has_masked_ = false;  // whether a tile had a masked score
  float unit_;               // a score is unit_ times the number that the softmax is given
  KeyRange range_;           // all keys that a query of the tile may attend to
  OnlineSoftmax softmax_[kRowTiles];
  float output_[kRowTiles][kOutputs] = {};  // before the division by the sum of the weights
};

}  // namespace detail

/// One thread of the forward pass on tensor cores. The grid has query_tiles(call, Shape::kQueries) blocks, where Shape
/// is ForwardShape<kType, kWidth, kHasOptions>.
///
/// @tparam kType kFloat16 or kBFloat16, or kFloat32, whose numbers are rounded to tf32 for products.
/// @tparam kWidth At least head_dim and value_dim.
/// @tparam kHasOptions Whether the call may have softcap, alibi_slopes, attn_mask, dropout or block_table. In
/// decode_block() also a rotary embedding, so that other calls have more registers.
template <NumberType kType, int kWidth, bool kHasOptions, class Score, class Mask>
ATTEND_HOST_DEVICE void forward_block(const Call& call, const Score& score, const Mask& mask) {
  using namespace detail;
  const Tile tile = query_tile(call, block_index().x, ForwardShape<kType, kWidth, kHasOptions>::kQueries);
  if (tile.rows.begin >= tile.rows.end) return;
  const HeadScores<float, Score, Mask, kHasOptions> scores(call, score, mask, tile.sequence, tile.head);
  ForwardTile<kType, kWidth, Score, Mask, kHasOptions>(call, scores, tile.rows.begin).run();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
