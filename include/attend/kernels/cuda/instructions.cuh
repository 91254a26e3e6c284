// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cuda/float16.h>
#include <attend/kernels/cuda/host_block.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/version.h>
#include <attend/kernels/cuda/shared.cuh>

#include <cmath>
#include <cstdint>
#include <limits>

// Every instruction that only a GPU has, one function each. Each has a device branch and a host branch (host_block.h).
// No other header of kernels/cuda/ uses PTX, intrinsics, threadIdx or __shared__, and a test checks that. So all other
// code of a kernel also runs on the host. The last argument is the line of the call, which the reports of the host
// name.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

// ---- Where a thread is ----------------------------------------------------------------------------------------------

/// The index of this thread in its block. Blocks have one dimension.
ATTEND_HOST_DEVICE inline int thread_index() {
#if defined(__CUDA_ARCH__)
  return static_cast<int>(threadIdx.x);
#else
  return detail::running_block().thread_index();
#endif
}

/// The index of this thread in its warp.
ATTEND_HOST_DEVICE inline int lane_index() { return thread_index() % kWarpSize; }

/// The index of the warp of this thread in its block.
ATTEND_HOST_DEVICE inline int warp_index() { return thread_index() / kWarpSize; }

/// The place of this block in the grid.
ATTEND_HOST_DEVICE inline BlockIndex block_index() {
#if defined(__CUDA_ARCH__)
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
#else
  return detail::running_block().block_index();
#endif
}

// ---- Threads wait for each other ------------------------------------------------------------------------------------

/// Waits until all threads of the block are here.
ATTEND_HOST_DEVICE inline void barrier([[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  __syncthreads();
#else
  detail::running_block().barrier(place);
#endif
}

/// Waits until all lanes of the warp are here. Then each sees what the others have stored.
ATTEND_HOST_DEVICE inline void warp_barrier([[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  __syncwarp();
#else
  detail::running_block().warp_barrier(place);
#endif
}

// ---- Lanes exchange numbers -----------------------------------------------------------------------------------------

namespace detail {

ATTEND_HOST_DEVICE inline std::uint32_t exchange(Exchange exchange, std::uint32_t value, int lane,
                                                 [[maybe_unused]] Place place) {
#if defined(__CUDA_ARCH__)
  return exchange == Exchange::kXor ? __shfl_xor_sync(0xFFFFFFFF, value, lane) : __shfl_sync(0xFFFFFFFF, value, lane);
#else
  return running_block().exchange(exchange, value, lane, place);
#endif
}

template <class T>
ATTEND_HOST_DEVICE T exchange_number(Exchange kind, T value, int lane, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(T, exchange(kind, __builtin_bit_cast(std::uint32_t, value), lane, place));
  } else {
    std::uint64_t bits = __builtin_bit_cast(std::uint64_t, value);  // not const: nvcc 13.0 would crash
    const std::uint64_t low = exchange(kind, static_cast<std::uint32_t>(bits), lane, place);
    const std::uint64_t high = exchange(kind, static_cast<std::uint32_t>(bits >> 32), lane, place);
    return __builtin_bit_cast(T, high << 32 | low);
  }
}

}  // namespace detail

/// The value of the lane whose index differs in the bits of `mask`. T has 4 or 8 bytes.
template <class T>
ATTEND_HOST_DEVICE T shuffle_xor(T value, int mask, Place place = here()) {
  return detail::exchange_number(Exchange::kXor, value, mask, place);
}

/// The value of lane `from_lane`. T has 4 or 8 bytes.
template <class T>
ATTEND_HOST_DEVICE T shuffle(T value, int from_lane, Place place = here()) {
  return detail::exchange_number(Exchange::kFrom, value, from_lane, place);
}

/// Whether the condition holds in any lane of the warp.
ATTEND_HOST_DEVICE inline bool any_in_warp(bool condition, [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  return __any_sync(0xFFFFFFFF, condition) != 0;
#else
  return detail::running_block().any(condition, place);
#endif
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

/// 2^x, with an error of about 2 units in the last place. Subnormal numbers are 0.
ATTEND_HOST_DEVICE inline float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  const float power = std::exp2(x);
  return power < std::numeric_limits<float>::min() ? 0 : power;
#endif
}

/// The logarithm of x to base 2. Subnormal numbers are 0.
ATTEND_HOST_DEVICE inline float log2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float logarithm;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
  return logarithm;
#else
  return std::log2(std::fabs(x) < std::numeric_limits<float>::min() ? 0 : x);
#endif
}

/// Rounds to the nearest number of type kType, kFloat16 or kBFloat16, ties to even.
template <NumberType kType>
ATTEND_HOST_DEVICE std::uint16_t round_number(float value) {
  static_assert(kType == NumberType::kFloat16 || kType == NumberType::kBFloat16);
#if defined(__CUDA_ARCH__)
  std::uint16_t rounded;
  if constexpr (kType == NumberType::kFloat16)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return rounded;
#else
  return kType == NumberType::kFloat16 ? float16_of_float(value) : simd::BFloat16(value).bits;
#endif
}

/// The value of a number of type kType, kFloat16 or kBFloat16: exact.
template <NumberType kType>
ATTEND_HOST_DEVICE float float_of(std::uint16_t bits) {
  static_assert(kType == NumberType::kFloat16 || kType == NumberType::kBFloat16);
  if constexpr (kType == NumberType::kBFloat16) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  } else {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return float_of_float16(bits);
#endif
  }
}

/// Two numbers in one register, rounded to type kType, kFloat16 or kBFloat16.
template <NumberType kType>
ATTEND_HOST_DEVICE std::uint32_t pack(float low, float high) {
  static_assert(kType == NumberType::kFloat16 || kType == NumberType::kBFloat16);
#if defined(__CUDA_ARCH__)
  std::uint32_t packed;  // the instruction takes the upper half first
  if constexpr (kType == NumberType::kFloat16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return static_cast<std::uint32_t>(round_number<kType>(high)) << 16 | round_number<kType>(low);
#endif
}

/// The number in the lower half of a register.
template <NumberType kType>
ATTEND_HOST_DEVICE float low_of(std::uint32_t packed) {
  return float_of<kType>(static_cast<std::uint16_t>(packed));
}

/// The number in the upper half of a register.
template <NumberType kType>
ATTEND_HOST_DEVICE float high_of(std::uint32_t packed) {
  return float_of<kType>(static_cast<std::uint16_t>(packed >> 16));
}

/// Rounds to tf32, which has 10 bits of fraction: to nearest, ties away from zero. The result is the bits of a float.
ATTEND_HOST_DEVICE inline std::uint32_t round_to_tf32(float value) {
#if defined(__CUDA_ARCH__)
  std::uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
#else
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  return std::isfinite(value) ? (bits + 0x1000) & ~0x1FFFu : bits;
#endif
}

// ---- Tensor cores ---------------------------------------------------------------------------------------------------
//
// Entry (row, column) of a matrix and its place in the registers of lane l, with g = l / 4 and t = l % 4
// (PTX ISA, "Matrix fragments for mma.m16n8k16" and "for mma.m16n8k8"):
//
// - C, 16 × 8: register i holds row g + 8 (i / 2), column 2 t + i % 2.
// - A, 16 × 16, 16 bits: register i holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next.
// - B, 16 × 8, 16 bits: register i holds rows 2 t + 8 i and the next, column g.
// - A, 16 × 8, tf32: register i holds row g + 8 (i % 2), column t + 4 (i / 2).
// - B, 8 × 8, tf32: register i holds row t + 4 i, column g.

/// Loads four matrices of 8 × 8 numbers of 16 bits from shared memory: ldmatrix.
///
/// Lane l points to row l % 8 of matrix l / 8: `row` has 8 numbers, aligned to 16 bytes. Register i of lane l becomes
/// entries 2 (l % 4) and the next of row l / 4 of matrix i.
ATTEND_HOST_DEVICE inline void load_matrix_x4(std::uint32_t (&registers)[4], Shared<const std::uint16_t> row,
                                              [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(row.data())))
               : "memory");
#else
  if (row.size() < 8) detail::running_block().outside_view(0, 8, row.size(), place);
  detail::running_block().load_matrix_x4(registers, row.data(), /*is_transposed=*/false, place);
#endif
}

/// The same with each matrix transposed: register i of lane l becomes entries l / 4 of rows 2 (l % 4) and the next of
/// matrix i.
ATTEND_HOST_DEVICE inline void load_matrix_x4_transposed(std::uint32_t (&registers)[4], Shared<const std::uint16_t> row,
                                                         [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(row.data())))
               : "memory");
#else
  if (row.size() < 8) detail::running_block().outside_view(0, 8, row.size(), place);
  detail::running_block().load_matrix_x4(registers, row.data(), /*is_transposed=*/true, place);
#endif
}

/// c += a b with a (16, 16) and b (16, 8) of type kType, kFloat16 or kBFloat16, and c (16, 8) in float: mma.
template <NumberType kType>
ATTEND_HOST_DEVICE void multiply_add_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                             [[maybe_unused]] Place place = here()) {
  static_assert(kType == NumberType::kFloat16 || kType == NumberType::kBFloat16);
#if defined(__CUDA_ARCH__)
  if constexpr (kType == NumberType::kFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  detail::running_block().multiply_add(kType, c, a, b, place);
#endif
}

/// c += a b with a (16, 8) and b (8, 8) in tf32, and c (16, 8) in float: mma. The registers hold bits of floats.
///
/// tf32 has 10 bits of fraction. The lowest 13 bits of the registers do not count, so give it numbers that
/// round_to_tf32() has rounded.
ATTEND_HOST_DEVICE inline void multiply_add_16x8x8_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                                        const std::uint32_t (&b)[2],
                                                        [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  detail::running_block().multiply_add(NumberType::kFloat32, c, a, b, place);
#endif
}

// ---- Copies from global to shared memory that other instructions do not wait for ------------------------------------

/// Starts to copy 16 bytes to the first 16 bytes of `to`: cp.async. Both are aligned to 16 bytes. If `is_valid` is
/// false, zeros are stored and nothing is read.
template <class T>
ATTEND_HOST_DEVICE void copy_async_16(Shared<T> to, const T* from, bool is_valid = true,
                                      [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to.data()))),
               "l"(__cvta_generic_to_global(from)), "r"(is_valid ? 16 : 0)
               : "memory");
#else
  constexpr int kCount = 16 / sizeof(T);
  if (to.size() < kCount) detail::running_block().outside_view(0, kCount, to.size(), place);
  detail::running_block().copy_async_16(to.data(), from, is_valid, place);
#endif
}

/// Makes the copies of this thread since the last commit a group. It may have no copies.
ATTEND_HOST_DEVICE inline void copy_async_commit([[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  detail::running_block().copy_async_commit(place);
#endif
}

/// Waits until at most the last kPending groups of this thread are under way. Other threads see the copies after a
/// barrier.
template <int kPending>
ATTEND_HOST_DEVICE void copy_async_wait([[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  detail::running_block().copy_async_wait(kPending, place);
#endif
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

/// `count` entries of the block's dynamic shared memory, from byte `offset` on. `offset` is a multiple of 16.
template <class T>
ATTEND_HOST_DEVICE Shared<T> shared_memory(int offset, int count, [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  extern __shared__ __align__(128) unsigned char attend_shared_memory[];
  return {reinterpret_cast<T*>(attend_shared_memory + offset), count};
#else
  const std::int64_t bytes = static_cast<std::int64_t>(count) * static_cast<std::int64_t>(sizeof(T));
  return {static_cast<T*>(detail::running_block().shared_memory(offset, bytes, place)), count};
#endif
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
