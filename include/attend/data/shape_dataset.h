// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/drawing.h>
#include <attend/data/detail/handout_shapes.h>
#include <attend/data/detail/notebook_shapes.h>
#include <attend/data/drawn_shape.h>
#include <attend/detail/torch/parallel.h>
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

/// Returns the samples of a data set one by one, as torch's transforms need them.
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

/// The rule by which ShapeDataset draws shapes and noise. The comment of ShapeDataset explains both rules and names
/// their sources.
enum class ShapeGenerator {
  kNotebook,  ///< as in the notebook: shapes from left to right, integer heights and widths, Gaussian noise
  kHandout,   ///< as in the handout: two triangles and two rectangles, real heights and widths, uniform noise
};

/// The groups of shapes whose heights are averaged in the target.
enum class GroupBy {
  kKind,      ///< all triangles; all rectangles
  kLocation,  ///< the left half of the shapes; the right half, which has the middle shape if their number is odd
};

/// How ShapeDataset scales a signal.
enum class Normalization {
  kMinMax,     ///< to [0, 1], by the minimum and maximum of each signal
  kMaxHeight,  ///< divides by max_height
  kNone,       ///< does not scale
};

/// Options of ShapeDataset. The defaults depend on the option generator.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::ShapeDatasetOptions().generator(attend::ShapeGenerator::kHandout).max_samples(2000).seed(7)
/// @endcode
struct ShapeDatasetOptions {
  /// The rule by which shapes and noise are drawn. Default: kNotebook.
  TORCH_ARG(ShapeGenerator, generator) = ShapeGenerator::kNotebook;
  /// The groups of shapes whose heights are averaged in the target. Default: kKind.
  TORCH_ARG(GroupBy, group_by) = GroupBy::kKind;
  /// Length of a signal in positions, from 18 to 2²⁰. Default: 100.
  TORCH_ARG(std::int64_t, size) = 100;
  /// Upper limit of the heights, from 6 to 2²⁰. kNotebook draws from the integers 5 … max_height − 1, kHandout from the
  /// real numbers between 1 and max_height. Default: 50 (kNotebook), 25 (kHandout).
  TORCH_ARG(std::optional<std::int64_t>, max_height) = std::nullopt;
  /// Standard deviation of the noise, in the unit of the heights, before normalization. From 0 to 10⁹. Default: 0.3
  /// (kNotebook), 0.15/√3 (kHandout), which is uniform noise between −0.15 and 0.15.
  TORCH_ARG(std::optional<double>, noise_std) = std::nullopt;
  /// The number of samples, at least 1. Default: 10,000.
  TORCH_ARG(std::int64_t, max_samples) = 10000;
  /// The seed of all random numbers. Sample i depends on the seed and on i alone. Default: 0.
  TORCH_ARG(std::uint64_t, seed) = 0;
  /// How a signal is scaled. Default: kMinMax (kNotebook), kNone (kHandout).
  TORCH_ARG(std::optional<Normalization>, normalize) = std::nullopt;
};

/// A data set of signals with triangles and rectangles of random heights. In the target, each shape has the mean height
/// of its group in this signal: of the shapes of its kind, or of its half of the shapes.
///
/// A network must relate distant shapes. A stack of small convolutions cannot do that. With GroupBy::kLocation the
/// network must also know the positions of the shapes, which attention alone does not.
///
/// ShapeGenerator::kNotebook fills a signal from the left:
/// 1. A shape begins 0 to 9 positions after `offset`, which is 0 at first. It is 3 to 9 positions wide, and a triangle
///    or a rectangle with equal probability.
/// 2. `offset` moves to 10 positions after the end of the shape.
/// 3. The first shape that does not fit ends the signal.
///
/// The values of a triangle are rounded down to integers, in the input and in the target.
///
/// ShapeGenerator::kHandout draws two triangles and two rectangles. Centres are real numbers between 5.5 and size −
/// 5.5, widths are between 5 and 11, heights between 1 and max_height. All four are drawn again until both are true:
/// - There is at least one position between any two of them.
/// - With GroupBy::kKind the heights of the triangles differ by more than 4.
///   With GroupBy::kLocation the mean heights of the two halves differ by more than 4.
///
/// Input and target have independent noise, and are normalized separately.
///
/// Shapes: inputs() and targets() (max_samples, 1, size), float32, on the CPU.
///
/// Sample i is drawn by the generator Philox from (seed, i). Its bits are the same on every machine with IEEE 754
/// arithmetic, for every number of threads, and with every compiler without -ffast-math. They do not depend on
/// max_samples.
///
/// @throws c10::ValueError for options out of range, and if kHandout finds no sample in 10,000 draws, for example with
/// a size of 40.
/// @throws c10::IndexError for an index out of range.
///
/// Differs from the class of the notebook, which ignores its arguments and always uses the defaults.
///
/// Source: the notebook "Attention intuition", after F. Fleuret, Deep Learning course, handout 13.2.
///
/// @code
/// attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(2000).seed(7));
/// torch::Tensor x = data.inputs();                             // (2000, 1, 100)
/// for (const attend::DrawnShape& shape : data.shapes(3))       // of the fourth sample
///   std::cout << shape.kind << " at " << shape.centre << '\n';
/// @endcode
class ShapeDataset : public torch::data::datasets::BatchDataset<ShapeDataset, torch::data::Example<>> {
 public:
  /// Draws all samples.
  ///
  /// @param options The options. Default: those of ShapeGenerator::kNotebook.
  /// @throws c10::ValueError as the class says.
  explicit ShapeDataset(const ShapeDatasetOptions& options = {}) : options_(with_defaults(options)) {
    check();
    inputs_ = torch::empty({options_.max_samples(), 1, options_.size()}, torch::kFloat);
    targets_ = torch::empty_like(inputs_);
    by_generator([this](const auto& generator) { draw(generator); });
  }

  /// All inputs: (max_samples, 1, size), float32.
  const torch::Tensor& inputs() const { return inputs_; }

  /// All targets: (max_samples, 1, size), float32.
  const torch::Tensor& targets() const { return targets_; }

  /// The shapes of a sample, from left to right. They are not stored: the function draws them again.
  ///
  /// @param index The sample, from 0.
  /// @return The shapes, before noise and normalization.
  /// @throws c10::IndexError for an index that is not below size().
  std::vector<DrawnShape> shapes(std::size_t index) const {
    check_index(index);
    detail::Drawing drawing;
    by_generator(
        [&](const auto& generator) { generator.draw(kShapeStream, static_cast<std::int64_t>(index), drawing); });
    return drawing.shapes;
  }

  /// The number of samples.
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(options_.max_samples()); }

  /// One sample.
  ///
  /// @param index The sample, from 0.
  /// @return Data and target, (1, size) each: views of inputs() and targets().
  /// @throws c10::IndexError for an index that is not below size().
  torch::data::Example<> get(std::size_t index) const {
    check_index(index);
    const auto i = static_cast<std::int64_t>(index);
    return {inputs_[i], targets_[i]};
  }

  /// A batch of samples.
  ///
  /// @param indices The samples, in any order.
  /// @return Data and target, (indices.size(), 1, size) each.
  /// @throws c10::IndexError for an index that is not below size().
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    for (const std::size_t index : indices) check_index(index);
    const torch::Tensor rows =
        torch::tensor(std::vector<std::int64_t>(indices.begin(), indices.end()), torch::kLong);  // (batch)
    return {inputs_.index_select(0, rows), targets_.index_select(0, rows)};
  }

  /// The data set with a transform of torch applied to it.
  ///
  /// @param transform A transform of batches as get_batch() returns them, or a transform of vectors of single samples,
  /// such as torch::data::transforms::Stack<>.
  /// @return A data set of torch. It holds a copy of this one, which shares its tensors.
  template <class Transform>
  auto map(Transform transform) const {
    if constexpr (std::is_same_v<typename Transform::InputBatchType, BatchType>)
      return torch::data::datasets::MapDataset<ShapeDataset, Transform>(*this, std::move(transform));
    else
      return torch::data::datasets::map(detail::Samples<ShapeDataset>(*this), std::move(transform));
  }

  /// The options of the constructor. Options that were not set have the default of the option generator.
  const ShapeDatasetOptions& options() const { return options_; }

 private:
  static constexpr std::int64_t kLargestSize = 1 << 20, kLargestHeight = 1 << 20;  // generators' products are exact
  static constexpr double kLargestNoise = 1e9;                                     // far from overflow

  // Philox counters of a sample: shapes and noise use streams that never overlap.
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

  /// Calls `action` with the generator of the options.
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
    // The product of two float32 numbers is exact in double, so the sum is the same whether it is contracted or not.
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
