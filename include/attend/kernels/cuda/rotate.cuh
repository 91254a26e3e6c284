// SPDX-License-Identifier: MIT
#pragma once

// Rotary embeddings: queries and keys are rotated when a kernel loads them, and their gradients are rotated back before
// they are written.
//
// The kernels on tensor cores rotate a tile in shared memory. A warp rotates the rows that it has copied, between the
// wait for its copies and the barrier that the kernel has anyway. Each thread takes 8 pairs of a row at a time: two
// chunks of 8 numbers that are R/2 apart, or, where neighbours are pairs, 4 pairs of one chunk. Tables are read 16
// bytes at a time.
//
// Pairs are rotated in float32 and rounded once, to the type of the tensor, as attend::rotate() does.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/rotary_layout.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/shared.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Two numbers of a row.
template <class T>
struct Pair {
  T first, second;

  /// Rotated by an angle. The inverse is the rotation by −sin.
  ATTEND_HOST_DEVICE Pair rotated(T cos, T sin) const {
    Pair result;  // set one by one: nvcc 13.0 crashes at some lists of initializers
    result.first = first * cos - second * sin;
    result.second = second * cos + first * sin;
    return result;
  }
};

/// The tables of a batch entry as kernels compute with them: T is float, or double for float64 tensors.
template <class T>
class RotaryRows {
 public:
  ATTEND_HOST_DEVICE RotaryRows(const Call& call, const RotaryView& tables, std::int32_t batch)
      : cos_(static_cast<const T*>(tables.cos) + batch * tables.strides[0]),
        sin_(static_cast<const T*>(tables.sin) + batch * tables.strides[0]),
        row_stride_(tables.strides[1]),
        pairs_(call.rotary_dim / 2),
        is_interleaved_(call.rotary_layout == RotaryLayout::kInterleaved) {}

  ATTEND_HOST_DEVICE std::int32_t pairs() const { return pairs_; }
  ATTEND_HOST_DEVICE bool is_interleaved() const { return is_interleaved_; }

  /// The first number of row i.
  ATTEND_HOST_DEVICE const T* cos(std::int32_t i) const { return cos_ + i * row_stride_; }
  ATTEND_HOST_DEVICE const T* sin(std::int32_t i) const { return sin_ + i * row_stride_; }

  /// The columns of a pair. From column R on, the "pairs" are neighbours, which are not rotated.
  ATTEND_HOST_DEVICE std::int32_t first_column(std::int32_t pair) const {
    return is_interleaved_ || pair >= pairs_ ? 2 * pair : pair;
  }
  ATTEND_HOST_DEVICE std::int32_t second_column(std::int32_t pair) const {
    return is_interleaved_ || pair >= pairs_ ? 2 * pair + 1 : pair + pairs_;
  }

  /// A pair of row i, rotated, or rotated back. A pair that is not rotated stays as it is.
  ATTEND_HOST_DEVICE Pair<T> rotated(const Pair<T>& numbers, std::int32_t i, std::int32_t pair) const {
    if (pair >= pairs_) return numbers;
    return numbers.rotated(load_global(cos(i) + pair), load_global(sin(i) + pair));
  }
  ATTEND_HOST_DEVICE Pair<T> rotated_back(const Pair<T>& numbers, std::int32_t i, std::int32_t pair) const {
    if (pair >= pairs_) return numbers;
    return numbers.rotated(load_global(cos(i) + pair), -load_global(sin(i) + pair));
  }

 private:
  const T *cos_, *sin_;
  std::int64_t row_stride_;
  std::int32_t pairs_;
  bool is_interleaved_;
};

/// Number k of 4 numbers of a table.
ATTEND_HOST_DEVICE inline float number_of(const Words4& four, int k) {
  return __builtin_bit_cast(float, four.words[k]);
}

/// Rotates 8 pairs: number k of one chunk with number k of the other.
template <NumberType kType>
ATTEND_HOST_DEVICE void rotate_chunks(const Shared<Words4>& first, const Shared<Words4>& second, const float* cos,
                                      const float* sin) {
  Words4 a = first.load(0), b = second.load(0);
  ATTEND_UNROLL
  for (int half = 0; half < 2; ++half) {
    const Words4 c = load_global(reinterpret_cast<const Words4*>(cos) + half),
                 s = load_global(reinterpret_cast<const Words4*>(sin) + half);
    ATTEND_UNROLL
    for (int k = 0; k < 2; ++k) {
      std::uint32_t &of_a = a.words[2 * half + k], &of_b = b.words[2 * half + k];
      const Pair<float> low{low_of<kType>(of_a), low_of<kType>(of_b)}, high{high_of<kType>(of_a), high_of<kType>(of_b)};
      const Pair<float> low_rotated = low.rotated(number_of(c, 2 * k), number_of(s, 2 * k)),
                        high_rotated = high.rotated(number_of(c, 2 * k + 1), number_of(s, 2 * k + 1));
      of_a = pack<kType>(low_rotated.first, high_rotated.first);
      of_b = pack<kType>(low_rotated.second, high_rotated.second);
    }
  }
  first.store(0, a);
  second.store(0, b);
}

/// Rotates 4 pairs of neighbours.
template <NumberType kType>
ATTEND_HOST_DEVICE void rotate_chunk(const Shared<Words4>& chunk, const float* cos, const float* sin) {
  Words4 numbers = chunk.load(0);
  const Words4 c = load_global(reinterpret_cast<const Words4*>(cos)),
               s = load_global(reinterpret_cast<const Words4*>(sin));
  ATTEND_UNROLL
  for (int k = 0; k < 4; ++k) {
    const Pair<float> pair{low_of<kType>(numbers.words[k]), high_of<kType>(numbers.words[k])};
    const Pair<float> rotated = pair.rotated(number_of(c, k), number_of(s, k));
    numbers.words[k] = pack<kType>(rotated.first, rotated.second);
  }
  chunk.store(0, numbers);
}

/// Whether the kernels on tensor cores of this type rotate queries and keys. In tf32 they do not.
template <NumberType kType>
ATTEND_HOST_DEVICE bool rotates(const Call& call) {
  return kIsRounded<kType> && call.has_rotary();
}

/// Rotates the rows of a tile that the warp has copied by copy_from<kThreads>(). This thread's copies must have arrived
/// (copy_async_wait). table_row(r) is the row of the tables for row r of the tile; −1: the row is not rotated. Other
/// warps see the numbers after a barrier.
template <NumberType kType, int kThreads, class SharedTile, class TableRow>
ATTEND_HOST_DEVICE void rotate_tile(const Call& call, const RotaryView& tables, std::int32_t batch,
                                    const SharedTile& tile, const TableRow& table_row) {
  if constexpr (kIsRounded<kType>) {
    constexpr int kThreadsPerRow = SharedTile::threads_per_row(kThreads), kStep = kThreads / kThreadsPerRow;
    const RotaryRows<float> rows(call, tables, batch);
    const int thread = thread_index() % kThreads, steps = rows.pairs() / (rows.is_interleaved() ? 4 : 8);
    warp_barrier();  // the copies of the other lanes have arrived
    ATTEND_NO_UNROLL
    for (int row = thread / kThreadsPerRow; row < SharedTile::kTileRows; row += kStep) {
      const std::int32_t i = table_row(row);
      if (i < 0) continue;
      const float *const cos = rows.cos(i), *const sin = rows.sin(i);
      ATTEND_NO_UNROLL
      for (int k = thread % kThreadsPerRow; k < steps; k += kThreadsPerRow)
        if (rows.is_interleaved())
          rotate_chunk<kType>(tile.chunk(row, k), cos + 4 * k, sin + 4 * k);
        else
          rotate_chunks<kType>(tile.chunk(row, k), tile.chunk(row, k + steps), cos + 8 * k, sin + 8 * k);
    }
  }
}

/// The same for rows `first` and on of a head that copy_rows() has copied.
template <NumberType kType, int kThreads, class SharedTile>
ATTEND_HOST_DEVICE void rotate_rows(const Call& call, const RotaryView& tables, std::int32_t batch, std::int32_t first,
                                    const KeyRange& rows, const SharedTile& tile) {
  rotate_tile<kType, kThreads>(call, tables, batch, tile, [&](int row) {
    const std::int32_t i = first + row;
    return i >= rows.begin && i < rows.end ? i : -1;
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
