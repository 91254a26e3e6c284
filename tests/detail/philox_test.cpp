// SPDX-License-Identifier: MIT
#include <attend/detail/philox.h>

#include <doctest/doctest.h>

#include <cstdint>

using attend::detail::philox;
using attend::detail::PhiloxBlock;

TEST_CASE("philox: it gives the answers that its authors published (Random123, kat_vectors, philox4x32 10)") {
  struct KnownAnswer {
    std::uint64_t seed, counter_low, counter_high;
    std::uint32_t words[4];
  };
  const KnownAnswer answers[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const KnownAnswer& answer : answers) {
    CAPTURE(answer.seed);
    const PhiloxBlock block = philox(answer.seed, answer.counter_low, answer.counter_high);
    for (int i = 0; i < 4; ++i) CHECK(block.words[i] == answer.words[i]);
  }
}
