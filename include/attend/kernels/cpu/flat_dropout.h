// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Dropout of the numbers of a matrix.
///
/// The random number of entry (i, j) is word (j / 16) mod 4 of philox(seed; 16 · (j / 64) + j mod 16, i). The entry is
/// kept if the number is at least `threshold`. So the result depends on the seed and on the coordinates only. A vector
/// of counters gives four vectors of neighbouring entries.
struct FlatDropout {
  static constexpr int kGroup = 64;  // columns that 16 calls of philox serve

  std::uint64_t seed = 0, threshold = 0;  // a threshold of 0 keeps everything
  float kept = 1.0f;                      // the factor of an entry that is kept

  bool is_active() const { return threshold > 0; }
};

/// Dropout with this probability.
inline FlatDropout flat_dropout(double probability, std::uint64_t seed) {
  return {seed, attend::detail::dropout_threshold(probability),
          probability < 1.0 ? static_cast<float>(1.0 / (1.0 - probability)) : 0.0f};
}

/// factors[j] for the columns 64 · group + j, j = 0 … 63, of row i: `kept`, or 0 for an entry that is dropped.
struct FlatDropoutFactors {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const FlatDropout& dropout, std::int64_t i, std::int64_t group, float* factors) {
    constexpr int kLanes = FlatDropout::kGroup / 4;
    std::uint32_t words[4][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const attend::detail::PhiloxBlock block = attend::detail::philox(
          dropout.seed, static_cast<std::uint64_t>(kLanes * group + lane), static_cast<std::uint64_t>(i));
      for (int word = 0; word < 4; ++word) words[word][lane] = block.words[word];
    }
    for (int word = 0; word < 4; ++word)
      for (int lane = 0; lane < kLanes; ++lane)
        factors[kLanes * word + lane] = words[word][lane] >= dropout.threshold ? dropout.kept : 0.0f;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
