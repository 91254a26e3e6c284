// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/drawn_shape.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// One sample without noise, as a generator draws it: the shapes from left to right, and the input and the target at
/// each position. Drawing several samples into the same Drawing reuses its memory.
struct Drawing {
  std::vector<DrawnShape> shapes;
  std::vector<double> input, target;

  /// Sets both signals to `size` zeros.
  void clear_signals(std::int64_t size) {
    input.assign(static_cast<std::size_t>(size), 0.0);
    target.assign(static_cast<std::size_t>(size), 0.0);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
