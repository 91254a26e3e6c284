// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The four random words of one call of Philox.
struct PhiloxBlock {
  std::uint32_t words[4];
};

inline constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
inline constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;
inline constexpr int kPhiloxRounds = 10;

/// Philox4x32-10, a function from seed and counter to four random words. It has no state: the same arguments give the
/// same words on every machine, in any order, on any number of threads, on the CPU and on the GPU.
///
/// Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
///
/// Example:
///   PhiloxBlock block = philox(/*seed=*/7, /*counter_low=*/draw, /*counter_high=*/sample);
ATTEND_HOST_DEVICE inline PhiloxBlock philox(std::uint64_t seed, std::uint64_t counter_low,
                                             std::uint64_t counter_high) {
  PhiloxBlock block{{static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
                     static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)}};
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{kPhiloxMultiplier0} * block.words[0];
    const std::uint64_t product1 = std::uint64_t{kPhiloxMultiplier1} * block.words[2];
    block = {{static_cast<std::uint32_t>(product1 >> 32) ^ block.words[1] ^ key0, static_cast<std::uint32_t>(product1),
              static_cast<std::uint32_t>(product0 >> 32) ^ block.words[3] ^ key1,
              static_cast<std::uint32_t>(product0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return block;
}

/// Dropout keeps a weight if its random word is at least this threshold: dropout · 2³², so that 1 keeps none.
inline std::uint64_t dropout_threshold(double dropout) {
  return static_cast<std::uint64_t>(std::llround(std::ldexp(dropout, 32)));
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
