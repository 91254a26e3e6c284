// SPDX-License-Identifier: MIT
#include <attend/score/coordinate.h>

#include <doctest/doctest.h>

#include <cstdint>

using attend::Coordinate;
using attend::QueryBlock;

TEST_CASE("Coordinate: query_position() aligns the last query with the last key, for every pair of lengths") {
  struct Case {
    std::int32_t query_length, key_length, query, position;
  };
  const Case cases[] = {
      {5, 5, 0, 0}, {5, 5, 4, 4}, {1, 9, 0, 8}, {3, 9, 0, 6}, {3, 9, 2, 8}, {9, 3, 0, -6}, {9, 3, 8, 2}, {4, 0, 3, -1},
  };
  for (const Case& c : cases) {
    CAPTURE(c.query_length);
    CAPTURE(c.key_length);
    CAPTURE(c.query);
    CHECK(Coordinate{0, 0, c.query, 0, c.query_length, c.key_length}.query_position() == c.position);
    const QueryBlock alone{0, 0, c.query, c.query + 1, c.query_length, c.key_length};
    CHECK(alone.first_position() == c.position);
    CHECK(alone.last_position() == c.position);
    const QueryBlock from_start{0, 0, 0, c.query + 1, c.query_length, c.key_length};
    CHECK(from_start.first_position() == c.position - c.query);
    CHECK(from_start.last_position() == c.position);
  }
  static_assert(Coordinate{0, 0, 2, 0, 3, 9}.query_position() == 8);
}
