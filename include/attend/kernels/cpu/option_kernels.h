// SPDX-License-Identifier: MIT
#pragma once

// The options of a call, on a tile of scores.

#include <attend/detail/philox.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// Loops over the numbers of a row have a constant number of steps, so that the compilers vectorize them.
inline constexpr int kRun = 16;

/// score = softcap · tanh(score / softcap). Writes the derivatives, unless `derivatives` is null.
template <class T>
struct SoftcapScores {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, T* derivatives, int keys, int columns, T softcap) {
    using Vec = attend::simd::Vec<T, Isa>;
    typename Vec::Vector x;
    for (int j = 0; j < keys; ++j)
      for (int i = 0; i < columns; i += Vec::kLanes) {
        const int entry = j * kTileQueries + i;
        Vec::load(x, scores + entry);
        x = x / softcap;
        Vec::tanh(x);
        Vec::store(scores + entry, x * softcap);
        if (derivatives != nullptr) Vec::store(derivatives + entry, T(1) - x * x);
      }
  }
};

/// score −= slope · |distance|. The distance of query i and key j is first_distance + i − j.
template <class T>
struct AddAlibi {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, int keys, int columns, T slope, std::int32_t first_distance) {
    for (int j = 0; j < keys; ++j)
      for (int begin = 0; begin < columns; begin += kRun)
        for (int i = 0; i < kRun; ++i) {
          const std::int32_t distance = first_distance + begin + i - j;
          scores[j * kTileQueries + begin + i] -= slope * static_cast<T>(distance < 0 ? -distance : distance);
        }
  }
};

/// Masks key j for query i unless begin + j ≤ i < end + j.
template <class T>
struct ApplyBandMask {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* scores, int keys, int columns, std::int32_t begin, std::int32_t end) {
    for (int j = 0; j < keys; ++j)
      for (int first = 0; first < columns; first += kRun)
        for (int i = 0; i < kRun; ++i) {
          T& score = scores[j * kTileQueries + first + i];
          score = first + i >= begin + j && first + i < end + j ? score : kNegativeInfinity<T>;
        }
  }
};

/// The factors by which dropout multiplies the weights: `kept` if word j mod 4 of philox(seed; j / 4, i, h, n) is at
/// least the threshold, otherwise 0.
template <class T>
struct DropoutFactors {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Coordinate& first, int keys, int columns, std::uint64_t seed,
                                       std::uint64_t threshold, T kept, T* factors) {
    const std::uint64_t row = static_cast<std::uint64_t>(first.batch) << 32 | static_cast<std::uint32_t>(first.head);
    const int skipped = first.key % 4;  // a call of philox serves four keys; the first is a multiple of four
    for (int j = -skipped; j < keys; j += 4)
      for (int begin = 0; begin < columns; begin += kRun) {
        std::uint32_t words[4][kRun];
        for (int i = 0; i < kRun; ++i) {
          const std::uint64_t query = static_cast<std::uint32_t>(first.query + begin + i);
          const attend::detail::PhiloxBlock block =
              attend::detail::philox(seed, query << 32 | static_cast<std::uint32_t>(first.key + j) / 4, row);
          for (int word = 0; word < 4; ++word) words[word][i] = block.words[word];
        }
        for (int word = j < 0 ? skipped : 0; word < 4 && j + word < keys; ++word)
          for (int i = 0; i < kRun; ++i)
            factors[(j + word) * kTileQueries + begin + i] = words[word][i] >= threshold ? kept : T(0);
      }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
