// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Divides numbers from 0 to 2²² − 1 by one divisor. It multiplies floats, because instruction sets have no integer
/// division of vectors. The result is exact: the error is below 2⁻²³ times the quotient, and (i + ½) / divisor is at
/// least ½ / divisor away from an integer.
struct Divisor {
  float inverse = 1.0f;

  Divisor() = default;
  explicit constexpr Divisor(std::int32_t divisor) : inverse(1.0f / static_cast<float>(divisor)) {}

  ATTEND_HOST_DEVICE constexpr std::int32_t quotient(std::int32_t i) const {
    return static_cast<std::int32_t>((static_cast<float>(i) + 0.5f) * inverse);
  }
};

/// The largest number of positions of a grid. Divisor is used for numbers below twice this number.
inline constexpr std::int64_t kMostGridPositions = std::int64_t{1} << 21;

/// Positions in one to three dimensions, counted row by row: the last dimension is the fastest. Missing dimensions have
/// the size 1 and come first.
struct PositionGrid {
  static constexpr int kAxes = 3;

  std::int32_t sizes[kAxes] = {1, 1, 1};
  Divisor row, plane;  // divide by the number of positions of a row and of a plane

  struct Point {
    std::int32_t at[kAxes];
  };

  PositionGrid() = default;

  /// @throws std::invalid_argument that names the class and the argument.
  PositionGrid(const std::string& name, const std::vector<std::int64_t>& given) {
    if (given.empty() || given.size() > kAxes)
      throw std::invalid_argument(name + " must have 1 to 3 numbers, got " + std::to_string(given.size()));
    std::int64_t count = 1;
    for (std::size_t d = 0; d < given.size(); ++d) {
      if (given[d] < 1) throw std::invalid_argument(name + " must be at least 1, got " + std::to_string(given[d]));
      if (given[d] > kMostGridPositions / count)
        throw std::invalid_argument(name + " must have at most 2^21 positions");
      count *= given[d];
      sizes[kAxes - given.size() + d] = static_cast<std::int32_t>(given[d]);
    }
    row = Divisor(sizes[2]);
    plane = Divisor(sizes[1] * sizes[2]);
  }

  std::int32_t positions() const { return sizes[0] * sizes[1] * sizes[2]; }

  ATTEND_HOST_DEVICE constexpr Point point(std::int32_t position) const {
    const std::int32_t row_of = row.quotient(position), plane_of = plane.quotient(position);
    return {{plane_of, row_of - plane_of * sizes[1], position - row_of * sizes[2]}};
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
