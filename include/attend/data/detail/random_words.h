// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The words of philox(seed, first_counter, sample), then those of (seed, first_counter + 1, sample), and so on.
///
/// On x86-64 four blocks are drawn at a time. That takes two thirds of the time of single blocks.
class RandomWords {
 public:
  RandomWords(std::uint64_t seed, std::uint64_t first_counter, std::int64_t sample)
      : seed_(seed), counter_(first_counter), sample_(static_cast<std::uint64_t>(sample)) {}

  std::uint32_t operator()() {
    if (used_ == kCount) draw();
    return words_[used_++];
  }

  /// A number in (0, 1): the middle of one of 2³² equal intervals.
  double uniform() { return (2.0 * (*this)() + 1.0) * 0x1p-33; }  // exact

  /// The words that are already drawn, at least one. The pointer is valid until the next draw.
  const std::uint32_t* begin() {
    if (used_ == kCount) draw();
    return words_ + used_;
  }
  const std::uint32_t* end() const { return words_ + kCount; }

  /// Skips the first `count` words of begin().
  void skip(int count) { used_ += count; }

 private:
  static constexpr int kBlocks = 8, kCount = 4 * kBlocks;

#if defined(__x86_64__)
  /// Two blocks. Each word is the lower half of 64 bits; the upper half is ignored.
  struct TwoBlocks {
    TwoBlocks(std::uint64_t counter, std::uint64_t sample)
        : words{two_words(counter + 1, counter), _mm_srli_epi64(words[0], 32), two_words(sample, sample),
                _mm_srli_epi64(words[2], 32)} {}

    void mix(std::uint32_t key0, std::uint32_t key1) {
      const __m128i product0 = _mm_mul_epu32(_mm_set1_epi64x(kPhiloxMultiplier0), words[0]);
      const __m128i product1 = _mm_mul_epu32(_mm_set1_epi64x(kPhiloxMultiplier1), words[2]);
      words[0] = _mm_xor_si128(_mm_xor_si128(_mm_srli_epi64(product1, 32), words[1]), _mm_set1_epi64x(key0));
      words[1] = product1;
      words[2] = _mm_xor_si128(_mm_xor_si128(_mm_srli_epi64(product0, 32), words[3]), _mm_set1_epi64x(key1));
      words[3] = product0;
    }

    void store(std::uint32_t* to) const {
      auto* const blocks = reinterpret_cast<__m128i*>(to);
      _mm_storeu_si128(
          blocks, _mm_unpacklo_epi64(_mm_unpacklo_epi32(words[0], words[1]), _mm_unpacklo_epi32(words[2], words[3])));
      _mm_storeu_si128(blocks + 1, _mm_unpacklo_epi64(_mm_unpackhi_epi32(words[0], words[1]),
                                                      _mm_unpackhi_epi32(words[2], words[3])));
    }

    static __m128i two_words(std::uint64_t high, std::uint64_t low) {
      return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
    }

    __m128i words[4];
  };

  void draw() {
    for (std::uint64_t i = 0; i < kBlocks; i += 4) {
      TwoBlocks first(counter_ + i, sample_), second(counter_ + i + 2, sample_);
      auto key0 = static_cast<std::uint32_t>(seed_), key1 = static_cast<std::uint32_t>(seed_ >> 32);
      for (int round = 0; round < kPhiloxRounds; ++round) {
        first.mix(key0, key1);
        second.mix(key0, key1);
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
      }
      first.store(words_ + 4 * i);
      second.store(words_ + 4 * i + 8);
    }
    counter_ += kBlocks;
    used_ = 0;
  }
#else
  void draw() {
    for (std::uint64_t i = 0; i < kBlocks; ++i) {
      const PhiloxBlock block = philox(seed_, counter_ + i, sample_);
      std::copy_n(block.words, 4, words_ + 4 * i);
    }
    counter_ += kBlocks;
    used_ = 0;
  }
#endif

  std::uint64_t seed_, counter_, sample_;
  std::uint32_t words_[kCount];
  int used_ = kCount;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
