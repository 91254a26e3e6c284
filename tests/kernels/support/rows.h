// SPDX-License-Identifier: MIT
#pragma once

// What the tests of kernels on the rows of matrices share.

#include "support/environment.h"

#include <attend/kernels/cpu/flat_dropout.h>
#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace attend::test {

using Numbers = std::vector<float>;

inline Numbers normal(std::int64_t size, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  Numbers numbers(static_cast<std::size_t>(size));
  for (float& number : numbers) number = distribution(generator);
  return numbers;
}

inline std::vector<double> zeros(std::int64_t size) { return std::vector<double>(static_cast<std::size_t>(size)); }

/// The largest difference, relative to the largest number.
inline double difference(const Numbers& result, const std::vector<double>& exact) {
  REQUIRE(result.size() == exact.size());
  double largest = 0.0, size = 1.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(result[i]) - exact[i]));
    size = std::max(size, std::abs(exact[i]));
  }
  return largest / size;
}

/// The factor of entry (i, j), as flat_dropout.h defines it.
inline double factor(const cpu::FlatDropout& dropout, std::int64_t i, std::int64_t j) {
  const auto block = attend::detail::philox(dropout.seed, static_cast<std::uint64_t>(16 * (j / 64) + j % 16),
                                            static_cast<std::uint64_t>(i));
  return block.words[j / 16 % 4] >= dropout.threshold ? static_cast<double>(dropout.kept) : 0.0;
}

/// Null for no numbers.
inline float* data(Numbers& numbers) { return numbers.empty() ? nullptr : numbers.data(); }

/// Calls action(name, set) for the instruction sets of this processor besides portable code; only for the one that the
/// environment variable ATTEND_TEST_ISA names, if it is set.
template <class Action>
void for_instruction_sets(const Action& action) {
  using simd::InstructionSet;
  for (const auto& [name, set] :
       {std::pair("avx2", InstructionSet::kAvx2), std::pair("avx512", InstructionSet::kAvx512),
        std::pair("neon", InstructionSet::kNeon)})
    if (simd::is_supported(set) && is_wanted_isa(name)) action(name, set);
}

/// Calls action(name, Isa{}) for vectors of every width, which the compiler emulates.
template <class Action>
void for_emulated_widths(const Action& action) {
  if (is_wanted_isa("portable16")) action("portable16", simd::PortableOf<16>{});
  if (is_wanted_isa("portable32")) action("portable32", simd::PortableOf<32>{});
  if (is_wanted_isa("portable64")) action("portable64", simd::PortableOf<64, 4>{});
}

}  // namespace attend::test
