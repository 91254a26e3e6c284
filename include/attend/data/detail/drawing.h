// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/drawn_shape.h>

#include <vector>

namespace attend::detail {

/// One sample without noise, as a generator draws it: the shapes from left to right, and the heights at each position.
/// Samples that are drawn one after another into the same Drawing allocate nothing anew.
struct Drawing {
  std::vector<DrawnShape> shapes;
  std::vector<double> input, target;
};

}  // namespace attend::detail
