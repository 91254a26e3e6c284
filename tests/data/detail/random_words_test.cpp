// SPDX-License-Identifier: MIT
#include <attend/data/detail/random_words.h>

#include <doctest/doctest.h>

#include <cstdint>

using attend::detail::philox;
using attend::detail::RandomWords;

TEST_CASE("RandomWords: the words are those of Philox, block after block, for each seed, counter and sample") {
  const std::uint64_t large = 0xfedcba9876543210;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{7}, large}) {
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{0xfffffffd}, large}) {  // also with carries
      for (const std::int64_t sample : {std::int64_t{0}, std::int64_t{1} << 40, std::int64_t{-1}}) {
        CAPTURE(seed);
        CAPTURE(first);
        CAPTURE(sample);
        RandomWords words(seed, first, sample);
        for (int i = 0; i < 50; ++i)
          for (const std::uint32_t word : philox(seed, first + i, sample).words) REQUIRE(words() == word);
      }
    }
  }
}

TEST_CASE("RandomWords: words that are drawn ahead are the words that follow") {
  RandomWords words(1, 2, 3), ahead(1, 2, 3);
  for (int i = 0; i < 100; ++i) {
    const std::uint32_t* const begin = ahead.begin();
    REQUIRE(begin < ahead.end());
    REQUIRE(*begin == words());
    ahead.skip(1);
  }
}

TEST_CASE("RandomWords: uniform numbers lie between 0 and 1 and are the midpoints of equal steps") {
  RandomWords words(1, 2, 3), same(1, 2, 3);
  for (int i = 0; i < 1000; ++i) {
    const double x = words.uniform();
    REQUIRE(x == (same() + 0.5) / 4294967296.0);
    REQUIRE((x > 0 && x < 1));
  }
}
