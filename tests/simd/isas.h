// SPDX-License-Identifier: MIT
#pragma once

// The instruction sets that the tests of simd/ run on.

#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace attend::test {

template <class Isa>
void run_on(const char* name, const auto& check) {
  if (!Isa::is_supported()) return;  // dispatch_test.cpp checks that this is right
  CAPTURE(name);
  check(Isa{});
}

/// Calls check(Isa{}) for the baseline with vectors and panels as in SSE, AVX2 and AVX-512, and for each instruction
/// set of this processor.
void for_each_isa(const auto& check) {
  using namespace attend::simd;
  run_on<Portable>("16 bytes", check);
  run_on<PortableOf<32, 2, 6>>("32 bytes", check);
  run_on<PortableOf<64, 4>>("64 bytes", check);
#if defined(__x86_64__)
  run_on<Avx2>("AVX2", check);
  run_on<Avx512>("AVX-512", check);
#elif defined(__aarch64__)
  run_on<Neon>("NEON", check);
#endif
}

/// The same for each instruction set of this processor that has dot products of bfloat16.
void for_each_bf16_isa([[maybe_unused]] const auto& check) {
#if defined(__x86_64__)
  run_on<attend::simd::Avx512Bf16>("AVX-512 with bfloat16", check);
#elif defined(ATTEND_HAS_NEON_BF16)
  run_on<attend::simd::NeonBf16>("NEON with bfloat16", check);
#endif
}

/// Normally distributed numbers.
template <class T>
std::vector<T> random_numbers(std::size_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(count);
  for (T& number : numbers) number = static_cast<T>(normal(generator));
  return numbers;
}

}  // namespace attend::test
