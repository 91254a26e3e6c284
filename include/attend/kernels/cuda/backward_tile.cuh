// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/copy_rows.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/operands.cuh>
#include <attend/kernels/cuda/results.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/row_sums.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>

// What both tensor-core kernels of the backward pass share.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// The sizes of a block. kWidth is the number of columns of a row in shared memory: 32, 64, 96, 128, 192, or 256 if
/// kType has 16 bits.
///
/// A block has kRows rows of its own (keys, or queries), 16 for each warp, and goes through rows of the other kind,
/// kStep at a time. kStep is such that the sums fit into registers, and all tiles into the 99 KiB of shared memory that
/// a block has on every GPU from sm_80 on.
template <NumberType kType, int kWidth>
struct BackwardShape {
  static constexpr bool kIsTf32 = kType == NumberType::kFloat32;
  static constexpr int kWarps = kIsTf32 && kWidth > 128 ? 2 : 4, kThreads = kWarps * kWarpSize, kRows = kWarps * 16;
  static constexpr int kStep = kWidth <= (kIsTf32 ? 64 : 192) ? 32 : 16;
  static constexpr int kTiles = kStep / 8;     // of scores: a warp has kTiles tiles of 16 × 8
  static constexpr int kOutputs = kWidth / 8;  // the same for the sums

  using OwnTile = typename Operands<kType>::template Tile<kRows, kWidth>;
  using StepTile = typename Operands<kType>::template Tile<kStep, kWidth>;
  static constexpr int kSharedBytes = 2 * OwnTile::kBytes + 4 * StepTile::kBytes;

  /// The two tiles of the block's own rows, and the two tiles of a step, in one of two buffers.
  ATTEND_HOST_DEVICE static OwnTile own(int i) { return OwnTile(i * OwnTile::kBytes); }
  ATTEND_HOST_DEVICE static StepTile step(int buffer, int i) {
    return StepTile(2 * OwnTile::kBytes + (2 * buffer + i) * StepTile::kBytes);
  }
};

/// The rows of a warp as operand A of mma. kIsKept: they stay in registers, which saves a third of the loads of
/// multiply() from shared memory.
template <NumberType kType, int kWidth, bool kIsKept>
class OwnRows {
  using Shape = BackwardShape<kType, kWidth>;
  using Operand = Operands<kType>;
  static constexpr int kDepth = Operand::kDepth;

 public:
  /// Must be called once, after the tile has been copied.
  ATTEND_HOST_DEVICE void keep(const typename Shape::OwnTile& tile) {
    if constexpr (kIsKept) {
      ATTEND_UNROLL
      for (int i = 0; i < kWidth / kDepth; ++i) tile.load_a(warp_index() * 16, i * kDepth, kept_[i]);
    }
  }

  /// products[n] += own rows of this warp · step rows, over all columns.
  ATTEND_HOST_DEVICE void multiply(const typename Shape::OwnTile& tile, const typename Shape::StepTile& step,
                                   float (&products)[Shape::kTiles][4]) const {
    ATTEND_UNROLL
    for (int i = 0; i < kWidth / kDepth; ++i) {
      std::uint32_t a[4];
      if constexpr (kIsKept) {
        ATTEND_UNROLL
        for (int k = 0; k < 4; ++k) a[k] = kept_[i][k];
      } else {
        tile.load_a(warp_index() * 16, i * kDepth, a);
      }
      ATTEND_UNROLL
      for (int n = 0; n < Shape::kTiles; n += 2) {
        std::uint32_t b[2][2];
        step.load_b_of_rows(n * 8, i * kDepth, b);
        multiply_add<kType>(products[n], 0, a, b[0]);
        multiply_add<kType>(products[n + 1], 0, a, b[1]);
      }
    }
  }

 private:
  std::uint32_t kept_[kIsKept ? kWidth / kDepth : 1][4];
};

/// sums[n] += factors · step rows. The factors are in the order of OwnRows::multiply(). kIsFinite: numbers that are not
/// finite count as 0, because they may be those of a masked row, and 0 · NaN is NaN.
template <NumberType kType, class Shape, bool kIsFinite>
ATTEND_HOST_DEVICE void add_rows(const float (&factors)[Shape::kTiles][4], const typename Shape::StepTile& step,
                                 float (&sums)[Shape::kOutputs][4]) {
  using Operand = Operands<kType>;
  constexpr int kColumnTiles = Operand::kColumnTiles;
  ATTEND_UNROLL
  for (int row = 0; row < Shape::kStep; row += Operand::kDepth) {
    std::uint32_t a[4];
    Operand::a_of_sums([&](int k) { return factors[row / 8 + k / 4][k % 4]; }, a);
    ATTEND_UNROLL
    for (int n = 0; n < Shape::kOutputs; n += kColumnTiles) {
      std::uint32_t b[kColumnTiles][2];
      step.load_b_of_columns(row, n * 8, b);
      ATTEND_UNROLL
      for (int i = 0; i < kColumnTiles; ++i) {
        if constexpr (kIsFinite) {
          ATTEND_UNROLL
          for (int k = 0; k < 2; ++k) b[i][k] = Operand::finite_or_zero(b[i][k]);
        }
        multiply_add<kType>(sums[n + i], 0, a, b[i]);
      }
    }
  }
}

/// Stores factor · sums to those rows of this warp that are in `rows`, up to column `columns`. The rows of the block
/// begin at `first`.
template <NumberType kType, class Shape>
ATTEND_HOST_DEVICE void store_rows(const TensorView4d& tensor, std::int32_t batch, std::int32_t head,
                                   std::int32_t first, const KeyRange& rows, std::int32_t columns, float factor,
                                   const float (&sums)[Shape::kOutputs][4]) {
  using Operand = Operands<kType>;
  auto* const data = static_cast<Stored<kType>*>(tensor.data);
  ATTEND_UNROLL
  for (int half = 0; half < 2; ++half) {
    const std::int32_t i = first + warp_index() * 16 + half * 8 + lane_index() / 4;
    if (i < rows.begin || i >= rows.end) continue;
    Stored<kType>* const row = data + row_place(tensor.strides, batch, head, i);
    ATTEND_UNROLL
    for (int run = 0; run < Shape::kOutputs * 2 / Operand::kRun; ++run) {
      const int column = Operand::column_of_run(run);
      if (column >= columns) continue;
      float numbers[Operand::kRun];
      ATTEND_UNROLL
      for (int j = 0; j < Operand::kRun; ++j) {
        const int sum = Operand::sum_of_run(run, j) + 2 * half;
        numbers[j] = factor * sums[sum / 4][sum % 4];
      }
      store_run<kType>(row + column, numbers);
    }
  }
}

/// The same for the gradient of queries or keys, rotated back. All warps of the block call it, and the tiles are not
/// needed any more: the numbers of a pair are in different registers, and they meet in the memory of the tiles.
template <NumberType kType, class Shape>
ATTEND_HOST_DEVICE void store_rows_rotated_back(const Call& call, const RotaryView& tables, const TensorView4d& tensor,
                                                std::int32_t batch, std::int32_t head, std::int32_t first,
                                                const KeyRange& rows, const float (&sums)[Shape::kOutputs][4]) {
  constexpr int kColumns = 8 * Shape::kOutputs, kNumbers = 16 * kColumns;  // of a warp
  static_assert(Shape::kWarps * kNumbers * static_cast<int>(sizeof(float)) <= Shape::kSharedBytes);
  const Shared<float> numbers =
      shared_memory<float>(warp_index() * kNumbers * static_cast<int>(sizeof(float)), kNumbers);
  const int lane = lane_index();
  barrier();  // other warps may still read the tiles
  ATTEND_UNROLL
  for (int n = 0; n < Shape::kOutputs; ++n) {
    ATTEND_UNROLL
    for (int i = 0; i < 4; ++i)
      numbers.store((i / 2 * 8 + lane / 4) * kColumns + n * 8 + lane % 4 * 2 + i % 2, sums[n][i]);
  }
  warp_barrier();
  const RotaryRows<float> rotary(call, tables, batch);
  const float scale = static_cast<float>(call.scale);
  ATTEND_NO_UNROLL
  for (int row = 0; row < 16; ++row) {
    const std::int32_t i = first + warp_index() * 16 + row;
    const bool is_written = i >= rows.begin && i < rows.end;
    if (!is_written) continue;
    const std::int64_t place = row_place(tensor.strides, batch, head, i);
    ATTEND_NO_UNROLL
    for (int pair = lane; pair < call.head_dim / 2; pair += kWarpSize) {
      const int a = rotary.first_column(pair), b = rotary.second_column(pair);
      const Pair<float> rotated{scale * numbers.load(row * kColumns + a), scale * numbers.load(row * kColumns + b)};
      const Pair<float> back = rotary.rotated_back(rotated, i, pair);
      store_number<kType>(tensor.data, place + a, back.first);
      store_number<kType>(tensor.data, place + b, back.second);
    }
  }
}

/// Turns the products q·k into weights after dropout, and the gradients dO·v into gradients of a score. kByProduct: of
/// scale · q·k; otherwise of the score that the score_mod gets. place(n, i) and row(n, i) are those of products[n][i],
/// and dropout_words(n).words[i] is its random word. is_full: no score of the tile is masked.
template <bool kByProduct, int kTiles, class Scores, class Places, class Rows, class DropoutWords>
ATTEND_HOST_DEVICE void differentiate(const Call& call, const Scores& scores, bool is_full, const Places& place,
                                      const Rows& row, const DropoutWords& dropout_words, float (&products)[kTiles][4],
                                      float (&gradients)[kTiles][4]) {
  if (is_full && scores.only_scales() && !call.has_dropout()) {
    const float unit = static_cast<float>(call.scale) * kLog2e;
    ATTEND_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i) {
        const TensorRow sums = row(n, i);
        products[n][i] = exp2_fast(products[n][i] * unit - (sums.log_sum_exp * kLog2e + sums.rest));
        gradients[n][i] = products[n][i] * (gradients[n][i] - sums.delta);
      }
    }
    return;
  }
  ATTEND_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    float kept[4] = {1, 1, 1, 1};  // what dropout multiplies the weights with
    if (call.has_dropout()) {
      const attend::detail::PhiloxBlock drawn = dropout_words(n);
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i) kept[i] = scores.dropout_factor(drawn.words[i]);
    }
    ATTEND_UNROLL
    for (int i = 0; i < 4; ++i) {
      const TensorRow sums = row(n, i);
      const auto at = place(n, i);
      const auto score = scores.derived(products[n][i], at, is_full);
      const float weight = score.value == Scores::kMasked ? 0.0f : sums.weight(score.value);
      const float weight_gradient = kept[i] == 0.0f ? 0.0f : kept[i] * gradients[n][i];
      products[n][i] = weight * kept[i];
      const float slope = kByProduct ? score.mod_slope * score.option_slope : score.mod_slope;
      gradients[n][i] = weight == 0.0f ? 0.0f : weight * (weight_gradient - sums.delta) * slope;
    }
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
