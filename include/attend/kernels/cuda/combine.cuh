// SPDX-License-Identifier: MIT
#pragma once

// The kernel that runs after decode_block(): a warp computes one row of the output from the parts of the keys, in the
// order of the keys. Block: 4 warps, no shared memory, 135 registers (sm_80). It reads each part once.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/plain_forward.cuh>
#include <attend/kernels/cuda/results.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/warp.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {
namespace detail {

/// The place of a part of row (n, h, i) in Call::partials: largest score, sum of the weights, then the output.
ATTEND_HOST_DEVICE inline std::int64_t partial_place(const Call& call, std::int64_t row, std::int32_t split) {
  return (row * call.splits + split) * (call.value_dim + 2);
}

}  // namespace detail

/// How many threads a block of combine_block() has. Each warp computes one row of the output.
inline constexpr int kCombineThreads = 128, kCombineRows = kCombineThreads / kWarpSize;

/// One thread of the kernel that runs after decode_block(), and adds the parts of each row in the order of the keys.
/// The grid has ⌈N · H · L / kCombineRows⌉ blocks.
template <NumberType kType, class Score, class Mask>
ATTEND_HOST_DEVICE void combine_block(const Call& call, const Score& score, const Mask& mask) {
  using namespace detail;
  constexpr int kColumns = 256 / kWarpSize;
  constexpr float kMasked = -simd::FloatFormat<float>::kInfinity;
  const std::int64_t row = std::int64_t{block_index().x} * kCombineRows + warp_index();
  if (row >= call.row(call.batch_size, 0, 0)) return;
  const float* const parts = call.partials + partial_place(call, row, 0);
  const std::int32_t stride = call.value_dim + 2;
  float largest = kMasked;
  for (std::int32_t split = 0; split < call.splits; ++split)
    largest = larger_number(load_global(parts + std::int64_t{split} * stride), largest);
  const float shift = largest == kMasked ? 0.0f : largest;
  float sum = 0, output[kColumns] = {};
  for (std::int32_t split = 0; split < call.splits; ++split) {
    const float* const part = parts + std::int64_t{split} * stride;
    const float weight = exp2_fast((load_global(part) - shift) * kLog2e);
    sum += weight * load_global(part + 1);
    ATTEND_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kWarpSize + lane_index();
      if (column < call.value_dim) output[c] += weight * load_global(part + 2 + column);
    }
  }
  const auto i = static_cast<std::int32_t>(row % call.queries);
  const auto h = static_cast<std::int32_t>(row / call.queries % call.heads);
  const auto n = static_cast<std::int32_t>(row / call.queries / call.heads);
  float sum_of_zeros = 0;
  ATTEND_UNROLL
  for (int c = 0; c < kColumns; ++c) sum_of_zeros += output[c] * 0.0f;
  if (any_in_warp(sum_of_zeros != 0)) {  // as ForwardTile::compute_plainly()
    using Scores = HeadScores<float, Score, Mask>;
    const Scores scores(call, score, mask, whole_sequence(call, n), h);
    PlainRows<kType, /*kRows=*/1, Scores>(call, scores, {i, i + 1}).run();
    return;
  }
  ATTEND_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int column = c * kWarpSize + lane_index();
    if (column < call.value_dim) store_output<kType>(call, n, h, i, column, sum == 0 ? 0 : output[c] / sum);
  }
  if (lane_index() == 0) store_log_sum_exp(call, n, h, i, largest, sum);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
