// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The kind of a shape in ShapeDataset.
enum class ShapeKind {
  kTriangle,   ///< rises to its height and falls to 0
  kRectangle,  ///< has the same height at each of its positions
};

/// Writes "triangle" or "rectangle".
inline std::ostream& operator<<(std::ostream& stream, ShapeKind kind) {
  return stream << (kind == ShapeKind::kTriangle ? "triangle" : "rectangle");
}

/// One shape of a sample of ShapeDataset, as it was drawn, before noise and normalization.
struct DrawnShape {
  /// Triangle or rectangle.
  ShapeKind kind = ShapeKind::kTriangle;
  double centre = 0;  ///< the position of its centre, from 0; it may lie between two positions

  /// Its width in positions: the shape covers the positions t with |t − centre| < width / 2. A triangle of
  /// ShapeGenerator::kHandout covers those with |t − centre| < (width + 1) / 2.
  double width = 0;
  double height = 0;  ///< its largest value in the input
  /// The mean height of its group. It is the largest value of the shape in the target. Exception:
  /// ShapeGenerator::kNotebook rounds the values of triangles down to integers, so there it is this mean rounded down.
  double target_height = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
