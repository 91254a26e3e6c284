// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/tf32_tile.cuh>
#include <attend/kernels/cuda/tile.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// How numbers of type kType are multiplied on tensor cores. Sums are float32.
///
/// The sums of a warp are 16 rows of operand C of mma, n after n: sum 4 n + i of a thread is number i of tile n of
/// 16 × 8. A run is kRun neighbouring columns of a row that a thread has.
template <NumberType kType>
struct Operands {
  static_assert(kType == NumberType::kFloat16 || kType == NumberType::kBFloat16);
  static constexpr int kDepth = 16;       ///< how many products an mma adds to a sum
  static constexpr int kColumnTiles = 2;  ///< of load_b_of_columns(), each with 8 columns
  static constexpr int kRun = 2;

  template <int kRows, int kWidth>
  using Tile = SharedTile<kRows, kWidth>;

  ATTEND_HOST_DEVICE static void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                              Place place) {
    multiply_add_16x8x16<kType>(c, a, b, place);
  }

  /// Sums over kDepth columns as operand A, whose columns are summed over together with the rows of
  /// load_b_of_columns(). sum(k) is sum k of these columns.
  template <class Sum>
  ATTEND_HOST_DEVICE static void a_of_sums(const Sum& sum, std::uint32_t (&a)[4]) {
    ATTEND_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = pack<kType>(sum(2 * i), sum(2 * i + 1));
  }

  /// The first column of a run, and the sum of its column j in the upper half of the rows. Sums of the lower half come
  /// 2 later.
  ATTEND_HOST_DEVICE static int column_of_run(int run) { return run * 8 + lane_index() % 4 * 2; }
  ATTEND_HOST_DEVICE static constexpr int sum_of_run(int run, int j) { return 4 * run + j; }

  /// A register of an operand, in which numbers that are not finite are 0.
  ATTEND_HOST_DEVICE static std::uint32_t finite_or_zero(std::uint32_t packed) {
    constexpr std::uint32_t kLow = kType == NumberType::kBFloat16 ? 0x7F80 : 0x7C00, kHigh = kLow << 16;
    const std::uint32_t low = (packed & kLow) == kLow ? 0 : packed & 0xFFFF;
    const std::uint32_t high = (packed & kHigh) == kHigh ? 0 : packed & 0xFFFF0000;
    return low | high;
  }
};

/// float32 in tf32.
template <>
struct Operands<NumberType::kFloat32> {
  static constexpr int kDepth = 8, kColumnTiles = 4, kRun = 4;

  template <int kRows, int kWidth>
  using Tile = Tf32Tile<kRows, kWidth>;

  ATTEND_HOST_DEVICE static void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                              Place place) {
    multiply_add_16x8x8_tf32(c, a, b, place);
  }

  template <class Sum>
  ATTEND_HOST_DEVICE static void a_of_sums(const Sum& sum, std::uint32_t (&a)[4]) {
    // A thread has columns 2 t and 2 t + 1 of the sums, and columns t and t + 4 of the operand. So the columns change
    // their places, as the rows of Tf32Tile::load_b_of_columns() do.
    ATTEND_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = round_to_tf32(sum(i % 2 * 2 + i / 2));
  }

  ATTEND_HOST_DEVICE static int column_of_run(int run) { return run / 2 * 32 + lane_index() % 4 * 8 + run % 2 * 4; }
  ATTEND_HOST_DEVICE static constexpr int sum_of_run(int run, int j) { return 4 * (run / 2 * 4 + j) + run % 2; }

  ATTEND_HOST_DEVICE static std::uint32_t finite_or_zero(std::uint32_t bits) {
    constexpr std::uint32_t kExponent = 0x7F800000;
    return (bits & kExponent) == kExponent ? 0 : bits;
  }
};

/// mma with the numbers first … first + 3 of `sums`.
template <NumberType kType, int kCount>
ATTEND_HOST_DEVICE void multiply_add(float (&sums)[kCount], int first, const std::uint32_t (&a)[4],
                                     const std::uint32_t (&b)[2], Place place = here()) {
  float c[4];
  ATTEND_UNROLL
  for (int i = 0; i < 4; ++i) c[i] = sums[first + i];
  Operands<kType>::multiply_add(c, a, b, place);
  ATTEND_UNROLL
  for (int i = 0; i < 4; ++i) sums[first + i] = c[i];
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
