// SPDX-License-Identifier: MIT
#include <attend/positions/binary.h>

#include "support/errors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

using attend::binary_positions;
using attend::test::message_of;

TEST_CASE("binary_positions: channel c is bit c of the position, the least significant first") {
  CHECK(binary_positions(5).equal(torch::tensor({{0, 1, 0, 1, 0}, {0, 0, 1, 1, 0}, {0, 0, 0, 0, 1}}, torch::kDouble)));
  const torch::Tensor bits = binary_positions(100);  // (7, 100)
  CHECK(bits.size(0) == 7);
  for (int t = 0; t < 100; ++t) {
    double position = 0;
    for (int c = 0; c < 7; ++c) position += std::ldexp(bits[c][t].item<double>(), c);
    CHECK(position == t);
  }
}

TEST_CASE("binary_positions: the smallest number of channels that distinguishes all positions, or more on request") {
  for (const auto& [length, channels] : {std::pair(1, 1), {2, 1}, {3, 2}, {4, 2}, {5, 3}, {128, 7}, {129, 8}}) {
    CAPTURE(length);
    CHECK(binary_positions(length).sizes() == torch::IntArrayRef{channels, length});
  }
  const torch::Tensor bits = binary_positions(3, 5);
  CHECK(bits.slice(0, 0, 2).equal(binary_positions(3)));
  CHECK(bits.slice(0, 2, 5).count_nonzero().item<std::int64_t>() == 0);
}

TEST_CASE("binary_positions: options out of range are refused with the rule and the value") {
  const auto check = [](std::int64_t length, std::optional<std::int64_t> channels, const std::string& expected) {
    CHECK(message_of<c10::ValueError>([&] { binary_positions(length, channels); }) ==
          "attend::binary_positions: " + expected);
  };
  check(0, {}, "length (0) must be at least 1");
  check(4, 0, "num_channels (0) must be between 1 and 62");
  check(4, 63, "num_channels (63) must be between 1 and 62");
  check(129, 7, "length (129) must be at most 128, the number of positions that num_channels (7) can represent");
  CHECK(message_of<c10::ValueError>([] {
          attend::BinaryPositions(attend::BinaryPositionsOptions().num_channels(0));
        }) == "attend::BinaryPositions: num_channels (0) must be between 1 and 62");
  attend::BinaryPositions two_bits(attend::BinaryPositionsOptions().num_channels(2));
  CHECK(message_of<c10::ValueError>([&] {
          two_bits(torch::zeros({1, 1, 5}));
        }) ==
        "attend::BinaryPositions: length (5) must be at most 4, the number of positions that num_channels (2) can "
        "represent");
}
