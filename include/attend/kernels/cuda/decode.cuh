// SPDX-License-Identifier: MIT
#pragma once

// The forward pass of few queries and many keys on tensor cores, for float16 and bfloat16, and for float32 in tf32.
//
// The time is that of reading keys and values, so each is read once for all query heads of its key head, and the keys
// are split among many warps. A warp takes 16 rows, a row being a query of one of these heads, and one part of the
// keys, 16 keys at a time:
//   scores (16, 16) = queries (16, D) · keysᵀ
//   an online softmax
//   output (16, Dv) += weights (16, 16) · values
// and writes its output, largest scores and sums as float32 into a workspace. combine_block() adds the parts of a row
// in the order of the keys, so the result does not depend on the order in which blocks run.
//
// A warp has two buffers of keys and values, and copies the next tile (cp.async) while it computes. Warps wait for
// nothing of each other.
//
// Registers (bfloat16, sm_80, without options) and shared memory of a block. With options, width 256 spills 16 bytes of
// each thread on sm_80; no other of these kernels spills.
//
// | width              |  32 |  64 |  96 | 128 | 192 | 256 |
// | ------------------ | --- | --- | --- | --- | --- | --- |
// | warps              |   4 |   4 |   4 |   4 |   2 |   2 |
// | shared memory, KiB |  20 |  40 |  60 |  80 |  60 |  80 |
// | registers          |  90 | 123 | 142 | 175 | 178 | 214 |
//
// For width 128 the loop has 32 mma, 24 ldmatrix and 16 cp.async for 8 KiB of keys and values, in fewer than 800
// instructions. Four schedulers start 4 of them in a cycle, so on paper a multiprocessor can read 41 bytes a cycle. The
// memory of an H100 gives each multiprocessor about 15 bytes a cycle. So the instructions are not the limit.
// tf32_tile.cuh has the numbers of float32.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/combine.cuh>
#include <attend/kernels/cuda/copy_rows.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/operands.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/softmax.cuh>
#include <attend/kernels/cuda/warp.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// The sizes of a block of decode_block(). kType and kWidth as in ForwardShape.
template <NumberType kType, int kWidth>
struct DecodeShape {
  static constexpr int kRowBytes = kWidth * (kType == NumberType::kFloat32 ? 4 : 2);
  static constexpr int kWarps = kRowBytes <= 256 ? 4 : kRowBytes <= 512 ? 2 : 1, kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 16, kKeys = 16;
  /// Whether the operand of the queries stays in registers.
  static constexpr bool kKeepsQueries = kRowBytes <= 256;

  using Tile = typename detail::Operands<kType>::template Tile<16, kWidth>;
  /// Of a warp: queries, and two buffers of keys and values.
  static constexpr int kWarpBytes = 5 * Tile::kBytes;
  static constexpr int kSharedBytes = kWarps * kWarpBytes;
};

namespace detail {

/// How many rows a key head has, and how many row tiles.
ATTEND_HOST_DEVICE inline std::int32_t decode_rows(const Call& call) { return call.group * call.queries; }
ATTEND_HOST_DEVICE inline std::int32_t decode_row_tiles(const Call& call) { return (decode_rows(call) + 15) / 16; }

/// The work of one warp.
template <NumberType kType, int kWidth, class Score, class Mask, bool kHasOptions>
class DecodeWarp {
  using Shape = DecodeShape<kType, kWidth>;
  using Scores = HeadScores<float, Score, Mask, kHasOptions>;
  using Tile = typename Shape::Tile;
  using Operand = Operands<kType>;
  static constexpr int kDepth = Operand::kDepth, kSteps = kWidth / kDepth;
  static constexpr int kKeys = Shape::kKeys, kScores = kKeys / 2, kOutputs = kWidth / 2;

 public:
  /// @param first_row The first row of the tile, among those of the key head.
  ATTEND_HOST_DEVICE DecodeWarp(const Call& call, const Score& score, const Mask& mask, const Sequence& sequence,
                                std::int32_t kv_head, std::int32_t first_row, std::int32_t split)
      : call_(call),
        sequence_(sequence),
        kv_head_(kv_head),
        first_row_(first_row),
        split_(split),
        rows_{row_of(call, score, mask, 0), row_of(call, score, mask, 1)} {}

  ATTEND_HOST_DEVICE void run() {
    find_keys();
    std::int32_t key = next_tile(range_.begin);
    copy_queries();
    if (key < range_.end) copy_keys_and_values(key, 0);
    copy_async_commit();
    if (kHasOptions && rotates<kType>(call_)) rotate_queries();
    bool is_first = true;
    for (int buffer = 0; key < range_.end; buffer ^= 1) {
      copy_async_wait<0>();
      finish_copies(buffer, is_first);
      if (kHasOptions && rotates<kType>(call_)) rotate_keys(key, buffer);
      warp_barrier();  // the tile is there, and no lane reads the other buffer any more
      if (is_first) load_queries();
      is_first = false;
      const bool is_full = is_full_;
      const std::int32_t next = next_tile(key + kKeys);
      if (next < range_.end) copy_keys_and_values(next, buffer ^ 1);
      copy_async_commit();
      add_tile(key, is_full, buffer);
      key = next;
    }
    copy_async_wait<0>();
    store();
  }

 private:
  /// A row that this thread has a part of.
  struct Row {
    Scores scores;
    std::int32_t query;
    bool exists;
  };

  ATTEND_HOST_DEVICE Row row_of(const Call& call, const Score& score, const Mask& mask, int r) const {
    const std::int32_t row = first_row_ + lane_index() / 4 + 8 * r, last = decode_rows(call) - 1;
    const std::int32_t nearest = smaller(row, last);
    return {Scores(call, score, mask, sequence_, kv_head_ * call.group + nearest / call.queries),
            nearest % call.queries, row <= last};
  }

  ATTEND_HOST_DEVICE Tile tile(int index) const {
    return Tile(warp_index() * Shape::kWarpBytes + index * Tile::kBytes);
  }
  ATTEND_HOST_DEVICE Tile queries() const { return tile(0); }
  ATTEND_HOST_DEVICE Tile keys(int buffer) const { return tile(1 + 2 * buffer); }
  ATTEND_HOST_DEVICE Tile values(int buffer) const { return tile(2 + 2 * buffer); }

  /// The keys of this warp: a part of those that any row may attend to.
  ATTEND_HOST_DEVICE void find_keys() {
    KeyRange range = {sequence_.keys.end, 0};
    ATTEND_UNROLL
    for (int r = 0; r < 2; ++r) {
      const KeyRange own = rows_[r].scores.keys({rows_[r].query, rows_[r].query + 1});
      if (own.begin < own.end) range = {smaller(range.begin, own.begin), larger(range.end, own.end)};
    }
    ATTEND_UNROLL
    for (int step = 4; step < kWarpSize; step *= 2)
      range = {smaller(range.begin, shuffle_xor(range.begin, step)), larger(range.end, shuffle_xor(range.end, step))};
    range.begin &= ~3;  // a draw of Philox has the words of 4 keys
    const std::int32_t tiles = range.end > range.begin ? (range.end - range.begin + kKeys - 1) / kKeys : 0;
    const std::int32_t own_tiles = (tiles + call_.splits - 1) / call_.splits;
    const std::int64_t begin = std::int64_t{range.begin} + std::int64_t{split_} * own_tiles * kKeys;
    range_.begin = begin < range.end ? static_cast<std::int32_t>(begin) : range.end;
    range_.end = range.end - range_.begin < own_tiles * kKeys ? range.end : range_.begin + own_tiles * kKeys;
  }

  /// The first tile from `key` on in which a row may attend to a key. Sets is_full_.
  ATTEND_HOST_DEVICE std::int32_t next_tile(std::int32_t key) {
    for (; key < range_.end; key += kKeys) {
      bool is_empty = true;
      is_full_ = true;
      ATTEND_UNROLL
      for (int r = 0; r < 2; ++r) {
        const MaskCover cover = rows_[r].scores.cover({rows_[r].query, rows_[r].query + 1}, {key, key + kKeys});
        is_empty = is_empty && cover == MaskCover::kEmpty;
        is_full_ = is_full_ && cover == MaskCover::kFull;
      }
      is_full_ = !any_in_warp(!is_full_);
      if (any_in_warp(!is_empty)) return key;
    }
    return range_.end;
  }

  ATTEND_HOST_DEVICE void copy_queries() const {
    const auto* const data = static_cast<const typename Tile::Number*>(call_.query.data);
    queries().template copy_from<kWarpSize>(
        [&](int r) {
          const std::int32_t row = first_row_ + r;
          return row < decode_rows(call_)
                     ? data + row_place(call_.query.strides, sequence_.batch,
                                        kv_head_ * call_.group + row / call_.queries, row % call_.queries)
                     : nullptr;
        },
        call_.head_dim);
  }

  ATTEND_HOST_DEVICE void copy_keys_and_values(std::int32_t first, int buffer) const {
    copy_key_rows(call_.key, call_.head_dim, first, keys(buffer));
    copy_key_rows(call_.value, call_.value_dim, first, values(buffer));
  }

  ATTEND_HOST_DEVICE void copy_key_rows(const ConstTensorView4d& tensor, std::int32_t columns, std::int32_t first,
                                        const Tile& to) const {
    detail::copy_key_rows<kWarpSize, kHasOptions>(call_, tensor, sequence_.batch, kv_head_, first, sequence_.keys,
                                                  columns, to);
  }

  ATTEND_HOST_DEVICE void rotate_queries() const {
    copy_async_wait<0>();
    rotate_tile<kType, kWarpSize>(call_, call_.query_rotary, sequence_.batch, queries(), [&](int r) {
      const std::int32_t row = first_row_ + r;
      return row < decode_rows(call_) ? row % call_.queries : -1;
    });
  }

  ATTEND_HOST_DEVICE void rotate_keys(std::int32_t first, int buffer) const {
    rotate_rows<kType, kWarpSize>(call_, call_.key_rotary, sequence_.batch, first, sequence_.keys, keys(buffer));
  }

  /// Makes the numbers that have arrived operands of mma.
  ATTEND_HOST_DEVICE void finish_copies(int buffer, bool is_first) const {
    if (is_first) queries().template finish_copy<kWarpSize>();
    keys(buffer).template finish_copy<kWarpSize>();
    values(buffer).template finish_copy<kWarpSize>();
  }

  ATTEND_HOST_DEVICE void load_queries() {
    if constexpr (Shape::kKeepsQueries) {
      ATTEND_UNROLL
      for (int step = 0; step < kSteps; ++step) queries().load_a(0, step * kDepth, queries_[step]);
    }
  }

  ATTEND_HOST_DEVICE void add_tile(std::int32_t key, bool is_full, int buffer) {
    float scores[kScores] = {};
    ATTEND_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      std::uint32_t a[4], b[2][2];
      if constexpr (Shape::kKeepsQueries) {
        ATTEND_UNROLL
        for (int i = 0; i < 4; ++i) a[i] = queries_[step][i];
      } else {
        queries().load_a(0, step * kDepth, a);
      }
      keys(buffer).load_b_of_rows(0, step * kDepth, b);
      multiply_add<kType>(scores, 0, a, b[0]);
      multiply_add<kType>(scores, 4, a, b[1]);
    }
    ATTEND_UNROLL
    for (int r = 0; r < 2; ++r) change(key, is_full, r, scores);
    float rescale[2];
    softmax_.step(scores, kLog2e, rescale);
    ATTEND_UNROLL
    for (int k = 0; k < kOutputs; ++k) output_[k] *= rescale[k / 2 % 2];
    ATTEND_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (!rows_[r].scores.has_dropout()) continue;
      ATTEND_UNROLL
      for (int k = 0; k < kScores / 2; ++k)
        scores[k / 2 * 4 + 2 * r + k % 2] *= rows_[r].scores.dropout_factor(place_of(key, r, k));
    }
    ATTEND_UNROLL
    for (int step = 0; step < kKeys / kDepth; ++step) {
      std::uint32_t weights[4];
      Operand::a_of_sums([&](int k) { return scores[step * kDepth / 2 + k]; }, weights);
      constexpr int kTiles = Operand::kColumnTiles;
      ATTEND_UNROLL
      for (int n = 0; n < kWidth / 8; n += kTiles) {
        std::uint32_t b[kTiles][2];
        values(buffer).load_b_of_columns(step * kDepth, n * 8, b);
        ATTEND_UNROLL
        for (int i = 0; i < kTiles; ++i) multiply_add<kType>(output_, 4 * (n + i), weights, b[i]);
      }
    }
  }

  /// The place of number k of row r: its scores are at 4 (k / 2) + 2 r + k mod 2.
  ATTEND_HOST_DEVICE ScorePlace place_of(std::int32_t key, int r, int k) const {
    return {rows_[r].query, key + k / 2 * 8 + lane_index() % 4 * 2 + k % 2};
  }

  ATTEND_HOST_DEVICE void change(std::int32_t key, bool is_full, int r, float (&scores)[kScores]) const {
    float own[kScores / 2];
    ATTEND_UNROLL
    for (int k = 0; k < kScores / 2; ++k) own[k] = scores[k / 2 * 4 + 2 * r + k % 2];
    rows_[r].scores.apply(
        own, [&](int k) { return place_of(key, r, k); }, is_full);
    ATTEND_UNROLL
    for (int k = 0; k < kScores / 2; ++k) scores[k / 2 * 4 + 2 * r + k % 2] = own[k];
  }

  ATTEND_HOST_DEVICE void store() const {
    ATTEND_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float sum = softmax_.sum(r);
      if (!rows_[r].exists) continue;
      const std::int64_t row = call_.row(sequence_.batch, rows_[r].scores.head(), rows_[r].query);
      float* const to = call_.partials + partial_place(call_, row, split_);
      if (lane_index() % 4 == 0) store_two(to, softmax_.largest(r), sum);
      ATTEND_UNROLL
      for (int run = 0; run < kOutputs / 2 / Operand::kRun; ++run) {
        const int column = Operand::column_of_run(run);
        if (column >= call_.value_dim) continue;
        ATTEND_UNROLL
        for (int j = 0; j < Operand::kRun; j += 2)
          store_two(to + 2 + column + j, output_[Operand::sum_of_run(run, j) + 2 * r],
                    output_[Operand::sum_of_run(run, j + 1) + 2 * r]);
      }
    }
  }

  ATTEND_HOST_DEVICE static void store_two(float* to, float first, float second) {
    store_global(reinterpret_cast<Words2*>(to),
                 {{__builtin_bit_cast(std::uint32_t, first), __builtin_bit_cast(std::uint32_t, second)}});
  }

  const Call& call_;
  Sequence sequence_;
  std::int32_t kv_head_, first_row_, split_;
  Row rows_[2];
  KeyRange range_{};
  bool is_full_ = false;  // of the tile that next_tile() has found
  OnlineSoftmax softmax_;
  std::uint32_t queries_[Shape::kKeepsQueries ? kSteps : 1][4];
  float output_[kOutputs] = {};
};

}  // namespace detail

/// One thread of the forward pass of few queries, which writes Call::partials. Each batch entry has the same number of
/// queries. The grid has decode_blocks<kType, kWidth>(call) blocks. The template arguments are those of
/// forward_block().
template <NumberType kType, int kWidth, bool kHasOptions, class Score, class Mask>
ATTEND_HOST_DEVICE void decode_block(const Call& call, const Score& score, const Mask& mask) {
  using namespace detail;
  constexpr int kWarps = DecodeShape<kType, kWidth>::kWarps;
  const std::int32_t split_blocks = (call.splits + kWarps - 1) / kWarps, row_tiles = decode_row_tiles(call);
  const std::int32_t index = block_index().x, head = index / split_blocks / row_tiles;
  const std::int32_t split = index % split_blocks * kWarps + warp_index(), batch = head / call.kv_heads;
  if (split >= call.splits) return;
  DecodeWarp<kType, kWidth, Score, Mask, kHasOptions>(call, score, mask, whole_sequence(call, batch),
                                                      head % call.kv_heads, index / split_blocks % row_tiles * 16,
                                                      split)
      .run();
}

/// The number of blocks of decode_block().
template <NumberType kType, int kWidth>
std::int64_t decode_blocks(const Call& call) {
  constexpr int kWarps = DecodeShape<kType, kWidth>::kWarps;
  return std::int64_t{call.batch_size} * call.kv_heads * detail::decode_row_tiles(call) *
         ((call.splits + kWarps - 1) / kWarps);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
