// SPDX-License-Identifier: MIT
#include <attend/data/shape_dataset.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/data/dataloader.h>
#include <torch/data/samplers/sequential.h>
#include <torch/data/transforms.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

using attend::GroupBy;
using attend::Normalization;
using attend::ShapeDataset;
using attend::ShapeDatasetOptions;
using attend::ShapeGenerator;
using attend::test::max_difference;
using attend::test::message_of;

namespace {

/// A shape, read back from a signal without noise.
struct Shape {
  int base, width;
  bool is_triangle;
  double height;
};

/// The heights of one signal of a data set without noise and normalization.
std::vector<double> row(const torch::Tensor& signals, std::int64_t index) {
  const torch::Tensor signal = signals[index][0].to(torch::kDouble).contiguous();
  return {signal.data_ptr<double>(), signal.data_ptr<double>() + signal.numel()};
}

/// Finds the shapes. They are at least ten positions apart, and a triangle of height 5 or more is 0 only at its first
/// position.
std::vector<Shape> shapes_of(const std::vector<double>& signal) {
  std::vector<Shape> shapes;
  for (int i = 0; i < static_cast<int>(signal.size());) {
    if (signal[i] == 0.0) {
      ++i;
      continue;
    }
    int end = i;
    double height = 0;
    bool is_flat = true;
    for (; end < static_cast<int>(signal.size()) && signal[end] != 0.0; ++end) {
      height = std::max(height, signal[end]);
      is_flat &= signal[end] == signal[i];
    }
    if (is_flat)
      shapes.push_back({i, end - i, false, height});
    else
      shapes.push_back({i - 1, end - i + 1, true, height});
    i = end;
  }
  return shapes;
}

ShapeDatasetOptions clean(std::int64_t samples) {
  return ShapeDatasetOptions().noise_std(0).normalize(Normalization::kNone).max_samples(samples);
}

/// The probability of each number of shapes in a signal, computed from the rule: the sum over all bases and widths.
std::map<int, double> exact_shape_counts(int size) {
  std::vector<std::map<int, double>> from(size + 20);  // from[offset][count]
  for (int offset = size + 19; offset >= 0; --offset) {
    if (offset >= size) {
      from[offset][0] = 1.0;
      continue;
    }
    for (int base = offset; base < offset + 10; ++base) {
      for (int width = 3; width < 10; ++width) {
        if (base + width > size)
          from[offset][0] += 1.0 / 70;
        else
          for (const auto& [count, probability] : from[base + width + 10]) from[offset][count + 1] += probability / 70;
      }
    }
  }
  return from[0];
}

/// The FNV-1a hash of the bytes.
std::uint64_t hash_of(const torch::Tensor& tensor) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  for (std::size_t i = 0; i < tensor.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

}  // namespace

TEST_CASE("ShapeDataset: inputs and targets are float32 (samples, 1, size); each signal has minimum 0 and maximum 1") {
  const ShapeDataset data(ShapeDatasetOptions().size(64).max_samples(50));
  CHECK(*data.size() == 50);
  for (const torch::Tensor& signals : {data.inputs(), data.targets()}) {
    CHECK(signals.sizes() == torch::IntArrayRef{50, 1, 64});
    CHECK((signals.scalar_type() == torch::kFloat));
    CHECK(signals.amin(2).eq(0).all().item<bool>());
    CHECK(signals.amax(2).eq(1).all().item<bool>());
  }
}

TEST_CASE("ShapeDataset: kNotebook signals have the same bits on every machine (hashes)") {
  const ShapeDataset data(ShapeDatasetOptions().max_samples(1000).seed(7));
  CHECK(hash_of(data.inputs()) == 10463862153472878844u);
  CHECK(hash_of(data.targets()) == 18009845325878920402u);
}

TEST_CASE("ShapeDataset: a sample depends only on seed and index") {
  const ShapeDataset few(ShapeDatasetOptions().max_samples(10).seed(3));
  const ShapeDataset many(ShapeDatasetOptions().max_samples(100).seed(3));
  const ShapeDataset other(ShapeDatasetOptions().max_samples(10).seed(4));
  CHECK(few.inputs().equal(many.inputs().slice(0, 0, 10)));
  CHECK(few.targets().equal(many.targets().slice(0, 0, 10)));
  CHECK_FALSE(few.inputs().equal(other.inputs()));
  torch::manual_seed(1);
  const torch::Tensor before = torch::rand({1});
  torch::manual_seed(1);
  const ShapeDataset again(ShapeDatasetOptions().max_samples(10).seed(3));
  CHECK(torch::rand({1}).equal(before));  // torch's generator does not change
  CHECK(again.inputs().equal(few.inputs()));
}

TEST_CASE("ShapeDataset: the number of threads does not change a bit") {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const ShapeDataset one(ShapeDatasetOptions().max_samples(500));
  at::set_num_threads(3);
  const ShapeDataset three(ShapeDatasetOptions().max_samples(500));
  at::set_num_threads(threads);
  CHECK(one.inputs().equal(three.inputs()));
  CHECK(one.targets().equal(three.targets()));
}

TEST_CASE("ShapeDataset: noise_std and normalize do not change the shapes that are drawn") {
  const ShapeDataset plain(clean(20).seed(5));
  const ShapeDataset noisy(clean(20).seed(5).noise_std(0.1));
  CHECK(max_difference(plain.inputs(), noisy.inputs()) < 0.1 * 6);
  CHECK(max_difference(plain.inputs(), noisy.inputs()) > 0.1);
}

TEST_CASE("ShapeDataset: 100,000 samples have the statistics of the notebook's rule") {
  constexpr int kSamples = 100'000;
  const ShapeDataset data(clean(kSamples).seed(11));
  std::map<int, int> counts, widths, heights, first_bases;
  int one_kind_only = 0, triangles = 0, shapes_in_all = 0;
  const torch::Tensor inputs = data.inputs().to(torch::kDouble);
  for (int i = 0; i < kSamples; ++i) {
    const auto* signal = inputs.const_data_ptr<double>() + i * 100;
    const std::vector<Shape> shapes = shapes_of({signal, signal + 100});
    ++counts[static_cast<int>(shapes.size())];
    std::set<bool> kinds;
    for (const Shape& shape : shapes) {
      kinds.insert(shape.is_triangle);
      triangles += shape.is_triangle;
      ++shapes_in_all;
      ++heights[static_cast<int>(shape.height)];
    }
    one_kind_only += kinds.size() == 1;
    ++first_bases[shapes.front().base];
    ++widths[shapes.front().width];
  }
  // Checks that a share is within five standard errors of a probability.
  const auto check_share = [](int hits, int of, double probability) {
    CAPTURE(hits);
    CAPTURE(probability);
    const double share = static_cast<double>(hits) / of;
    CHECK(std::abs(share - probability) <= 5 * std::sqrt(probability * (1 - probability) / of));
  };

  SUBCASE("the number of shapes and the share of signals of one kind equal the probabilities computed from the rule") {
    double exact_one_kind_only = 0;
    for (const auto& [count, probability] : exact_shape_counts(100)) {
      check_share(counts[count], kSamples, probability);
      exact_one_kind_only += probability * 2 * std::pow(0.5, count);
    }
    check_share(one_kind_only, kSamples, exact_one_kind_only);
  }
  SUBCASE("they equal the published figures, which are rounded to a tenth of a percent") {
    const std::map<int, double> published{{4, 15.7}, {5, 77.0}, {6, 7.3}};
    for (const auto& [count, percent] : published) CHECK(std::abs(100.0 * counts[count] / kSamples - percent) < 0.5);
    CHECK(std::abs(100.0 * one_kind_only / kSamples - 6.9) < 0.5);
  }
  SUBCASE("kinds, heights, the first base and the first width are uniform") {
    check_share(triangles, shapes_in_all, 0.5);
    CHECK(heights.size() == 45);
    for (int height = 5; height < 50; ++height) check_share(heights[height], shapes_in_all, 1.0 / 45);
    CHECK(first_bases.size() == 10);
    for (int base = 0; base < 10; ++base) check_share(first_bases[base], kSamples, 0.1);
    CHECK(widths.size() == 7);
    for (int width = 3; width < 10; ++width) check_share(widths[width], kSamples, 1.0 / 7);
  }
}

TEST_CASE("ShapeDataset: every shape is drawn as the rule says, and the target has each kind's mean height") {
  const ShapeDataset data(clean(2000).seed(1));
  for (int i = 0; i < 2000; ++i) {
    const std::vector<double> input = row(data.inputs(), i), target = row(data.targets(), i);
    const std::vector<Shape> shapes = shapes_of(input);
    double sum[2] = {}, count[2] = {};
    for (const Shape& shape : shapes) {
      sum[shape.is_triangle] += shape.height;
      count[shape.is_triangle] += 1;
    }
    // numpy's linspace(…, endpoint=False, dtype=int), with the steps as exact fractions
    std::vector<double> expected_input(100), expected_target(100);
    for (const Shape& shape : shapes) {
      const int rise = shape.width / 2, fall = shape.width - rise;
      const auto draw = [&](double numerator, double denominator, std::vector<double>& signal) {
        for (int step = 0; step < rise; ++step)
          signal[shape.base + step] = std::floor(numerator * step / (denominator * rise));
        for (int step = 0; step < fall; ++step)
          signal[shape.base + rise + step] = std::floor(numerator * (fall - step) / (denominator * fall));
        if (!shape.is_triangle)
          for (int step = 0; step < shape.width; ++step) signal[shape.base + step] = numerator / denominator;
      };
      draw(shape.height, 1, expected_input);
      draw(sum[shape.is_triangle], count[shape.is_triangle], expected_target);
    }
    REQUIRE(input == expected_input);
    for (int position = 0; position < 100; ++position)
      REQUIRE(target[position] == doctest::Approx(expected_target[position]).epsilon(1e-6));
  }
}

TEST_CASE("ShapeDataset: a small triangle equals the one drawn by hand") {
  // Among many samples, one with a triangle of width 5 and height 9: rise 2 steps 0, 4.5; fall 3 steps 9, 6, 3.
  const ShapeDataset data(clean(3000));
  int found = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::vector<double> input = row(data.inputs(), i);
    for (const Shape& shape : shapes_of(input)) {
      if (!shape.is_triangle || shape.width != 5 || shape.height != 9) continue;
      ++found;
      const std::vector<double> drawn(input.begin() + shape.base, input.begin() + shape.base + 5);
      CHECK(drawn == std::vector<double>{0, 4, 9, 6, 3});
    }
  }
  CHECK(found > 0);
}

TEST_CASE("ShapeDataset: noise is Gaussian with standard deviation noise_std, independent for input and target") {
  const ShapeDataset plain(clean(2000).seed(2));
  const ShapeDataset noisy(clean(2000).seed(2).noise_std(0.3));
  const torch::Tensor input_noise = (noisy.inputs() - plain.inputs()).to(torch::kDouble).flatten();
  const torch::Tensor target_noise = (noisy.targets() - plain.targets()).to(torch::kDouble).flatten();
  const double five_errors = 5 / std::sqrt(200'000.0);
  for (const torch::Tensor& noise : {input_noise, target_noise}) {
    CHECK(std::abs(noise.mean().item<double>()) < 0.3 * five_errors);
    CHECK(noise.std().item<double>() == doctest::Approx(0.3).epsilon(five_errors));
  }
  CHECK(std::abs((input_noise * target_noise).mean().item<double>()) < 0.09 * five_errors);
}

TEST_CASE("normalize: kMinMax maps each signal to [0, 1], kMaxHeight divides by max_height") {
  const ShapeDataset raw(ShapeDatasetOptions().max_samples(20).normalize(Normalization::kNone));
  const ShapeDataset min_max(ShapeDatasetOptions().max_samples(20));
  const ShapeDataset max_height(ShapeDatasetOptions().max_samples(20).normalize(Normalization::kMaxHeight));
  const torch::Tensor low = raw.inputs().amin(2, true), high = raw.inputs().amax(2, true);
  CHECK(max_difference(min_max.inputs(), (raw.inputs() - low) / (high - low)) < 1e-6);
  CHECK(max_difference(max_height.inputs(), raw.inputs() / 50) < 1e-6);
  CHECK(max_difference(max_height.targets(), raw.targets() / 50) < 1e-6);
}

TEST_CASE("ShapeDataset: the options size and max_height take effect") {
  const ShapeDataset data(clean(500).size(40).max_height(7));
  CHECK(data.inputs().size(2) == 40);
  CHECK(data.inputs().max().item<float>() == 6);
  const ShapeDataset smallest(ShapeDatasetOptions().size(18).max_height(6).noise_std(0).max_samples(200));
  CHECK(smallest.inputs().isfinite().all().item<bool>());
}

// ---- group_by(kLocation), shapes(), the handout's rule --------------------------------------------------------------

TEST_CASE("group_by: kLocation gives the left half of the shapes one mean height, and the right half another") {
  const ShapeDataset data(clean(500).group_by(GroupBy::kLocation)), by_kind(clean(500));
  CHECK(data.inputs().equal(by_kind.inputs()));  // the same shapes
  for (int i = 0; i < 500; ++i) {
    const std::vector<Shape> shapes = shapes_of(row(data.inputs(), i)), averaged = shapes_of(row(data.targets(), i));
    const std::size_t half = shapes.size() / 2;
    double sum[2] = {};
    for (std::size_t shape = 0; shape < shapes.size(); ++shape) sum[shape >= half] += shapes[shape].height;
    const double mean[2] = {sum[0] / half, sum[1] / (shapes.size() - half)};
    const std::vector<attend::DrawnShape> told = data.shapes(i);
    for (std::size_t shape = 0; shape < shapes.size(); ++shape)
      CHECK(told[shape].target_height == doctest::Approx(mean[shape >= half]).epsilon(1e-12));
    REQUIRE(averaged.size() == shapes.size());
    for (std::size_t shape = 0; shape < shapes.size(); ++shape)
      CHECK(std::floor(averaged[shape].height) == std::floor(mean[shape >= half]));  // triangles have integer parts
  }
}

TEST_CASE("ShapeDataset: shapes() returns the shapes that the notebook's rule drew") {
  const ShapeDataset data(clean(500).seed(9));
  for (int i = 0; i < 500; ++i) {
    const std::vector<Shape> seen = shapes_of(row(data.inputs(), i));
    const std::vector<attend::DrawnShape> told = data.shapes(i);
    REQUIRE(told.size() == seen.size());
    for (std::size_t shape = 0; shape < seen.size(); ++shape) {
      CHECK((told[shape].kind == attend::ShapeKind::kTriangle) == seen[shape].is_triangle);
      CHECK(told[shape].centre == seen[shape].base + (seen[shape].width - 1) / 2.0);
      CHECK(told[shape].width == seen[shape].width);
      CHECK(told[shape].height == seen[shape].height);
    }
  }
}

namespace {

ShapeDatasetOptions handout(std::int64_t samples) {
  return ShapeDatasetOptions().generator(ShapeGenerator::kHandout).max_samples(samples);
}

/// The handout's formulas for one shape, of a height, at position t.
double handout_height(const attend::DrawnShape& shape, double height, int t) {
  const double distance = std::abs(t - shape.centre), slope = 2 * height / shape.width;
  const auto relu = [](double x) { return std::max(x, 0.0); };
  if (shape.kind == attend::ShapeKind::kTriangle) return relu(height - slope * relu(distance - 0.5));
  return distance * slope < height ? height : 0.0;
}

}  // namespace

TEST_CASE("kHandout: signals are the maximum of the handout's formulas, and noise is uniform within 0.15") {
  for (const GroupBy group_by : {GroupBy::kKind, GroupBy::kLocation}) {
    const ShapeDataset plain(handout(1000).group_by(group_by).noise_std(0)), noisy(handout(1000).group_by(group_by));
    for (int i = 0; i < 1000; ++i) {
      const std::vector<attend::DrawnShape> shapes = plain.shapes(i);
      const std::vector<double> input = row(plain.inputs(), i), target = row(plain.targets(), i);
      for (int t = 0; t < 100; ++t) {
        double highest[2] = {};
        for (const attend::DrawnShape& shape : shapes) {
          highest[0] = std::max(highest[0], handout_height(shape, shape.height, t));
          highest[1] = std::max(highest[1], handout_height(shape, shape.target_height, t));
        }
        REQUIRE(input[t] == doctest::Approx(highest[0]).epsilon(1e-6));
        REQUIRE(target[t] == doctest::Approx(highest[1]).epsilon(1e-6));
      }
    }
    const torch::Tensor input_noise = (noisy.inputs() - plain.inputs()).to(torch::kDouble).flatten();
    const torch::Tensor target_noise = (noisy.targets() - plain.targets()).to(torch::kDouble).flatten();
    const double five_errors = 5 / std::sqrt(100'000.0);
    for (const torch::Tensor& noise : {input_noise, target_noise}) {
      CHECK(noise.abs().max().item<double>() <= 0.15 + 1e-5);
      CHECK(noise.abs().max().item<double>() > 0.1499);
      CHECK(std::abs(noise.mean().item<double>()) < 0.15 * five_errors);
      CHECK(noise.std().item<double>() == doctest::Approx(0.15 / std::sqrt(3)).epsilon(five_errors));
      CHECK(noise.pow(4).mean().item<double>() == doctest::Approx(std::pow(0.15, 4) / 5).epsilon(2 * five_errors));
    }
    CHECK(std::abs((input_noise * target_noise).mean().item<double>()) < 0.0075 * five_errors);
  }
}

TEST_CASE("kHandout: shapes follow the handout's rules: kinds, ranges, gaps, differences, means") {
  const double kLargest = std::numeric_limits<double>::infinity();
  for (const GroupBy group_by : {GroupBy::kKind, GroupBy::kLocation}) {
    const ShapeDataset data(handout(3000).group_by(group_by).noise_std(0));
    double smallest[3] = {kLargest, kLargest, kLargest}, largest[3] = {};
    int kinds_to_the_left = 0;
    for (int i = 0; i < 3000; ++i) {
      const std::vector<attend::DrawnShape> shapes = data.shapes(i);
      REQUIRE(shapes.size() == 4);
      int triangles = 0;
      std::vector<double> sums(2), heights_of_triangles;
      for (int s = 0; s < 4; ++s) {
        const bool is_triangle = shapes[s].kind == attend::ShapeKind::kTriangle;
        triangles += is_triangle;
        if (is_triangle) heights_of_triangles.push_back(shapes[s].height);
        sums[group_by == GroupBy::kKind ? is_triangle : s >= 2] += shapes[s].height;
        if (s > 0) CHECK(shapes[s].centre >= shapes[s - 1].centre);
        const double figures[] = {shapes[s].centre, shapes[s].height, shapes[s].width};
        for (int figure = 0; figure < 3; ++figure) {
          smallest[figure] = std::min(smallest[figure], figures[figure]);
          largest[figure] = std::max(largest[figure], figures[figure]);
        }
      }
      CHECK(triangles == 2);
      kinds_to_the_left += shapes[0].kind == attend::ShapeKind::kTriangle;
      for (int s = 0; s < 4; ++s) {
        const bool is_triangle = shapes[s].kind == attend::ShapeKind::kTriangle;
        CHECK(shapes[s].target_height == sums[group_by == GroupBy::kKind ? is_triangle : s >= 2] / 2);
      }
      if (group_by == GroupBy::kKind)
        CHECK(std::abs(heights_of_triangles[0] - heights_of_triangles[1]) > 4);
      else
        CHECK(std::abs(sums[0] - sums[1]) / 2 > 4);
      // The signal has four runs of positions above 0, with a gap between any two of them.
      const std::vector<double> signal = row(data.inputs(), i);
      int runs = 0;
      for (int t = 0; t < 100; ++t) runs += signal[t] > 0 && (t == 0 || signal[t - 1] == 0);
      CHECK(runs == 4);
    }
    const double low[3] = {5.5, 1, 5}, high[3] = {94.5, 25, 11};
    for (int figure = 0; figure < 3; ++figure) {
      CHECK(smallest[figure] > low[figure]);
      CHECK(smallest[figure] < low[figure] + 0.01 * (high[figure] - low[figure]));
      CHECK(largest[figure] < high[figure]);
      CHECK(largest[figure] > high[figure] - 0.01 * (high[figure] - low[figure]));
    }
    CHECK(std::abs(kinds_to_the_left - 1500) < 5 * std::sqrt(750.0));
  }
}

TEST_CASE("kHandout: training inputs have mean 3.32 and deviation 6.23, as measured with the handout's program") {
  const ShapeDataset data(handout(25'000).seed(1));
  CHECK(data.inputs().mean().item<double>() == doctest::Approx(3.32).epsilon(0.01));
  CHECK(data.inputs().std().item<double>() == doctest::Approx(6.23).epsilon(0.01));
}

TEST_CASE("kHandout: signals have the same bits on every machine (hashes)") {
  const ShapeDataset by_kind(handout(1000).seed(7));
  CHECK(hash_of(by_kind.inputs()) == 13781196172308212997u);
  CHECK(hash_of(by_kind.targets()) == 13455683901996438491u);
  const ShapeDataset by_location(handout(1000).seed(7).group_by(GroupBy::kLocation));
  CHECK(hash_of(by_location.inputs()) == 16065106599729788971u);
  CHECK(hash_of(by_location.targets()) == 7755729451977909990u);
}

TEST_CASE("ShapeDataset: defaults depend on the generator, and given options override them") {
  const ShapeDataset notebook(ShapeDatasetOptions().max_samples(1)), handouts(handout(1));
  CHECK(*notebook.options().max_height() == 50);
  CHECK(*notebook.options().noise_std() == 0.3);
  CHECK((*notebook.options().normalize() == Normalization::kMinMax));
  CHECK(*handouts.options().max_height() == 25);
  CHECK(*handouts.options().noise_std() == doctest::Approx(0.15 / std::sqrt(3)));
  CHECK((*handouts.options().normalize() == Normalization::kNone));
  const ShapeDataset raw(handout(100).max_height(40)),
      scaled(handout(100).max_height(40).normalize(Normalization::kMaxHeight));
  CHECK(raw.inputs().max().item<double>() > 30);
  CHECK(max_difference(scaled.inputs(), raw.inputs() / 40) < 1e-6);
}

TEST_CASE("ShapeDataset: options that leave almost no valid signals end with an error") {
  CHECK(message_of<c10::ValueError>([] { ShapeDataset data(handout(25'000).size(30)); }) ==
        "attend::ShapeDataset: 10000 draws gave no sample of size (30) and max_height (25) whose four shapes do not "
        "touch "
        "and whose heights differ by more than 4; raise size or max_height");
}

TEST_CASE("ShapeDataset: it is a torch::data dataset with get, get_batch (one gather) and data loaders") {
  ShapeDataset data(ShapeDatasetOptions().max_samples(10));
  CHECK(data.get(3).data.equal(data.inputs()[3]));
  CHECK(data.get(3).target.equal(data.targets()[3]));
  CHECK(data.get(3).data.sizes() == torch::IntArrayRef{1, 100});
  const torch::data::Example<> batch = data.get_batch({4, 0, 4});
  CHECK(batch.data.equal(torch::stack({data.inputs()[4], data.inputs()[0], data.inputs()[4]})));
  CHECK(batch.target.equal(torch::stack({data.targets()[4], data.targets()[0], data.targets()[4]})));
  CHECK(data.get_batch(std::vector<std::size_t>{}).data.sizes() == torch::IntArrayRef{0, 1, 100});

  auto loader = torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(data, /*batch_size=*/4);
  std::vector<torch::Tensor> seen;
  for (const auto& example : *loader) seen.push_back(example.data);
  CHECK(torch::cat(seen).equal(data.inputs()));
}

TEST_CASE("ShapeDataset: map with torch's transforms, of samples and of batches, gives the batches of get_batch") {
  namespace transforms = torch::data::transforms;
  const auto check = [](auto dataset, const torch::Tensor& inputs, const torch::Tensor& targets) {
    const auto loader =
        torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(std::move(dataset), /*batch_size=*/4);
    std::int64_t first = 0;
    for (const torch::data::Example<>& batch : *loader) {
      const std::int64_t end = std::min<std::int64_t>(first + 4, 10);
      CHECK(batch.data.equal(inputs.slice(0, first, end)));
      CHECK(batch.target.equal(targets.slice(0, first, end)));
      first = end;
    }
    CHECK(first == 10);
  };
  const ShapeDataset data(ShapeDatasetOptions().max_samples(10));
  const torch::Tensor inputs = data.inputs(), targets = data.targets();
  const transforms::TensorLambda<> halve([](const torch::Tensor& x) { return x / 2.0; });
  check(ShapeDataset(ShapeDatasetOptions().max_samples(10)).map(transforms::Stack<>()), inputs, targets);
  check(data.map(transforms::Stack<>()), inputs, targets);
  check(data.map(halve).map(transforms::Stack<>()), inputs / 2.0, targets);
  check(data.map(transforms::BatchLambda<torch::data::Example<>, torch::data::Example<>>(
            [](torch::data::Example<> batch) { return torch::data::Example<>(batch.data + 1.0, batch.target - 1.0); })),
        inputs + 1.0, targets - 1.0);
  CHECK(data.map(transforms::Stack<>()).size() == 10);
}

TEST_CASE("ShapeDataset: options out of range are refused with the rule and the value") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::pair<ShapeDatasetOptions, std::string> cases[] = {
      {ShapeDatasetOptions().size(17), "attend::ShapeDataset: size (17) must be at least 18"},
      {ShapeDatasetOptions().size(-1), "size (-1) must be at least 18"},
      {ShapeDatasetOptions().size((1 << 20) + 1), "size (1048577) must be at most 1048576"},
      {ShapeDatasetOptions().max_height(5), "attend::ShapeDataset: max_height (5) must be at least 6"},
      {ShapeDatasetOptions().max_height(2'000'000), "max_height (2000000) must be at most"},
      {ShapeDatasetOptions().noise_std(-0.1), "noise_std (-0.1) must be between 0 and 1e+09"},
      {ShapeDatasetOptions().noise_std(nan), "noise_std (nan) must be between 0 and 1e+09"},
      {ShapeDatasetOptions().noise_std(1e308), "noise_std (1e+308) must be between 0 and 1e+09"},
      {ShapeDatasetOptions().max_samples(0), "max_samples (0) must be at least 1"},
      {ShapeDatasetOptions().generator(ShapeGenerator::kHandout).max_height(5),
       "attend::ShapeDataset: max_height (5) must be at least 6, since heights start at 1 and must differ by more than "
       "4"},
      {ShapeDatasetOptions().max_samples(-3), "max_samples (-3) must be at least 1"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.second);
    CHECK(message_of<c10::ValueError>([&] { ShapeDataset data(c.first); }).find(c.second) != std::string::npos);
  }
}

TEST_CASE("ShapeDataset: an index out of range is refused with the index and the size") {
  ShapeDataset data(ShapeDatasetOptions().max_samples(10));
  const std::string expected = "attend::ShapeDataset: index 10 must be below the number of samples (10)";
  CHECK(message_of<c10::IndexError>([&] { data.get(10); }).find(expected) != std::string::npos);
  CHECK(message_of<c10::IndexError>([&] {
          data.get_batch(std::vector<std::size_t>{1, 10});
        }).find(expected) != std::string::npos);
  CHECK(message_of<c10::IndexError>([&] { data.shapes(10); }).find(expected) != std::string::npos);
}
