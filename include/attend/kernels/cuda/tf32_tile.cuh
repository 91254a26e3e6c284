// SPDX-License-Identifier: MIT
#pragma once

// float32 on tensor cores. The kernels are those of 16-bit numbers (forward.cuh, decode.cuh, backward_keys.cuh,
// backward_queries.cuh) with the operands of mma m16n8k8 in tf32 (operands.cuh). This is what differs:
//
// - A number has 4 bytes, so tiles have fewer rows. All blocks fit into 99 KiB of shared memory.
// - mma ignores the lowest 13 bits of a number, which would truncate it. So each thread rounds the numbers that it has
//   copied to tf32, in shared memory, before the barrier. A rounding is 3 instructions. Weights and gradients of scores
//   are rounded in registers.
// - A thread has columns 2 t and 2 t + 1 of a tile of scores, but as operand A it needs columns t and t + 4. The sum
//   over columns may have any order, so the columns change their places: those of A and the rows of B alike. No thread
//   needs a number of another one.
// - Gradients that are sums over many scores are computed without tensor cores (backward_plan.cuh).
//
// Tiles, registers (sm_80, no struct and no option) and shared memory of a block. "Share" is the share of the peak of
// sm_80's tensor cores (156 TFLOPS) on paper: the clocks of mma, divided by the clocks of shared memory, which limits
// all kernels. An mma takes 8 clocks of a scheduler. On sm_90 mma.sync is up to twice as fast, and the share half as
// large.
//
// | width                                |     32 |     64 |    96 |   128 |   192 |   256 |
// | ------------------------------------ | ------ | ------ | ----- | ----- | ----- | ----- |
// | forward: queries · keys              | 128·64 | 128·32 | 64·32 | 64·16 | 64·16 | 32·16 |
// | the same with options                |  64·64 |  64·32 | 64·32 | 64·16 | 64·16 | 32·16 |
// | warps                                |      4 |      4 |     4 |     4 |     4 |     2 |
// | shared memory, KiB                   |     48 |     64 |    72 |    64 |    96 |    96 |
// | registers                            |    224 |    213 |   173 |   176 |   206 |   255 |
// | share                                |   1.00 |   0.89 |  0.50 |  0.44 |  0.44 |  0.33 |
// | decode: warps                        |      4 |      4 |     2 |     2 |     1 |     1 |
// | shared memory, KiB                   |     40 |     80 |    60 |    80 |    60 |    80 |
// | registers                            |    117 |    161 |   156 |   184 |   236 |   254 |
// | backward: rows · step                |  64·32 |  64·32 | 64·16 | 64·16 | 32·16 |       |
// | warps                                |      4 |      4 |     4 |     4 |     2 |       |
// | shared memory, KiB                   |     32 |     64 |    72 |    96 |    96 |       |
// | keys and values: registers           |    192 |    221 |   220 |   245 |   236 |       |
// | share                                |   0.73 |   0.62 |  0.53 |  0.53 |  0.38 |       |
// | queries: registers                   |    194 |    246 |   187 |   211 |   248 |       |
// | share                                |   0.67 |   0.67 |  0.46 |  0.46 |  0.38 |       |
//
// For width 64 the loop of the forward pass has, for each warp and tile: 128 mma, 32 ldmatrix, 24 loads and 8 stores of
// 16 bytes, 8 cp.async, 64 roundings and 36 ex2. mma takes 1,024 clocks of a scheduler, the roundings 384 and ex2 288.
// Shared memory takes 1,152 clocks for the four warps: 768 for operands, 256 to round keys and values, 128 for copies.

#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/shared.cuh>
#include <attend/kernels/cuda/tile.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// A matrix of kRows rows and kWidth columns of float32 in shared memory, as operands of mma m16n8k8 in tf32.
///
/// - For ldmatrix a row of 4 numbers is 8 numbers of 16 bits. So operand A, and operand B made of rows, are loaded as
///   from a SharedTile that is twice as wide.
/// - ldmatrix cannot transpose numbers of 32 bits. So a thread loads 16 bytes for operand B made of columns: 4 columns
///   of one row. Eight neighbouring lanes read 2 chunks of 4 rows, which are in 8 different groups of banks.
template <int kRows, int kWidth>
class Tf32Tile {
  using Halves = SharedTile<kRows, 2 * kWidth>;

 public:
  using Number = float;
  static constexpr int kBytes = Halves::kBytes;

  /// @param offset The first byte in the block's shared memory, a multiple of 128.
  ATTEND_HOST_DEVICE explicit Tf32Tile(int offset) : halves_(offset) {}

  /// As SharedTile::copy_from(). `columns` is a multiple of 4.
  template <int kThreads, class Address>
  ATTEND_HOST_DEVICE void copy_from(const Address& address, int columns) const {
    halves_.template copy_from<kThreads>([&](int row) { return reinterpret_cast<const std::uint16_t*>(address(row)); },
                                         2 * columns);
  }

  /// Rounds to tf32 what this thread has copied by copy_from<kThreads>(), after it has waited for it. Other threads
  /// may load operands after a barrier.
  template <int kThreads>
  ATTEND_HOST_DEVICE void finish_copy() const {
    halves_.template change_copied<kThreads>([](Words4 numbers) {
      ATTEND_UNROLL
      for (int i = 0; i < 4; ++i) numbers.words[i] = round_to_tf32(__builtin_bit_cast(float, numbers.words[i]));
      return numbers;
    });
  }

  /// The 16 × 8 numbers from (row, column) on as operand A of mma. row is a multiple of 16, column one of 8.
  ATTEND_HOST_DEVICE void load_a(int row, int column, std::uint32_t (&a)[4]) const {
    halves_.load_a(row, 2 * column, a);
  }

  /// The transpose of the 16 × 8 numbers from (row, column) on as operand B of two mma: b[0] for the first 8 rows, b[1]
  /// for the others. Columns are summed over.
  ATTEND_HOST_DEVICE void load_b_of_rows(int row, int column, std::uint32_t (&b)[2][2]) const {
    halves_.load_b_of_rows(row, 2 * column, b);
  }

  /// The 8 × 32 numbers from (row, column) on as operand B of four mma. Rows are summed over. row is a multiple of 8,
  /// column one of 32.
  ///
  /// Row t (of 4) of an operand is row 2 t of the tile, and row t + 4 is row 2 t + 1. Column g (of 8) of b[j] is
  /// column 4 g + j.
  ATTEND_HOST_DEVICE void load_b_of_columns(int row, int column, std::uint32_t (&b)[4][2]) const {
    const int lane = lane_index();
    ATTEND_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Words4 numbers = halves_.load_chunk(lane % 4 * 2 + i, lane / 4, row, column / 4);
      ATTEND_UNROLL
      for (int j = 0; j < 4; ++j) b[j][i] = numbers.words[j];
    }
  }

 private:
  Halves halves_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
