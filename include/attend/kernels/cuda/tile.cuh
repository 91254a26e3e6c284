// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/shared.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// A matrix of kRows rows and kWidth columns of 16-bit numbers in shared memory.
///
/// A chunk is 8 neighbouring numbers of a row, 16 bytes. The chunks of a row are permuted, so that the 8 chunks that
/// ldmatrix reads for a matrix of 8 × 8 are in 8 different groups of banks:
/// - kWidth a multiple of 64: chunk c of row r is at c xor (r mod 8)
/// - kWidth an odd multiple of 32: at c xor (⌊r / 2⌋ mod 4); rows r and r + 1 are 64 bytes (mod 128) apart
///
/// Each place is a number that depends on the lane only, xor or plus a constant. So a loop needs few registers for
/// places.
template <int kRows, int kWidth>
class SharedTile {
  static_assert(kRows % 16 == 0 && kWidth % 32 == 0);

 private:
  static constexpr int kChunks = kWidth / 8;
  static constexpr int kPermuted = kChunks % 8 == 0 ? 8 : 4;  // chunks that change places with each other

 public:
  using Number = std::uint16_t;
  static constexpr int kBytes = kRows * kWidth * 2, kTileRows = kRows;

  /// How many neighbouring threads of kThreads copy a row. At least 8 rows are copied at once.
  ATTEND_HOST_DEVICE static constexpr int threads_per_row(int threads) {
    const int most = threads / 8;
    return kChunks % 16 == 0 && most >= 16 ? 16 : kChunks % 8 == 0 && most >= 8 ? 8 : 4;
  }

  /// @param offset The first byte in the block's shared memory, a multiple of 128.
  ATTEND_HOST_DEVICE explicit SharedTile(int offset) : view_(shared_memory<std::uint16_t>(offset, kRows * kWidth)) {}

  /// Starts to copy kRows rows from global memory, by kThreads threads: those of a block, or of a warp. `address(r)` is
  /// the address of row r, aligned to 16 bytes, or null. Rows without an address and columns from `columns` on become
  /// 0. `columns` is a multiple of 8.
  template <int kThreads, class Address>
  ATTEND_HOST_DEVICE void copy_from(const Address& address, int columns) const {
    constexpr int kThreadsPerRow = threads_per_row(kThreads);
    constexpr int kStep = kThreads / kThreadsPerRow;  // rows that are copied at once
    static_assert(kRows % kStep == 0 && kStep % 8 == 0);
    const int thread = thread_index() % kThreads, row = thread / kThreadsPerRow, first = thread % kThreadsPerRow;
    const int origin = place(row, first);
    ATTEND_UNROLL
    for (int i = 0; i < kRows; i += kStep) {
      const std::uint16_t* const from = address(row + i);
      ATTEND_UNROLL
      for (int chunk = 0; chunk < kChunks; chunk += kThreadsPerRow) {
        const int column = (first + chunk) * 8;
        copy_async_16(view_.sub(moved(origin, i, chunk), 8), from + column, from != nullptr && column < columns);
      }
    }
  }

  /// Does nothing: numbers are operands as they are.
  template <int kThreads>
  ATTEND_HOST_DEVICE void finish_copy() const {}

  /// Sets each chunk that this thread has copied by copy_from<kThreads>() to change(chunk), a Words4. The copies have
  /// arrived. Other threads see the chunks after a barrier.
  template <int kThreads, class Change>
  ATTEND_HOST_DEVICE void change_copied(const Change& change) const {
    constexpr int kThreadsPerRow = threads_per_row(kThreads), kStep = kThreads / kThreadsPerRow;
    const int thread = thread_index() % kThreads, origin = place(thread / kThreadsPerRow, thread % kThreadsPerRow);
    const Shared<Words4> chunks = view_.template as<Words4>();
    for (int i = 0; i < kRows; i += kStep) {
      ATTEND_UNROLL
      for (int chunk = 0; chunk < kChunks; chunk += kThreadsPerRow) {
        const int at = moved(origin, i, chunk) / 8;
        chunks.store(at, change(chunks.load(at)));
      }
    }
  }

  /// The chunk at (row + rows, chunk + chunks). row and chunk are below 8, rows and chunks multiples of 8.
  ATTEND_HOST_DEVICE Words4 load_chunk(int row, int chunk, int rows, int chunks) const {
    return view_.template as<Words4>().load(moved(place(row, chunk), rows, chunks) / 8);
  }

  /// A chunk of a row.
  ATTEND_HOST_DEVICE Shared<Words4> chunk(int row, int chunk) const {
    return view_.sub(place(row, chunk), 8).template as<Words4>();
  }

  /// The 16 × 16 numbers from (row, column) on as operand A of mma. row and column are multiples of 16.
  ATTEND_HOST_DEVICE void load_a(int row, int column, std::uint32_t (&a)[4]) const {
    const int lane = lane_index();
    load_matrix_x4(a, view_.sub(moved(place(lane % 16, lane / 16), row, column / 8), 8));
  }

  /// The transpose of the 16 × 16 numbers from (row, column) on as operand B of two mma: b[0] for the first 8 rows,
  /// b[1] for the others. Columns are summed over.
  ATTEND_HOST_DEVICE void load_b_of_rows(int row, int column, std::uint32_t (&b)[2][2]) const {
    const int lane = lane_index();
    std::uint32_t registers[4];
    load_matrix_x4(registers, view_.sub(moved(place(lane / 16 * 8 + lane % 8, lane / 8 % 2), row, column / 8), 8));
    split(registers, b);
  }

  /// The 16 × 16 numbers from (row, column) on as operand B of two mma: b[0] for the first 8 columns, b[1] for the
  /// others. Rows are summed over.
  ATTEND_HOST_DEVICE void load_b_of_columns(int row, int column, std::uint32_t (&b)[2][2]) const {
    const int lane = lane_index();
    std::uint32_t registers[4];
    load_matrix_x4_transposed(registers, view_.sub(moved(place(lane % 16, lane / 16), row, column / 8), 8));
    split(registers, b);
  }

 private:
  /// The place of a chunk.
  ATTEND_HOST_DEVICE static int place(int row, int chunk) {
    const int swizzle = kPermuted == 8 ? row & 7 : row >> 1 & 3;
    return row * kWidth + (chunk ^ swizzle) * 8;
  }
  /// The place of the chunk `rows` further down, a multiple of 8, and `chunks` to the right, a number without a bit of
  /// the chunk at `place`.
  ATTEND_HOST_DEVICE static int moved(int place, int rows, int chunks) {
    const int permuted = chunks & (kPermuted - 1);
    return (place ^ (permuted * 8)) + rows * kWidth + (chunks - permuted) * 8;
  }

  ATTEND_HOST_DEVICE static void split(const std::uint32_t (&registers)[4], std::uint32_t (&b)[2][2]) {
    ATTEND_UNROLL
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = registers[i];
  }

  Shared<std::uint16_t> view_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
