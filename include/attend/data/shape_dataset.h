// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/drawing.h>
#include <attend/data/detail/handout_shapes.h>
#include <attend/data/detail/notebook_shapes.h>
#include <attend/data/drawn_shape.h>
#include <attend/detail/parallel.h>
#include <attend/version.h>

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/data/datasets/base.h>
#include <torch/data/datasets/map.h>
#include <torch/data/example.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// The samples of a data set one by one, as torch's transforms want them.
template <class Data>
class Samples : public torch::data::datasets::Dataset<Samples<Data>> {
 public:
  explicit Samples(const Data& data) : data_(data) {}

  torch::data::Example<> get(std::size_t index) override { return data_.get(index); }

  std::optional<std::size_t> size() const override { return data_.size(); }

 private:
  Data data_;
};

}  // namespace detail

/// Whose rule ShapeDataset draws by.
enum class ShapeGenerator {
  kNotebook,  ///< four to six shapes from integers, Gaussian noise
  kHandout,   ///< two triangles and two rectangles from real numbers, uniform noise
};

/// Which shapes of a signal get their mean height.
enum class GroupBy {
  kKind,      ///< the triangles, and the rectangles
  kLocation,  ///< the left half of the shapes, and the right half; the middle one of an odd number is in the right half
};

/// How ShapeDataset brings a signal to a common range.
enum class Normalization {
  kMinMax,     ///< each signal by its own minimum and maximum, to [0, 1]
  kMaxHeight,  ///< divided by max_height
  kNone,       ///< as drawn
};

/// Options of ShapeDataset. The defaults are the notebook's; with `.generator(ShapeGenerator::kHandout)`, the
/// handout's.
struct ShapeDatasetOptions {
  /// Whose rule the shapes and the noise are drawn by. Default: kNotebook.
  TORCH_ARG(ShapeGenerator, generator) = ShapeGenerator::kNotebook;
  /// Which shapes of a signal get their mean height. Default: kKind.
  TORCH_ARG(GroupBy, group_by) = GroupBy::kKind;
  /// Length of a signal in positions; at least 18, so that a shape fits, and at most 2²⁰. Default: 100.
  TORCH_ARG(std::int64_t, size) = 100;
  /// Heights are drawn from the integers 5 … max_height − 1 (notebook) or between 1 and max_height (handout); at
  /// least 6. Default: 50 (notebook), 25 (handout).
  TORCH_ARG(std::optional<std::int64_t>, max_height) = std::nullopt;
  /// Standard deviation of the noise, in units of height, before normalization. Default: 0.3 (notebook), 0.15/√3
  /// (handout: uniform noise between −0.15 and 0.15).
  TORCH_ARG(std::optional<double>, noise_std) = std::nullopt;
  /// How many samples. Default: 10,000.
  TORCH_ARG(std::int64_t, max_samples) = 10000;
  /// Sample i depends on the seed and i alone. Default: 0.
  TORCH_ARG(std::uint64_t, seed) = 0;
  /// How a signal is brought to a common range. Default: kMinMax (notebook), kNone (handout).
  TORCH_ARG(std::optional<Normalization>, normalize) = std::nullopt;
};

/// Triangles and rectangles of random heights; the task is to give every shape the mean height of its kind, or of its
/// half of the signal.
///
/// The notebook's rule: a signal is filled from the left: a shape begins 0 to 9 positions after `offset`, is 3 to 9
/// wide, a triangle or a rectangle with equal chance, and `offset` moves to 10 after its end; the first shape that does
/// not fit ends the signal.
///
/// The handout's rule: two triangles and two rectangles with real centres between 5.5 and size − 5.5, heights between 1
/// and max_height and widths between 5 and 11, drawn anew until there is a position between any two of them, and until
/// what is averaged differs: by kind the two triangles' heights, by location the two means, by more than 4.
///
/// The target has the same shapes, each with the mean height of all shapes of its group in this signal. Input and
/// target get independent noise and are normalized each for itself. To solve it a network must relate shapes that
/// stand far apart, which a stack of small convolutions cannot; to solve it by location, a network must know where they
/// stand as well, which attention alone does not.
///
/// Sample i is drawn by Philox from (seed, i) with correctly rounded arithmetic only: the same bits on every machine
/// with IEEE 754 arithmetic, whatever the compiler (but for -ffast-math) and the thread count; and the first samples do
/// not depend on max_samples.
///
/// Shapes: inputs() and targets() (max_samples, 1, size), float32, on the CPU.
///
/// @throws c10::ValueError for options out of range, and if the handout's rule does not find a sample in 10,000 draws
/// (with a size of 40 or less, say); c10::IndexError for an index out of range.
///
/// Source: the notebook "Attention intuition", after F. Fleuret, Deep Learning course, handout 13.2. (The notebook's
/// class ignores its arguments and always uses the defaults; here they count.)
///
/// Example:
/// @code
/// attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(2000).seed(7));
/// torch::Tensor x = data.inputs();                             // (2000, 1, 100)
/// for (const attend::DrawnShape& shape : data.shapes(3))       // of the fourth sample
///   std::cout << shape.kind << " at " << shape.centre << '\n';
/// @endcode
class ShapeDataset : public torch::data::datasets::BatchDataset<ShapeDataset, torch::data::Example<>> {
 public:
  /// Draws all samples.
  explicit ShapeDataset(const ShapeDatasetOptions& options = {}) : options_(with_defaults(options)) {
    check();
    inputs_ = torch::empty({options_.max_samples(), 1, options_.size()}, torch::kFloat);
    targets_ = torch::empty_like(inputs_);
    by_generator([this](const auto& generator) { draw(generator); });
  }

  /// All inputs: (max_samples, 1, size).
  const torch::Tensor& inputs() const { return inputs_; }

  /// All targets: (max_samples, 1, size).
  const torch::Tensor& targets() const { return targets_; }

  /// The shapes of a sample from left to right, drawn again.
  std::vector<DrawnShape> shapes(std::size_t index) const {
    check_index(index);
    detail::Drawing drawing;
    by_generator(
        [&](const auto& generator) { generator.draw(kShapeStream, static_cast<std::int64_t>(index), drawing); });
    return drawing.shapes;
  }

  /// The number of samples.
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(options_.max_samples()); }

  /// One sample: data and target, (1, size) each.
  torch::data::Example<> get(std::size_t index) const {
    check_index(index);
    const auto i = static_cast<std::int64_t>(index);
    return {inputs_[i], targets_[i]};
  }

  /// A batch by one gather: data and target, (indices.size(), 1, size) each.
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    for (const std::size_t index : indices) check_index(index);
    const torch::Tensor rows =
        torch::tensor(std::vector<std::int64_t>(indices.begin(), indices.end()), torch::kLong);  // (batch)
    return {inputs_.index_select(0, rows), targets_.index_select(0, rows)};
  }

  /// The data set with a transform of torch applied to it: one of whole batches as get_batch() gives them, or one of
  /// single samples, such as torch::data::transforms::Stack<>, which makes these batches of them again.
  template <class Transform>
  auto map(Transform transform) const {
    if constexpr (std::is_same_v<typename Transform::InputBatchType, BatchType>)
      return torch::data::datasets::MapDataset<ShapeDataset, Transform>(*this, std::move(transform));
    else
      return torch::data::datasets::map(detail::Samples<ShapeDataset>(*this), std::move(transform));
  }

  /// The options that the data was made with, the generator's defaults filled in.
  const ShapeDatasetOptions& options() const { return options_; }

 private:
  static constexpr std::int64_t kLargestSize = 1 << 20, kLargestHeight = 1 << 20;  // products of generators are exact
  static constexpr double kLargestNoise = 1e9;                                     // far from overflow

  // Philox counters of a sample: shapes and noise draw from streams that never meet.
  static constexpr std::uint64_t kShapeStream = 0;
  static constexpr std::uint64_t kNoiseStream = std::uint64_t{1} << 32;

  static ShapeDatasetOptions with_defaults(ShapeDatasetOptions options) {
    const bool is_handout = options.generator() == ShapeGenerator::kHandout;
    if (!options.max_height()) options.max_height(is_handout ? 25 : 50);
    if (!options.noise_std()) options.noise_std(is_handout ? 0.15 / std::sqrt(3.0) : 0.3);
    if (!options.normalize()) options.normalize(is_handout ? Normalization::kNone : Normalization::kMinMax);
    return options;
  }

  void check() const {
    const char* const kName = "attend::ShapeDataset";
    TORCH_CHECK_VALUE(options_.size() >= 18, kName, ": size (", options_.size(),
                      ") must be at least 18, so that a shape fits");
    TORCH_CHECK_VALUE(options_.size() <= kLargestSize, kName, ": size (", options_.size(), ") must be at most ",
                      kLargestSize);
    TORCH_CHECK_VALUE(*options_.max_height() >= 6, kName, ": max_height (", *options_.max_height(),
                      ") must be at least 6, since heights ",
                      is_handout() ? "start at 1 and must differ by more than 4" : "start at 5");
    TORCH_CHECK_VALUE(*options_.max_height() <= kLargestHeight, kName, ": max_height (", *options_.max_height(),
                      ") must be at most ", kLargestHeight);
    TORCH_CHECK_VALUE(*options_.noise_std() >= 0.0 && *options_.noise_std() <= kLargestNoise, kName, ": noise_std (",
                      *options_.noise_std(), ") must be between 0 and ", kLargestNoise);
    TORCH_CHECK_VALUE(options_.max_samples() >= 1, kName, ": max_samples (", options_.max_samples(),
                      ") must be at least 1");
  }

  void check_index(std::size_t index) const {
    TORCH_CHECK_INDEX(index < *size(), "attend::ShapeDataset: index ", index, " must be below the number of samples (",
                      *size(), ")");
  }

  bool is_handout() const { return options_.generator() == ShapeGenerator::kHandout; }

  /// Calls an action with the generator that the options ask for.
  template <class Action>
  void by_generator(const Action& action) const {
    const bool by_kind = options_.group_by() == GroupBy::kKind;
    if (is_handout())
      action(detail::HandoutShapes(options_.size(), *options_.max_height(), by_kind, options_.seed()));
    else
      action(detail::NotebookShapes(options_.size(), *options_.max_height(), by_kind, options_.seed()));
  }

  template <class Generator>
  void draw(const Generator& generator) {
    detail::parallel_ranges(options_.max_samples(), /*grain=*/64, [&](std::int64_t begin, std::int64_t end) {
      detail::Drawing drawing;
      std::vector<float> noise_row(static_cast<std::size_t>(options_.size()));
      for (std::int64_t i = begin; i < end; ++i) {
        generator.draw(kShapeStream, i, drawing);
        typename Generator::Noise noise(options_.seed(), kNoiseStream, i);
        noise.fill(noise_row.data(), options_.size());
        write(drawing.input, noise_row, inputs_.mutable_data_ptr<float>() + i * options_.size());
        noise.fill(noise_row.data(), options_.size());
        write(drawing.target, noise_row, targets_.mutable_data_ptr<float>() + i * options_.size());
      }
    });
  }

  /// Adds noise, normalizes, and stores a signal.
  void write(std::vector<double>& signal, const std::vector<float>& noise, float* row) const {
    // The product of two single precision numbers is exact in double precision: contracted or not, the sum is the same.
    const double factor = static_cast<float>(is_handout() ? *options_.noise_std() * std::sqrt(3.0)  // from U(−1, 1)
                                                          : *options_.noise_std());
    double smallest = std::numeric_limits<double>::infinity(), largest = -smallest;
    for (std::size_t i = 0; i < signal.size(); ++i) {
      double& x = signal[i];
      x += factor * static_cast<double>(noise[i]);
      smallest = std::min(smallest, x);
      largest = std::max(largest, x);
    }
    double low = 0.0, range = 1.0;
    if (*options_.normalize() == Normalization::kMinMax) {
      low = smallest;
      range = largest - smallest;  // never 0: a signal has a shape of height 1 or more, and a gap
    } else if (*options_.normalize() == Normalization::kMaxHeight) {
      range = static_cast<double>(*options_.max_height());
    }
    for (const double x : signal) *row++ = static_cast<float>((x - low) / range);
  }

  ShapeDatasetOptions options_;
  torch::Tensor inputs_, targets_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
