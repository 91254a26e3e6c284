// SPDX-License-Identifier: MIT

// The lane maps of mma and ldmatrix, compared element by element with two statements of others. A map that is wrong in
// the same way where numbers are loaded and where they are multiplied gives right results, so that no other test of the
// kernels can find it.

#include <doctest/doctest.h>

#include "support/cuda_block.h"

#include <attend/kernels/cuda/instructions.cuh>

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

namespace attend::test {
namespace {

// ---- CuTe's layouts -------------------------------------------------------------------------------------------------

// One mode of a CuTe layout: an index is split by `shape`, first number fastest, and each part counts `stride`.
struct CuteMode {
  std::vector<int> shape, stride;

  int size() const {
    int product = 1;
    for (const int extent : shape) product *= extent;
    return product;
  }
  int operator()(int index) const {
    int sum = 0;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      sum += index % shape[i] * stride[i];
      index /= shape[i];
    }
    return sum;
  }
};

// A map of (thread, value) to an index, in which the first coordinate of the matrix counts 1.
struct CuteLayout {
  CuteMode threads, values;

  int operator()(int thread, int value) const { return threads(thread) + values(value); }
};

// NVIDIA/cutlass, commit 468e0eaf, include/cute/atom/mma_traits_sm80.hpp: MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>
// and <SM80_16x8x8_F32TF32TF32F32_TN>. The index of c is m + 16 n, of a m + 16 k, of b n + 8 k.
const CuteLayout kCuteC = {{{4, 8}, {32, 1}}, {{2, 2}, {16, 8}}};
const CuteLayout kCuteA = {{{4, 8}, {32, 1}}, {{2, 2, 2}, {16, 8, 128}}};
const CuteLayout kCuteB = {{{4, 8}, {16, 1}}, {{2, 2}, {8, 64}}};
const CuteLayout kCuteTf32A = {{{4, 8}, {16, 1}}, {{2, 2}, {8, 64}}};
const CuteLayout kCuteTf32B = {{{4, 8}, {8, 1}}, {{2}, {32}}};

// The same repository, commit 474c1fd4, include/cute/atom/copy_traits_sm75.hpp: DstLayout of SM75_U32x4_LDSM_N and
// SM75_U16x8_LDSM_T. The index is a bit of the 32 rows of 128 bits that the lanes point to.
const CuteLayout kCuteLoad = {{{32}, {32}}, {{32, 4}, {1, 1024}}};
const CuteLayout kCuteLoadTransposed = {{{4, 8}, {256, 16}}, {{16, 2, 4}, {1, 128, 1024}}};

// ---- Triton's linear layouts ----------------------------------------------------------------------------------------

// A map in which each bit of the register and of the lane adds (by xor) a fixed row and column.
struct TritonLayout {
  std::vector<MatrixEntry> registers, lanes;

  MatrixEntry operator()(int lane, int value) const {
    MatrixEntry sum = {0, 0};
    const auto add = [&](const std::vector<MatrixEntry>& bases, int index) {
      for (std::size_t bit = 0; bit < bases.size(); ++bit)
        if ((index >> bit & 1) != 0) {
          sum.row ^= bases[bit].row;
          sum.column ^= bases[bit].column;
        }
    };
    add(registers, value);
    add(lanes, lane);
    return sum;
  }
};

// Printed by Triton 3.9.0, GluonOpBuilder.to_linear_layout(), for NVMMADistributedLayout([2, 0], [1, 1], [16, 8]) and
// its DotOperandLayout with k_width 2 (16 bits) and 1 (tf32).
const TritonLayout kTritonC = {{{0, 1}, {8, 0}}, {{0, 2}, {0, 4}, {1, 0}, {2, 0}, {4, 0}}};
const TritonLayout kTritonA = {{{0, 1}, {8, 0}, {0, 8}}, {{0, 2}, {0, 4}, {1, 0}, {2, 0}, {4, 0}}};
const TritonLayout kTritonB = {{{1, 0}, {8, 0}}, {{2, 0}, {4, 0}, {0, 1}, {0, 2}, {0, 4}}};
const TritonLayout kTritonTf32A = {{{8, 0}, {0, 4}}, {{0, 1}, {0, 2}, {1, 0}, {2, 0}, {4, 0}}};
const TritonLayout kTritonTf32B = {{{4, 0}}, {{1, 0}, {2, 0}, {0, 1}, {0, 2}, {0, 4}}};

// ---- The comparison -------------------------------------------------------------------------------------------------

// A map of ours as (lane, value), where the halves of a register are two values.
using Map = MatrixEntry (*)(int lane, int value);
MatrixEntry map_c(int lane, int value) { return entry_of_c(lane, value); }
MatrixEntry map_a(int lane, int value) { return entry_of_a(lane, value / 2, value % 2); }
MatrixEntry map_b(int lane, int value) { return entry_of_b(lane, value / 2, value % 2); }
MatrixEntry map_tf32_a(int lane, int value) { return entry_of_tf32_a(lane, value); }
MatrixEntry map_tf32_b(int lane, int value) { return entry_of_tf32_b(lane, value); }

struct Operand {
  const char* name;
  Map map;
  int rows, values;
  bool is_column_first;  // CuTe's index counts 1 per column
  const CuteLayout* cute;
  const TritonLayout* triton;
};
const Operand kOperands[] = {{"c", map_c, 16, 4, false, &kCuteC, &kTritonC},
                             {"a", map_a, 16, 8, false, &kCuteA, &kTritonA},
                             {"b", map_b, 16, 4, true, &kCuteB, &kTritonB},
                             {"a in tf32", map_tf32_a, 16, 4, false, &kCuteTf32A, &kTritonTf32A},
                             {"b in tf32", map_tf32_b, 8, 2, true, &kCuteTf32B, &kTritonTf32B}};

// One warp that computes c += a b in the registers of its lanes.
template <NumberType kType>
std::vector<float> product_of(const std::vector<float>& a, const std::vector<float>& b, int depth) {
  std::vector<float> c(16 * 8);
  for (int i = 0; i < 16 * 8; ++i) c[static_cast<std::size_t>(i)] = static_cast<float>(i);
  GlobalMemory memory;
  const CudaReport report = run_on_host({.threads = 32}, memory, [&] {
    const int lane = cuda::lane_index();
    const bool is_tf32 = kType == NumberType::kFloat32;
    std::uint32_t in_a[4] = {}, in_b[2] = {};
    const auto put = [&](std::uint32_t& bits, float value, int half) {
      if constexpr (kType == NumberType::kFloat32)
        bits = __builtin_bit_cast(std::uint32_t, value);
      else
        bits |= static_cast<std::uint32_t>(cuda::round_number<kType>(value)) << (16 * half);
    };
    const int halves = is_tf32 ? 1 : 2;
    for (int value = 0; value < 4 * halves; ++value) {
      const int index = (is_tf32 ? kCuteTf32A : kCuteA)(lane, value);
      put(in_a[value / halves], a[static_cast<std::size_t>(index % 16 * depth + index / 16)], value % halves);
    }
    for (int value = 0; value < 2 * halves; ++value) {
      const int index = (is_tf32 ? kCuteTf32B : kCuteB)(lane, value);
      put(in_b[value / halves], b[static_cast<std::size_t>(index)], value % halves);
    }
    float in_c[4];
    const auto entry = [&](int value) -> float& {
      const int index = kCuteC(lane, value);
      return c[static_cast<std::size_t>(index % 16 * 8 + index / 16)];
    };
    for (int value = 0; value < 4; ++value) in_c[value] = entry(value);
    if constexpr (kType == NumberType::kFloat32)
      cuda::multiply_add_16x8x8_tf32(in_c, in_a, in_b);
    else
      cuda::multiply_add_16x8x16<kType>(in_c, in_a, in_b);
    for (int value = 0; value < 4; ++value) entry(value) = in_c[value];
  });
  CHECK(report.text() == "");
  CHECK(report.multiply_adds == 1);
  return c;
}

template <NumberType kType>
void check_product(int depth) {
  std::mt19937 generator(1);
  std::uniform_int_distribution<int> integer(-100, 100);
  std::vector<float> a(static_cast<std::size_t>(16 * depth)), b(static_cast<std::size_t>(depth * 8));
  for (float& number : a) number = static_cast<float>(integer(generator));
  for (float& number : b) number = static_cast<float>(integer(generator));
  const std::vector<float> c = product_of<kType>(a, b, depth);
  int wrong = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      int sum = 8 * i + j;
      for (int k = 0; k < depth; ++k)
        sum += static_cast<int>(a[static_cast<std::size_t>(i * depth + k)] * b[static_cast<std::size_t>(k * 8 + j)]);
      wrong += c[static_cast<std::size_t>(8 * i + j)] == static_cast<float>(sum) ? 0 : 1;
    }
  CHECK(wrong == 0);
}

// 32 rows of 8 numbers, and what each lane gets of them.
std::vector<std::uint32_t> loaded(bool is_transposed) {
  std::vector<std::uint32_t> registers(32 * 4);
  GlobalMemory memory;
  const CudaReport report = run_on_host({.threads = 32, .shared_bytes = 512}, memory, [&] {
    const int lane = cuda::lane_index();
    const cuda::Shared<std::uint16_t> rows = cuda::shared_memory<std::uint16_t>(0, 256);
    for (int i = 0; i < 8; ++i) rows.store(8 * lane + i, static_cast<std::uint16_t>(8 * lane + i));
    cuda::warp_barrier();
    std::uint32_t own[4];
    if (is_transposed)
      cuda::load_matrix_x4_transposed(own, rows.sub(8 * lane, 8));
    else
      cuda::load_matrix_x4(own, rows.sub(8 * lane, 8));
    for (int i = 0; i < 4; ++i) registers[static_cast<std::size_t>(4 * lane + i)] = own[i];
  });
  CHECK(report.text() == "");
  CHECK(report.matrix_loads == 1);
  CHECK(report.wavefronts == 4);
  return registers;
}

TEST_CASE("lane maps of multiply_add_16x8x16 and multiply_add_16x8x8_tf32: the layouts of CuTe and of Triton") {
  for (const Operand& operand : kOperands) {
    CAPTURE(operand.name);
    for (int lane = 0; lane < cuda::kWarpSize; ++lane)
      for (int value = 0; value < operand.values; ++value) {
        CAPTURE(lane);
        CAPTURE(value);
        const MatrixEntry entry = operand.map(lane, value);
        CHECK((entry == (*operand.triton)(lane, value)));
        // b is indexed by n + 8 k, and its rows are k.
        const int index = (*operand.cute)(lane, value);
        CHECK(index == (operand.is_column_first ? entry.column + 8 * entry.row : entry.row + 16 * entry.column));
      }
  }
}

TEST_CASE("lane maps of load_matrix_x4 and load_matrix_x4_transposed: the layouts of CuTe") {
  for (const bool is_transposed : {false, true}) {
    CAPTURE(is_transposed);
    const std::vector<std::uint32_t> registers = loaded(is_transposed);
    for (int lane = 0; lane < cuda::kWarpSize; ++lane)
      for (int half = 0; half < 8; ++half) {
        CAPTURE(lane);
        CAPTURE(half);
        const int bit = (is_transposed ? kCuteLoadTransposed : kCuteLoad)(lane, 16 * half);
        const std::uint32_t bits = registers[static_cast<std::size_t>(4 * lane + half / 2)] >> (16 * (half % 2));
        CHECK((bits & 0xFFFF) == static_cast<std::uint32_t>(bit / 16));
      }
  }
}

TEST_CASE("multiply_add_16x8x16 and multiply_add_16x8x8_tf32: the product of matrices laid out by CuTe") {
  check_product<NumberType::kBFloat16>(16);
  check_product<NumberType::kFloat16>(16);
  check_product<NumberType::kFloat32>(8);
}

TEST_CASE("multiply_add_16x8x8_tf32: the lowest 13 bits of a factor do not count") {
  std::vector<float> a(16 * 8, 1), b(8 * 8, 1);
  a[0] = __builtin_bit_cast(float, 0x3F801FFFu);  // 1 + 2^-10 - 2^-23
  CHECK(product_of<NumberType::kFloat32>(a, b, 8)[0] == 8);
}

}  // namespace
}  // namespace attend::test
