// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/drawing.h>
#include <attend/data/detail/random_words.h>
#include <attend/data/detail/uniform_stream.h>
#include <attend/version.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Draws samples as the handout does: two triangles and two rectangles at random positions. A draw is rejected and
/// repeated until no two shapes touch and the averaged heights differ enough.
///
/// No sum has an inexact product as a term. So a compiler that fuses products and sums (FMA) gives the same bits.
class HandoutShapes {
 public:
  using Noise = UniformStream;  // from −1 to 1

  HandoutShapes(std::int64_t size, std::int64_t max_height, bool by_kind, std::uint64_t seed)
      : size_(size), max_height_(max_height), by_kind_(by_kind), seed_(seed) {}

  void draw(std::uint64_t first_counter, std::int64_t sample, Drawing& drawing) const {
    RandomWords words(seed_, first_counter, sample);
    std::vector<DrawnShape>& shapes = drawing.shapes;
    int draws = 0;
    do {
      TORCH_CHECK_VALUE(draws++ < kMostDraws, "attend::ShapeDataset: ", kMostDraws, " draws gave no sample of size (",
                        size_, ") and max_height (", max_height_,
                        ") whose four shapes do not touch and whose heights differ by more than ", kLeastDifference,
                        "; raise size or max_height");
      shapes.resize(4);
      for (std::size_t i = 0; i < 4; ++i) {
        shapes[i].kind = i < 2 ? ShapeKind::kTriangle : ShapeKind::kRectangle;
        shapes[i].centre = 0.5 * kLargestWidth + words.uniform() * static_cast<double>(size_ - kLargestWidth);
        shapes[i].height = 1.0 + words.uniform() * static_cast<double>(max_height_ - 1);
        shapes[i].width = kSmallestWidth + words.uniform() * (kLargestWidth - kSmallestWidth);
      }
    } while (!is_accepted(shapes));

    drawing.clear_signals(size_);
    for (const DrawnShape& shape : shapes) {
      render(shape, shape.height, drawing.input.data());
      render(shape, shape.target_height, drawing.target.data());
    }
  }

 private:
  static constexpr int kMostDraws = 10'000;  // with default options one draw in six is accepted
  static constexpr int kSmallestWidth = 5, kLargestWidth = 11;
  static constexpr int kLeastDifference = 4;

  /// Whether these shapes are a valid sample. If so, they are sorted from left to right and get their target heights.
  bool is_accepted(std::vector<DrawnShape>& shapes) const {
    // With GroupBy::kKind only the heights of the triangles must differ, as in the handout's program.
    if (by_kind_ && std::abs(shapes[0].height - shapes[1].height) <= kLeastDifference) return false;
    std::sort(shapes.begin(), shapes.end(), [](const auto& a, const auto& b) { return a.centre < b.centre; });
    for (std::size_t i = 0; i < 3; ++i)
      if (first(shapes[i + 1]) < last(shapes[i]) + 2) return false;  // no position between them
    double sums[2] = {0, 0};
    const auto sum = [&](std::size_t i) -> double& {
      return sums[by_kind_ ? shapes[i].kind == ShapeKind::kTriangle : i >= 2];
    };
    for (std::size_t i = 0; i < 4; ++i) sum(i) += shapes[i].height;
    for (std::size_t i = 0; i < 4; ++i) shapes[i].target_height = 0.5 * sum(i);
    return by_kind_ || std::abs(sums[0] - sums[1]) > 2 * kLeastDifference;
  }

  /// The distance from the centre at which the height of a shape reaches 0.
  static double reach(const DrawnShape& shape) {
    return 0.5 * shape.width + (shape.kind == ShapeKind::kTriangle ? 0.5 : 0.0);
  }

  /// The first and the last position at which a shape is above 0.
  static std::int64_t first(const DrawnShape& shape) {
    return static_cast<std::int64_t>(std::floor(shape.centre - reach(shape))) + 1;
  }
  std::int64_t last(const DrawnShape& shape) const {
    return std::min(static_cast<std::int64_t>(std::ceil(shape.centre + reach(shape))), size_) - 1;
  }

  void render(const DrawnShape& shape, double height, double* signal) const {
    for (std::int64_t t = first(shape); t <= last(shape); ++t) {
      // h − 2h/w · relu(|t − c| − 1/2), which has a flat top one position wide
      const double distance = std::max(std::abs(static_cast<double>(t) - shape.centre), 0.5);
      signal[t] = shape.kind == ShapeKind::kRectangle
                      ? height
                      : std::min(height, height * (2.0 * (reach(shape) - distance)) / shape.width);
    }
  }

  std::int64_t size_, max_height_;
  bool by_kind_;
  std::uint64_t seed_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
