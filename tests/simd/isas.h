// SPDX-License-Identifier: MIT
#pragma once

// The instruction sets that the tests of simd/ run on: all, or the one that ATTEND_TEST_ISA names.

#include "support/environment.h"

#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace attend::test {

template <class Isa>
void run_on(const char* name, const auto& check) {
  if (!Isa::is_supported() || !is_wanted_isa(name)) return;  // dispatch_test.cpp checks that this is right
  CAPTURE(name);
  check(Isa{});
}

/// Calls check(Isa{}) for the baseline with vectors and panels as in SSE, AVX2 and AVX-512, and for each instruction
/// set of this processor.
void for_each_isa(const auto& check) {
  using namespace attend::simd;
  run_on<Portable>("portable16", check);
  run_on<PortableOf<32, 2, 6>>("portable32", check);
  run_on<PortableOf<64, 4>>("portable64", check);
#if defined(__x86_64__)
  run_on<Avx2>("avx2", check);
  run_on<Avx512>("avx512", check);
#elif defined(__aarch64__)
  run_on<Neon>("neon", check);
#endif
}

/// The same for each instruction set of this processor that has dot products of bfloat16.
void for_each_bf16_isa([[maybe_unused]] const auto& check) {
#if defined(__x86_64__)
  run_on<attend::simd::Avx512Bf16>("avx512_bf16", check);
#elif defined(ATTEND_HAS_NEON_BF16)
  run_on<attend::simd::NeonBf16>("neon_bf16", check);
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
