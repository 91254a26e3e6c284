// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/drawing.h>
#include <attend/data/detail/gaussian_stream.h>
#include <attend/detail/philox.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Draws samples as the notebook does: integer sizes, from left to right, until a shape does not fit.
class NotebookShapes {
 public:
  using Noise = GaussianStream;  // of standard deviation 1

  NotebookShapes(std::int64_t size, std::int64_t max_height, bool by_kind, std::uint64_t seed)
      : size_(size), max_height_(max_height), by_kind_(by_kind), seed_(seed) {}

  void draw(std::uint64_t first_counter, std::int64_t sample, Drawing& drawing) const {
    std::vector<DrawnShape>& shapes = drawing.shapes;
    shapes.clear();
    for (std::int64_t offset = 0; offset < size_;) {
      const PhiloxBlock block = philox(seed_, first_counter + shapes.size(), static_cast<std::uint64_t>(sample));
      const auto uniform = [&block](int word, std::int64_t low, std::int64_t high) {  // from the integers [low, high)
        return low + ((std::int64_t{block.words[word]} * (high - low)) >> 32);
      };
      const std::int64_t base = uniform(0, offset, offset + 10), width = uniform(1, 3, 10);
      if (base + width > size_) break;
      DrawnShape& shape = shapes.emplace_back();
      shape.kind = uniform(3, 0, 2) == 1 ? ShapeKind::kTriangle : ShapeKind::kRectangle;
      shape.centre = static_cast<double>(base) + static_cast<double>(width - 1) * 0.5;
      shape.width = static_cast<double>(width);
      shape.height = static_cast<double>(uniform(2, 5, max_height_));
      offset = base + width + 10;
    }

    Height means[2] = {{0, 0}, {0, 0}};
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      Height& mean = means[group(shapes, i)];
      mean.numerator += static_cast<std::int64_t>(shapes[i].height);
      mean.denominator += 1;
    }
    drawing.clear_signals(size_);
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      const Height mean = means[group(shapes, i)];
      shapes[i].target_height = mean.value();
      render(shapes[i], {static_cast<std::int64_t>(shapes[i].height), 1}, drawing.input.data());
      render(shapes[i], mean, drawing.target.data());
    }
  }

 private:
  /// A height as a fraction: heights and their means are both exact.
  struct Height {
    std::int64_t numerator, denominator;
    double value() const { return static_cast<double>(numerator) / static_cast<double>(denominator); }
  };

  /// The number of the group of a shape, 0 or 1. The shapes of a group share one mean height. A group has the shapes of
  /// one kind, or one half of the shapes of the signal.
  std::size_t group(const std::vector<DrawnShape>& shapes, std::size_t i) const {
    return by_kind_ ? shapes[i].kind == ShapeKind::kTriangle : i >= shapes.size() / 2;
  }

  static void render(const DrawnShape& shape, Height height, double* signal) {
    const auto width = static_cast<std::int64_t>(shape.width);
    const auto base = static_cast<std::int64_t>(shape.centre - static_cast<double>(width - 1) * 0.5);
    const std::int64_t rise = width / 2, fall = width - rise;
    for (std::int64_t i = 0; i < width; ++i) {
      double& x = signal[base + i];
      if (shape.kind == ShapeKind::kRectangle)
        x = height.value();
      else if (i < rise)  // i/rise of the height, rounded down
        x = static_cast<double>(height.numerator * i / (height.denominator * rise));
      else
        x = static_cast<double>(height.numerator * (width - i) / (height.denominator * fall));
    }
  }

  std::int64_t size_, max_height_;
  bool by_kind_;
  std::uint64_t seed_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
