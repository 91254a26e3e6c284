// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/instructions.cuh>

#include <algorithm>
#include <cstdint>
#include <cstring>

// What ldmatrix and mma do with the registers of the 32 lanes of a warp. tests/kernels/cuda/lane_maps_test.cpp compares
// these maps with statements of others.

namespace attend::test {

/// An entry of a matrix.
struct MatrixEntry {
  int row, column;
  bool operator==(const MatrixEntry&) const = default;
};

/// Entry of c (16, 8) in register i of a lane.
constexpr MatrixEntry entry_of_c(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }
/// Entry of a (16, 16) in half `half` of register i.
constexpr MatrixEntry entry_of_a(int lane, int i, int half) {
  return {lane / 4 + i % 2 * 8, lane % 4 * 2 + half + i / 2 * 8};
}
/// Entry of b (16, 8) in half `half` of register i.
constexpr MatrixEntry entry_of_b(int lane, int i, int half) { return {lane % 4 * 2 + half + i * 8, lane / 4}; }
/// Entry of a (16, 8) in tf32 in register i.
constexpr MatrixEntry entry_of_tf32_a(int lane, int i) { return {lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4}; }
/// Entry of b (8, 8) in tf32 in register i.
constexpr MatrixEntry entry_of_tf32_b(int lane, int i) { return {lane % 4 + i * 4, lane / 4}; }
/// Entry of a matrix (8, 8) that ldmatrix puts into half `half` of its register. With .trans: of the transposed matrix.
constexpr MatrixEntry entry_of_loaded(int lane, int half) { return {lane / 4, lane % 4 * 2 + half}; }

/// The registers of the 32 lanes that call multiply_add_….
struct MultiplyAddArguments {
  float* c[cuda::kWarpSize];
  const std::uint32_t* a[cuda::kWarpSize];
  const std::uint32_t* b[cuda::kWarpSize];
};

namespace detail {

using Floats4 = float __attribute__((vector_size(16)));

// c += a b, (16, kDepth) times (kDepth, 8).
template <int kDepth>
void multiply_add_matrices(float (&c)[16][8], const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  Floats4 right[kDepth][2];
  std::memcpy(right, b, sizeof b);
  for (int i = 0; i < 16; ++i) {
    Floats4 sum[2] = {};
    for (int k = 0; k < kDepth; ++k) {
      sum[0] += a[i][k] * right[k][0];
      sum[1] += a[i][k] * right[k][1];
    }
    for (int j = 0; j < 8; ++j) c[i][j] += sum[j / 4][j % 4];
  }
}

inline float half_of_register(NumberType type, std::uint32_t bits, int half) {
  const auto number = static_cast<std::uint16_t>(bits >> (16 * half));
  return type == NumberType::kFloat16 ? cuda::float_of<NumberType::kFloat16>(number)
                                      : cuda::float_of<NumberType::kBFloat16>(number);
}

}  // namespace detail

/// mma: c += a b in the registers of all lanes. kFloat32 is tf32, which ignores the lowest 13 bits of a float.
inline void multiply_add(NumberType type, const MultiplyAddArguments& lanes) {
  const bool is_tf32 = type == NumberType::kFloat32;
  float c[16][8], a[16][16], b[16][8];
  for (int lane = 0; lane < cuda::kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MatrixEntry in_c = entry_of_c(lane, i);
      c[in_c.row][in_c.column] = lanes.c[lane][i];
      if (is_tf32) {
        const MatrixEntry in_a = entry_of_tf32_a(lane, i);
        a[in_a.row][in_a.column] = __builtin_bit_cast(float, lanes.a[lane][i] & ~0x1FFFu);
        continue;
      }
      for (int half = 0; half < 2; ++half) {
        const MatrixEntry in_a = entry_of_a(lane, i, half);
        a[in_a.row][in_a.column] = detail::half_of_register(type, lanes.a[lane][i], half);
      }
    }
    for (int i = 0; i < 2; ++i) {
      if (is_tf32) {
        const MatrixEntry in_b = entry_of_tf32_b(lane, i);
        b[in_b.row][in_b.column] = __builtin_bit_cast(float, lanes.b[lane][i] & ~0x1FFFu);
        continue;
      }
      for (int half = 0; half < 2; ++half) {
        const MatrixEntry in_b = entry_of_b(lane, i, half);
        b[in_b.row][in_b.column] = detail::half_of_register(type, lanes.b[lane][i], half);
      }
    }
  }
  if (is_tf32) {
    float short_a[16][8], short_b[8][8];
    for (int i = 0; i < 16; ++i) std::memcpy(short_a[i], a[i], sizeof short_a[i]);
    std::memcpy(short_b, b, sizeof short_b);
    detail::multiply_add_matrices<8>(c, short_a, short_b);
  } else {
    detail::multiply_add_matrices<16>(c, a, b);
  }
  for (int lane = 0; lane < cuda::kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i) {
      const MatrixEntry in_c = entry_of_c(lane, i);
      lanes.c[lane][i] = c[in_c.row][in_c.column];
    }
}

/// ldmatrix: lane l points to row l % 8 of matrix l / 8, and gets a register of each matrix.
inline void load_matrix_x4(const void* const (&rows)[cuda::kWarpSize],
                           std::uint32_t* const (&registers)[cuda::kWarpSize], bool is_transposed) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t entries[8][8];
    for (int row = 0; row < 8; ++row) std::memcpy(entries[row], rows[8 * matrix + row], sizeof entries[row]);
    for (int lane = 0; lane < cuda::kWarpSize; ++lane) {
      std::uint32_t loaded = 0;
      for (int half = 0; half < 2; ++half) {
        const MatrixEntry from = entry_of_loaded(lane, half);
        const std::uint16_t entry = is_transposed ? entries[from.column][from.row] : entries[from.row][from.column];
        loaded |= static_cast<std::uint32_t>(entry) << (16 * half);
      }
      registers[lane][matrix] = loaded;
    }
  }
}

/// How many wavefronts of shared memory an ldmatrix takes, 4 at best: the 8 rows of a matrix take one if they lie in
/// different banks.
inline int wavefronts_of(const std::int64_t (&offsets)[cuda::kWarpSize]) {
  int total = 0;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::int64_t rows[8][8];  // the different rows of 16 bytes in each group of 4 banks
    int counts[8] = {}, most = 0;
    for (int row = 0; row < 8; ++row) {
      const std::int64_t offset = offsets[8 * matrix + row], bank = offset / 16 % 8;
      bool is_new = true;
      for (int i = 0; i < counts[bank]; ++i) is_new = is_new && rows[bank][i] != offset;
      if (is_new) rows[bank][counts[bank]++] = offset;
      most = std::max(most, counts[bank]);
    }
    total += most;
  }
  return total;
}

}  // namespace attend::test
