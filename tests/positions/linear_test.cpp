// SPDX-License-Identifier: MIT
#include <attend/positions/linear.h>

#include "support/errors.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

using attend::linear_positions;
using attend::test::message_of;

TEST_CASE("linear_positions: position t has the value t / length") {
  CHECK(linear_positions(4).equal(torch::tensor({{0.0, 0.25, 0.5, 0.75}}, torch::kDouble)));
  CHECK(linear_positions(1).equal(torch::zeros({1, 1}, torch::kDouble)));
  CHECK(linear_positions(100)[0][37].item<double>() == 0.37);
}

TEST_CASE("linear_positions: a length below 1 is refused") {
  for (const std::int64_t length : {0, -5})
    CHECK(message_of<c10::ValueError>([&] { linear_positions(length); }) ==
          "attend::linear_positions: length (" + std::to_string(length) + ") must be at least 1");
}
