// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/random_words.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Numbers between −1 and 1: the middles of 2²³ equal intervals, which float32 represents exactly.
class UniformStream {
 public:
  /// The stream of one sample, from the Philox counters (first_counter, sample) on.
  UniformStream(std::uint64_t seed, std::uint64_t first_counter, std::int64_t sample)
      : words_(seed, first_counter, sample) {}

  /// Writes the next numbers of the stream.
  void fill(float* numbers, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
      numbers[i] = static_cast<float>(2 * static_cast<std::int32_t>(words_() >> 9) + 1 - (1 << 23)) * 0x1p-23f;
  }

 private:
  RandomWords words_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
