// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/gaussian_stream.h>
#include <attend/detail/parallel.h>
#include <attend/detail/philox.h>

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/data/datasets/base.h>
#include <torch/data/example.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace attend {

/// How ShapeDataset brings a signal to a common range.
enum class Normalization {
  kMinMax,     ///< each signal by its own minimum and maximum, to [0, 1]
  kMaxHeight,  ///< divided by max_height
  kNone,       ///< as drawn
};

/// Options of ShapeDataset. The defaults are the notebook's.
struct ShapeDatasetOptions {
  /// Length of a signal in positions; at least 18, so that a shape fits. Default: 100.
  TORCH_ARG(std::int64_t, size) = 100;
  /// Heights are drawn from the integers 5 … max_height − 1; at least 6. Default: 50.
  TORCH_ARG(std::int64_t, max_height) = 50;
  /// Standard deviation of the Gaussian noise, in units of height, before normalization. Default: 0.3.
  TORCH_ARG(double, noise_std) = 0.3;
  /// How many samples. Default: 10,000.
  TORCH_ARG(std::int64_t, max_samples) = 10000;
  /// Sample i depends on the seed and i alone. Default: 0.
  TORCH_ARG(std::uint64_t, seed) = 0;
  /// How a signal is brought to a common range. Default: kMinMax.
  TORCH_ARG(Normalization, normalize) = Normalization::kMinMax;
};

/// Triangles and rectangles of random heights; the task is to give every shape the mean height of its kind.
///
/// A signal is filled from the left: a shape begins 0 to 9 positions after `offset`, is 3 to 9 wide, a triangle or a
/// rectangle with equal chance, and `offset` moves to 10 after its end; the first shape that does not fit ends the
/// signal. The target has the same shapes, each with the mean height of all shapes of its kind in this signal. Input
/// and target get independent noise and are normalized each for itself. To solve it a network must relate shapes that
/// stand far apart, which a stack of small convolutions cannot.
///
/// Sample i is drawn by Philox from (seed, i) with correctly rounded arithmetic only: the same bits on every machine
/// with IEEE 754 arithmetic, whatever the compiler (but for -ffast-math) and the thread count; and the first samples do
/// not depend on max_samples.
///
/// Shapes: inputs() and targets() (max_samples, 1, size), float32, on the CPU.
/// Throws c10::ValueError for options out of range, c10::IndexError for an index out of range.
/// Source: the notebook "Attention intuition", after F. Fleuret, Deep Learning course, handout 13.2. (The notebook's
/// class ignores its arguments and always uses the defaults; here they count.)
///
/// Example:
///   attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(2000).seed(7));
///   torch::Tensor x = data.inputs();    // (2000, 1, 100)
class ShapeDataset : public torch::data::datasets::BatchDataset<ShapeDataset, torch::data::Example<>> {
 public:
  explicit ShapeDataset(const ShapeDatasetOptions& options = {}) : options_(options) {
    const char* const kName = "attend::ShapeDataset";
    TORCH_CHECK_VALUE(options.size() >= 18, kName, ": size (", options.size(),
                      ") must be at least 18, so that a shape fits");
    TORCH_CHECK_VALUE(options.max_height() >= 6, kName, ": max_height (", options.max_height(),
                      ") must be at least 6, since heights start at 5");
    TORCH_CHECK_VALUE(options.max_height() <= kLargestHeight, kName, ": max_height (", options.max_height(),
                      ") must be at most ", kLargestHeight);
    TORCH_CHECK_VALUE(options.noise_std() >= 0.0 && options.noise_std() <= kLargestNoise, kName, ": noise_std (",
                      options.noise_std(), ") must be between 0 and ", kLargestNoise);
    TORCH_CHECK_VALUE(options.max_samples() >= 1, kName, ": max_samples (", options.max_samples(),
                      ") must be at least 1");
    inputs_ = torch::empty({options.max_samples(), 1, options.size()}, torch::kFloat);
    targets_ = torch::empty_like(inputs_);
    detail::parallel_ranges(options.max_samples(), /*grain=*/64, [this](std::int64_t begin, std::int64_t end) {
      Scratch scratch;
      for (std::int64_t i = begin; i < end; ++i) draw_sample(i, scratch);
    });
  }

  /// All inputs: (max_samples, 1, size).
  const torch::Tensor& inputs() const { return inputs_; }

  /// All targets: (max_samples, 1, size).
  const torch::Tensor& targets() const { return targets_; }

  /// The number of samples.
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(options_.max_samples()); }

  /// One sample: data and target, (1, size) each.
  torch::data::Example<> get(std::size_t index) const {
    TORCH_CHECK_INDEX(index < *size(), "attend::ShapeDataset: index ", index, " must be below the number of samples (",
                      *size(), ")");
    const auto i = static_cast<std::int64_t>(index);
    return {inputs_[i], targets_[i]};
  }

  /// A batch by one gather: data and target, (indices.size(), 1, size) each.
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    for (const std::size_t index : indices)
      TORCH_CHECK_INDEX(index < *size(), "attend::ShapeDataset: index ", index,
                        " must be below the number of samples (", *size(), ")");
    const torch::Tensor rows =
        torch::tensor(std::vector<std::int64_t>(indices.begin(), indices.end()), torch::kLong);  // (batch)
    return {inputs_.index_select(0, rows), targets_.index_select(0, rows)};
  }

  /// The options that the data was made with.
  const ShapeDatasetOptions& options() const { return options_; }

 private:
  static constexpr std::int64_t kLargestHeight = 1 << 20;  // keeps every product below in 64 bits
  static constexpr double kLargestNoise = 1e9;             // far from overflow

  struct Shape {
    std::int64_t base, width, height;
    bool is_triangle;
  };

  /// A height as a fraction: heights and their means are both exact.
  struct Height {
    std::int64_t numerator, denominator;
  };

  /// What samples that are drawn one after another need not allocate anew.
  struct Scratch {
    std::vector<Shape> shapes;
    std::vector<double> signal;
    std::vector<float> noise;
  };

  void draw_sample(std::int64_t index, Scratch& scratch) {
    draw_shapes(index, scratch.shapes);
    Height means[2] = {{0, 0}, {0, 0}};  // of the rectangles, of the triangles
    for (const Shape& shape : scratch.shapes) {
      means[shape.is_triangle].numerator += shape.height;
      means[shape.is_triangle].denominator += 1;
    }
    detail::GaussianStream noise(options_.seed(), kNoiseStream, index);
    for (const bool is_target : {false, true}) {
      scratch.signal.assign(options_.size(), 0.0);
      scratch.noise.resize(options_.size());
      noise.fill(scratch.noise.data(), options_.size());
      for (const Shape& shape : scratch.shapes)
        draw(shape, is_target ? means[shape.is_triangle] : Height{shape.height, 1}, scratch.signal);
      const torch::Tensor& signals = is_target ? targets_ : inputs_;
      write(scratch, signals.mutable_data_ptr<float>() + index * options_.size());
    }
  }

  void draw_shapes(std::int64_t index, std::vector<Shape>& shapes) const {
    shapes.clear();
    for (std::int64_t offset = 0; offset < options_.size();) {
      const detail::PhiloxBlock block = detail::philox(options_.seed(), kShapeStream + shapes.size(), index);
      const auto uniform = [&block](int word, std::int64_t low, std::int64_t high) {  // from the integers [low, high)
        return low + static_cast<std::int64_t>((std::uint64_t{block.words[word]} * (high - low)) >> 32);
      };
      const Shape shape{uniform(0, offset, offset + 10), uniform(1, 3, 10), uniform(2, 5, options_.max_height()),
                        uniform(3, 0, 2) == 1};
      if (shape.base + shape.width > options_.size()) break;
      shapes.push_back(shape);
      offset = shape.base + shape.width + 10;
    }
  }

  static void draw(const Shape& shape, Height height, std::vector<double>& signal) {
    const std::int64_t rise = shape.width / 2, fall = shape.width - rise;
    for (std::int64_t i = 0; i < shape.width; ++i) {
      double& x = signal[shape.base + i];
      if (!shape.is_triangle)
        x = static_cast<double>(height.numerator) / static_cast<double>(height.denominator);
      else if (i < rise)  // the integer part of i/rise of the height
        x = static_cast<double>(height.numerator * i / (height.denominator * rise));
      else
        x = static_cast<double>(height.numerator * (shape.width - i) / (height.denominator * fall));
    }
  }

  /// Adds noise, normalizes, and stores a signal.
  void write(Scratch& scratch, float* row) const {
    // The product of two single precision numbers is exact in double precision: contracted or not, the sum is the same.
    const double deviation = static_cast<float>(options_.noise_std());
    double smallest = std::numeric_limits<double>::infinity(), largest = -smallest;
    for (std::int64_t i = 0; i < options_.size(); ++i) {
      double& x = scratch.signal[i];
      x += deviation * static_cast<double>(scratch.noise[i]);
      smallest = std::min(smallest, x);
      largest = std::max(largest, x);
    }
    double low = 0.0, range = 1.0;
    if (options_.normalize() == Normalization::kMinMax) {
      low = smallest;
      range = largest - smallest;  // never 0: a signal has a shape of height 5 or more, and a gap
    } else if (options_.normalize() == Normalization::kMaxHeight) {
      range = static_cast<double>(options_.max_height());
    }
    for (const double x : scratch.signal) *row++ = static_cast<float>((x - low) / range);
  }

  // Philox counters of a sample: shapes and noise draw from streams that never meet.
  static constexpr std::uint64_t kShapeStream = 0;
  static constexpr std::uint64_t kNoiseStream = std::uint64_t{1} << 32;

  ShapeDatasetOptions options_;
  torch::Tensor inputs_, targets_;
};

}  // namespace attend
