// SPDX-License-Identifier: MIT
#pragma once

// The forward pass without tensor cores: every number type, size, stride and option.
//
// A block has 4 warps and computes a tile of 16 queries of one head, 4 queries per warp. A warp takes 32 keys at a
// time:
//   scores (4, 32): each lane has one key, and computes 4 dot products of length D
//   an online softmax: largest score and sum of each query
//   output (4, 256) += weights (4, 32) · values (32, 256): each lane has 8 columns of the values, 32 apart
// More than 256 columns are computed 256 at a time, each time with the scores anew.
//
// With a rotary embedding, each pair is rotated where it is loaded (rotate.cuh).
//
// A weight of 0 is not multiplied: a masked key may hold NaN.
//
// The block uses no shared memory. A thread has (sm_80) 200 registers for float32, 255 for float64 and 216 for the
// 16-bit types. The inner loop has 4 products for 5 loads, so it reaches at most a fifth of the peak of the float32
// units.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/real.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/results.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/warp.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {
namespace detail {

/// The forward pass of up to kRows queries by one warp. All lanes call it with the same arguments.
template <NumberType kType, int kRows, class Scores>
class PlainRows {
  using T = Computed<kType>;

 public:
  ATTEND_HOST_DEVICE PlainRows(const Call& call, const Scores& scores, const KeyRange& rows)
      : call_(call), scores_(scores), rows_(rows), kv_head_(scores.head() / call.group) {}

  /// Writes the output and the log-sum-exp of the queries.
  ATTEND_HOST_DEVICE void run() {
    const std::int32_t batch = scores_.sequence().batch, head = scores_.head();
    for (std::int32_t first = 0; first < call_.value_dim; first += kColumns * kWarpSize) {
      first_column_ = first;
      sum_over_keys();
      ATTEND_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const T sum = sum_of_lanes<kWarpSize>(sum_[r]);
        const std::int32_t i = rows_.begin + r;
        if (i >= rows_.end) continue;
        ATTEND_UNROLL
        for (int c = 0; c < kColumns; ++c)
          if (column(c) < call_.value_dim)
            store_output<kType>(call_, batch, head, i, column(c), sum == T(0) ? T(0) : output_[r][c] / sum);
        if (first == 0 && lane_index() == 0) store_log_sum_exp(call_, batch, head, i, largest_[r], sum);
      }
    }
  }

 private:
  static constexpr int kColumns = 8;

  ATTEND_HOST_DEVICE std::int32_t column(int c) const { return first_column_ + c * kWarpSize + lane_index(); }

  ATTEND_HOST_DEVICE void sum_over_keys() {
    ATTEND_UNROLL
    for (int r = 0; r < kRows; ++r) {
      largest_[r] = scores_.kMasked;
      sum_[r] = 0;
      ATTEND_UNROLL
      for (int c = 0; c < kColumns; ++c) output_[r][c] = 0;
    }
    const KeyRange keys = scores_.keys(rows_);
    for (std::int32_t first = keys.begin; first < keys.end; first += kWarpSize) {
      const std::int32_t end = keys.end - first < kWarpSize ? keys.end : first + kWarpSize;
      const MaskCover cover = scores_.cover(rows_, {first, end});
      if (cover == MaskCover::kEmpty) continue;
      T weights[kRows];
      find_weights(first, end, cover == MaskCover::kFull && rows_.end - rows_.begin == kRows, weights);
      add_values(first, end, weights);
    }
  }

  /// The weight of each query for the key of this lane, and the new largest scores and sums.
  ATTEND_HOST_DEVICE void find_weights(std::int32_t first, std::int32_t end, bool is_full, T (&weights)[kRows]) {
    const std::int32_t key = first + lane_index();
    const auto place = [&](int r) { return ScorePlace{rows_.begin + r, key}; };
    multiply(key < end ? key : end - 1, weights);
    scores_.apply(weights, place, is_full && end - first == kWarpSize);
    ATTEND_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const T score = key < end ? weights[r] : scores_.kMasked;
      const T largest = larger_number(largest_of_lanes<kWarpSize>(score), largest_[r]);
      const T shift = largest == scores_.kMasked ? T(0) : largest;
      const T rescale = exp(Real<T>(largest_[r] - shift)).value;
      const T weight = exp(Real<T>(score - shift)).value;
      largest_[r] = largest;
      sum_[r] = sum_[r] * rescale + weight;
      ATTEND_UNROLL
      for (int c = 0; c < kColumns; ++c) output_[r][c] *= rescale;
      weights[r] = scores_.has_dropout() ? weight * scores_.dropout_factor(place(r)) : weight;
    }
  }

  /// products[r] = q · k for each query.
  ATTEND_HOST_DEVICE void multiply(std::int32_t key, T (&products)[kRows]) const {
    const Sequence& sequence = scores_.sequence();
    std::int64_t query[kRows];
    ATTEND_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const std::int32_t i = rows_.begin + r;
      query[r] = row_place(call_.query.strides, sequence.batch, scores_.head(), i < rows_.end ? i : rows_.end - 1);
      products[r] = 0;
    }
    const std::int64_t key_row = key_place(call_, call_.key, sequence.batch, kv_head_, key);
    if (call_.has_rotary()) multiply_rotated(key, key_row, query, products);
    for (std::int32_t d = call_.rotary_dim; d < call_.head_dim; ++d) {
      const T k = load_number<kType>(call_.key.data, key_row + d * call_.key.strides[3]);
      ATTEND_UNROLL
      for (int r = 0; r < kRows; ++r)
        products[r] += load_number<kType>(call_.query.data, query[r] + d * call_.query.strides[3]) * k;
    }
  }

  /// products[r] += q · k in the columns that are rotated.
  ATTEND_HOST_DEVICE void multiply_rotated(std::int32_t key, std::int64_t key_row, const std::int64_t (&query)[kRows],
                                           T (&products)[kRows]) const {
    const std::int32_t batch = scores_.sequence().batch;
    const RotaryRows<T> of_queries(call_, call_.query_rotary, batch), of_keys(call_, call_.key_rotary, batch);
    for (std::int32_t pair = 0; pair < of_keys.pairs(); ++pair) {
      const std::int32_t first = of_keys.first_column(pair), second = of_keys.second_column(pair);
      const auto load = [&](const ConstTensorView4d& tensor, std::int64_t row, const RotaryRows<T>& tables,
                            std::int32_t i) {
        Pair<T> numbers;
        numbers.first = load_number<kType>(tensor.data, row + first * tensor.strides[3]);
        numbers.second = load_number<kType>(tensor.data, row + second * tensor.strides[3]);
        numbers = tables.rotated(numbers, i, pair);
        numbers.first = value_of<kType>(stored_of<kType>(numbers.first));
        numbers.second = value_of<kType>(stored_of<kType>(numbers.second));
        return numbers;
      };
      const Pair<T> k = load(call_.key, key_row, of_keys, key);
      ATTEND_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const std::int32_t i = rows_.begin + r;
        const Pair<T> q = load(call_.query, query[r], of_queries, i < rows_.end ? i : rows_.end - 1);
        products[r] += q.first * k.first;
        products[r] += q.second * k.second;
      }
    }
  }

  ATTEND_HOST_DEVICE void add_values(std::int32_t first, std::int32_t end, const T (&weights)[kRows]) {
    for (std::int32_t key = first; key < end; ++key) {
      T weight[kRows];
      bool has_weight = false;
      ATTEND_UNROLL
      for (int r = 0; r < kRows; ++r) {
        weight[r] = shuffle(weights[r], key - first);
        has_weight = has_weight || weight[r] != T(0);
      }
      if (!has_weight) continue;
      const std::int64_t row = key_place(call_, call_.value, scores_.sequence().batch, kv_head_, key);
      ATTEND_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (column(c) >= call_.value_dim) continue;
        const T value = load_number<kType>(call_.value.data, row + column(c) * call_.value.strides[3]);
        ATTEND_UNROLL
        for (int r = 0; r < kRows; ++r)
          if (weight[r] != T(0)) output_[r][c] += weight[r] * value;
      }
    }
  }

  const Call& call_;
  const Scores& scores_;
  KeyRange rows_;
  std::int32_t kv_head_, first_column_ = 0;
  T largest_[kRows], sum_[kRows];  // sum: of the keys of this lane
  T output_[kRows][kColumns];
};

}  // namespace detail

/// How many threads a block of plain_forward_block() has, and how many queries it computes.
inline constexpr int kPlainForwardThreads = 128, kPlainForwardQueries = 16;

/// One thread of the forward pass without tensor cores. The grid has query_tiles(call, kPlainForwardQueries) blocks.
template <NumberType kType, class Score, class Mask>
ATTEND_HOST_DEVICE void plain_forward_block(const Call& call, const Score& score, const Mask& mask) {
  using namespace detail;
  constexpr int kRows = kPlainForwardQueries / (kPlainForwardThreads / kWarpSize);
  const Tile tile = query_tile(call, block_index().x, kPlainForwardQueries);
  const std::int32_t begin = tile.rows.begin + warp_index() * kRows;
  const std::int32_t end = smaller(begin + kRows, tile.rows.end);
  if (begin >= end) return;
  using Scores = HeadScores<Computed<kType>, Score, Mask>;
  const Scores scores(call, score, mask, tile.sequence, tile.head);
  PlainRows<kType, kRows, Scores>(call, scores, {begin, end}).run();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
