// SPDX-License-Identifier: MIT
#include <attend/positions/sinusoidal.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

using attend::sinusoidal_positions;
using attend::SinusoidalPositionsOptions;
using attend::test::max_difference;
using attend::test::message_of;

TEST_CASE("sinusoidal_positions: channel 2i is cos(t · base^(−2i/C)), channel 2i + 1 the sine, for any C and base") {
  for (const std::int64_t channels : {1, 2, 5, 7, 64}) {
    for (const double base : {10000.0, 100.0, 0.5}) {
      CAPTURE(channels);
      CAPTURE(base);
      const torch::Tensor waves = sinusoidal_positions(50, SinusoidalPositionsOptions(channels).base(base));
      REQUIRE(waves.sizes() == torch::IntArrayRef{channels, 50});
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t t = 0; t < 50; ++t) {
          const double angle =
              static_cast<double>(t) / std::pow(base, static_cast<double>(c / 2 * 2) / static_cast<double>(channels));
          CHECK(waves[c][t].item<double>() ==
                doctest::Approx(c % 2 == 0 ? std::cos(angle) : std::sin(angle)).epsilon(1e-12));
        }
      }
    }
  }
}

TEST_CASE("sinusoidal_positions: sine_first gives the order of the paper") {
  const auto options = SinusoidalPositionsOptions(6);
  const torch::Tensor ours = sinusoidal_positions(20, options);
  const torch::Tensor papers = sinusoidal_positions(20, SinusoidalPositionsOptions(options).sine_first(true));
  CHECK(papers.index_select(0, torch::tensor({1, 0, 3, 2, 5, 4})).equal(ours));
  CHECK(papers[0][1].item<double>() == doctest::Approx(std::sin(1.0)).epsilon(1e-15));
}

TEST_CASE("sinusoidal_positions: a step of k positions rotates a pair of channels by one angle at each position") {
  const torch::Tensor waves = sinusoidal_positions(40, SinusoidalPositionsOptions(8));
  for (std::int64_t pair = 0; pair < 4; ++pair) {
    const double frequency = std::pow(10000.0, -2.0 * static_cast<double>(pair) / 8);
    const torch::Tensor even = waves[2 * pair], odd = waves[2 * pair + 1];
    const double c = std::cos(5 * frequency), s = std::sin(5 * frequency);
    CHECK(max_difference(even.slice(0, 5), c * even.slice(0, 0, 35) - s * odd.slice(0, 0, 35)) < 1e-12);
    CHECK(max_difference(odd.slice(0, 5), s * even.slice(0, 0, 35) + c * odd.slice(0, 0, 35)) < 1e-12);
  }
}

TEST_CASE("sinusoidal_positions: options out of range are refused with the rule and the value") {
  const auto check = [](std::int64_t length, const SinusoidalPositionsOptions& options, const std::string& expected) {
    CHECK(message_of<c10::ValueError>([&] { sinusoidal_positions(length, options); }) ==
          "attend::sinusoidal_positions: " + expected);
  };
  check(0, SinusoidalPositionsOptions(4), "length (0) must be at least 1");
  check(4, SinusoidalPositionsOptions(0), "num_channels (0) must be at least 1");
  check(4, SinusoidalPositionsOptions(4).base(0), "base (0) must be above 0 and finite");
  check(4, SinusoidalPositionsOptions(4).base(std::numeric_limits<double>::infinity()),
        "base (inf) must be above 0 and finite");
  CHECK(message_of<c10::ValueError>([] { attend::SinusoidalPositions(SinusoidalPositionsOptions(4).base(-1)); }) ==
        "attend::SinusoidalPositions: base (-1) must be above 0 and finite");
  CHECK(message_of<c10::ValueError>([] { attend::SinusoidalPositions(0); }) ==
        "attend::SinusoidalPositions: num_channels (0) must be at least 1");
}
