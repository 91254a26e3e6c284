// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// What a shape of ShapeDataset is.
enum class ShapeKind { kTriangle, kRectangle };

/// Writes "triangle" or "rectangle".
inline std::ostream& operator<<(std::ostream& stream, ShapeKind kind) {
  return stream << (kind == ShapeKind::kTriangle ? "triangle" : "rectangle");
}

/// One shape of an input of ShapeDataset, in positions and in units of height before noise and normalization.
struct DrawnShape {
  /// Triangle or rectangle.
  ShapeKind kind = ShapeKind::kTriangle;
  double centre = 0;         ///< the position of its middle, from 0; not always a whole number
  double width = 0;          ///< it has the positions t with |t − centre| < width / 2, a handout's triangle 1/2 more
  double height = 0;         ///< of its top, in the input
  double target_height = 0;  ///< of its top, in the target
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
