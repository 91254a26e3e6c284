// SPDX-License-Identifier: MIT
#pragma once

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
/// - ldmatrix cannot transpose numbers of 32 bits. So operand B made of columns is loaded by 16 bytes of each thread:
///   4 columns of one row. The threads of 8 lanes read 4 rows and 2 chunks, which are in 8 different groups of banks.
///
/// mma ignores the lowest 13 bits of a number, which truncates it. So numbers are rounded to tf32 before: once, in
/// shared memory, by the thread that has copied them.
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
