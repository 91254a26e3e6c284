// SPDX-License-Identifier: MIT

// Small kernels that call every function of instructions.cuh. ptx_test.py runs their PTX in the interpreter, also with
// faults in instructions.cuh.

#include <attend/macros.h>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/shared.cuh>

#include <cstdint>

namespace {

using attend::NumberType;
using attend::cuda::Shared;

constexpr int kRows = 64, kColumns = 16, kInner = 32;  // of a tile; 4 warps have 16 rows each
constexpr int kTileOfA = kRows * kInner, kTileOfB = kInner * kColumns;

/// c = a b with a (rows, inner) and b (inner, 16), and the sums of the rows of c. `inner` is a multiple of 8.
template <NumberType kType>
ATTEND_HOST_DEVICE void tile_product(const std::uint16_t* a, const std::uint16_t* b, std::uint32_t* c, float* sums,
                                     int rows, int inner) {
  namespace cuda = attend::cuda;
  const int thread = cuda::thread_index(), lane = cuda::lane_index(), first_row = cuda::block_index().x * kRows;
  const Shared<std::uint16_t> memory = cuda::shared_memory<std::uint16_t>(0, 2 * (kTileOfA + kTileOfB));
  const auto load = [&](int step) {
    const Shared<std::uint16_t> tile_a = memory.sub(step % 2 * kTileOfA, kTileOfA);
    const Shared<std::uint16_t> tile_b = memory.sub(2 * kTileOfA + step % 2 * kTileOfB, kTileOfB);
    for (int i = thread * 8; i < kTileOfA; i += 128 * 8) {
      const int row = first_row + i / kInner, k = step * kInner + i % kInner;
      const bool is_valid = row < rows && k < inner;
      cuda::copy_async_16(tile_a.sub(i, 8), is_valid ? a + row * inner + k : a, is_valid);
    }
    if (thread * 8 < kTileOfB) {
      const int k = step * kInner + thread * 8 / kColumns;
      cuda::copy_async_16(tile_b.sub(thread * 8, 8), k < inner ? b + k * kColumns + thread * 8 % kColumns : b,
                          k < inner);
    }
    cuda::copy_async_commit();
  };

  float sum[2][4] = {};
  const int steps = (inner + kInner - 1) / kInner;
  load(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      load(step + 1);
      cuda::copy_async_wait<1>();
    } else {
      cuda::copy_async_wait<0>();
    }
    cuda::barrier();
    const Shared<const std::uint16_t> tile_a = memory.sub(step % 2 * kTileOfA, kTileOfA);
    const Shared<const std::uint16_t> tile_b = memory.sub(2 * kTileOfA + step % 2 * kTileOfB, kTileOfB);
    for (int k = 0; k < kInner; k += 16) {
      std::uint32_t left[4], right[4];
      cuda::load_matrix_x4(left, tile_a.sub((cuda::warp_index() * 16 + lane % 16) * kInner + k + lane / 16 * 8, 8));
      cuda::load_matrix_x4_transposed(right, tile_b.sub((k + lane % 16) * kColumns + lane / 16 * 8, 8));
      cuda::multiply_add_16x8x16<kType>(sum[0], left, {right[0], right[1]});
      cuda::multiply_add_16x8x16<kType>(sum[1], left, {right[2], right[3]});
    }
    cuda::barrier();
  }

  for (int half = 0; half < 2; ++half) {
    const int row = first_row + cuda::warp_index() * 16 + lane / 4 + 8 * half;
    float of_row = 0;
    for (int tile = 0; tile < 2; ++tile) {
      of_row += sum[tile][2 * half] + 2 * sum[tile][2 * half + 1];
      if (row < rows)
        cuda::store_global(c + row * 8 + tile * 4 + lane % 4,
                           cuda::pack<kType>(sum[tile][2 * half], sum[tile][2 * half + 1]));
    }
    of_row += (1 + lane % 4) * cuda::shuffle_xor(of_row, 1);
    of_row += (1 + lane % 4) * cuda::shuffle_xor(of_row, 2);
    of_row -= cuda::shuffle(of_row, (lane + 1) % 32);
    if (row < rows) cuda::store_global(sums + row * 4 + lane % 4, of_row);
  }
}

/// c = a b with a (16, 8) and b (8, 8) in tf32, by one warp.
ATTEND_HOST_DEVICE void tf32_product(const float* a, const float* b, float* c) {
  namespace cuda = attend::cuda;
  const int lane = cuda::lane_index(), g = lane / 4, t = lane % 4;
  float sum[4] = {};
  std::uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = cuda::round_to_tf32(cuda::load_global(a + (g + i % 2 * 8) * 8 + t + i / 2 * 4));
  for (int i = 0; i < 2; ++i) right[i] = cuda::round_to_tf32(cuda::load_global(b + (t + 4 * i) * 8 + g));
  cuda::multiply_add_16x8x8_tf32(sum, left, right);
  for (int i = 0; i < 4; ++i) cuda::store_global(c + (g + i / 2 * 8) * 8 + 2 * t + i % 2, sum[i]);
}

/// Conversions and fast functions. Shared memory carries the numbers from one lane of a warp to another.
ATTEND_HOST_DEVICE void conversions(const float* x, std::uint32_t* bits, float* values) {
  namespace cuda = attend::cuda;
  const int thread = cuda::thread_index();
  const Shared<float> memory = cuda::shared_memory<float>(0, 64);
  memory.store(thread ^ 5, cuda::load_global(x + thread));
  cuda::warp_barrier();
  const float value = memory.load(thread ^ 5);
  constexpr NumberType kHalf = NumberType::kFloat16, kBrain = NumberType::kBFloat16;
  cuda::store_global(bits + 3 * thread, cuda::pack<kHalf>(value, 2 * value));
  cuda::store_global(bits + 3 * thread + 1, cuda::pack<kBrain>(value, 2 * value));
  cuda::store_global(bits + 3 * thread + 2, cuda::round_to_tf32(value));
  float* to = values + 5 * thread;
  cuda::store_global(to, cuda::float_of<kHalf>(cuda::round_number<kHalf>(value)));
  cuda::store_global(to + 1, cuda::float_of<kBrain>(cuda::round_number<kBrain>(value)));
  cuda::store_global(to + 2, cuda::exp2_fast(value));
  cuda::store_global(to + 3, cuda::any_in_warp(value > 1000) ? 1.0f : 0.0f);
  cuda::store_global(to + 4, static_cast<float>(cuda::shuffle_xor(static_cast<double>(value) + 1e9, 3) - 1e9));
}

/// Copies `rounds` × 128 words through the same 512 bytes of shared memory, by one warp. The second copy has each 8 × 8
/// matrix transposed. The address of ldmatrix is the same in all rounds, so a compiler would like to load once.
ATTEND_HOST_DEVICE void copy_in_rounds(const std::uint32_t* from, std::uint32_t* plain, std::uint32_t* transposed,
                                       int rounds) {
  namespace cuda = attend::cuda;
  const int lane = cuda::lane_index();
  const Shared<std::uint32_t> words = cuda::shared_memory<std::uint32_t>(0, 128);
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 4; ++i) words.store(i * 32 + lane, cuda::load_global(from + round * 128 + i * 32 + lane));
    cuda::warp_barrier();
    const Shared<const std::uint16_t> row = words.as<std::uint16_t>().sub(8 * lane, 8);
    std::uint32_t matrices[4];
    cuda::load_matrix_x4(matrices, row);
    for (int i = 0; i < 4; ++i) cuda::store_global(plain + round * 128 + i * 32 + lane, matrices[i]);
    cuda::load_matrix_x4_transposed(matrices, row);
    for (int i = 0; i < 4; ++i) cuda::store_global(transposed + round * 128 + i * 32 + lane, matrices[i]);
    cuda::warp_barrier();
  }
}

}  // namespace

extern "C" {

__global__ void copy_in_rounds_kernel(const std::uint32_t* from, std::uint32_t* plain, std::uint32_t* transposed,
                                      int rounds) {
  copy_in_rounds(from, plain, transposed, rounds);
}

__global__ void tile_product_bfloat16(const std::uint16_t* a, const std::uint16_t* b, std::uint32_t* c, float* sums,
                                      int rows, int inner) {
  tile_product<NumberType::kBFloat16>(a, b, c, sums, rows, inner);
}

__global__ void tile_product_float16(const std::uint16_t* a, const std::uint16_t* b, std::uint32_t* c, float* sums,
                                     int rows, int inner) {
  tile_product<NumberType::kFloat16>(a, b, c, sums, rows, inner);
}

__global__ void tf32_product_kernel(const float* a, const float* b, float* c) { tf32_product(a, b, c); }

__global__ void conversions_kernel(const float* x, std::uint32_t* bits, float* values) { conversions(x, bits, values); }
}
