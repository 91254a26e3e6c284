// SPDX-License-Identifier: MIT
#include <attend/data/detail/gaussian_stream.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

using attend::detail::GaussianStream;

TEST_CASE("GaussianStream: a million numbers have the moments and distribution function of a standard normal") {
  constexpr int kCount = 1'000'000;
  GaussianStream stream(/*seed=*/3, /*first_counter=*/0, /*sample=*/0);
  std::vector<float> numbers(kCount);
  stream.fill(numbers.data(), kCount);

  double moments[5] = {};
  for (const double x : numbers)
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(x, power) / kCount;
  const double error =
      5 / std::sqrt(static_cast<double>(kCount));  // five standard errors; times the deviation of each moment
  CHECK(std::abs(moments[1]) < error);
  CHECK(std::abs(moments[2] - 1) < error * std::sqrt(2.0));
  CHECK(std::abs(moments[3]) < error * std::sqrt(15.0));
  CHECK(std::abs(moments[4] - 3) < error * std::sqrt(96.0));

  // Kolmogorov-Smirnov: the largest distance from the normal distribution function exceeds 1.95 once in a thousand.
  std::sort(numbers.begin(), numbers.end());
  double distance = 0;
  for (int i = 0; i < kCount; ++i)
    distance = std::max(distance, std::abs(0.5 * std::erfc(-numbers[i] / std::sqrt(2.0)) - (i + 0.5) / kCount));
  CHECK(distance * std::sqrt(static_cast<double>(kCount)) < 1.95);
}

TEST_CASE("GaussianStream: both tails are those of the normal distribution") {
  constexpr int kCount = 4'000'000;
  const double limits[] = {2.5, 3.5, 3.6542, 4.0, 4.5};  // the tail of the lowest layer begins at 3.65415
  int beyond[2][5] = {};
  GaussianStream stream(/*seed=*/5, /*first_counter=*/0, /*sample=*/1);
  std::vector<float> numbers(kCount);
  stream.fill(numbers.data(), kCount);
  for (const double x : numbers) {
    for (int k = 0; k < 5; ++k) beyond[x < 0][k] += std::abs(x) > limits[k];
  }
  for (int k = 0; k < 5; ++k) {
    const double expected = kCount * 0.5 * std::erfc(limits[k] / std::sqrt(2.0));
    CAPTURE(limits[k]);
    for (const auto& side : beyond) CHECK(std::abs(side[k] - expected) <= 5 * std::sqrt(expected));
  }
}

TEST_CASE("GaussianStream: streams differ by sample, seed and counter; equal ones are equal") {
  const auto first = [](std::uint64_t seed, std::uint64_t counter, std::int64_t sample) {
    float number = 0;
    GaussianStream(seed, counter, sample).fill(&number, 1);
    return number;
  };
  CHECK(first(1, 2, 3) == first(1, 2, 3));
  CHECK(first(1, 2, 3) != first(2, 2, 3));
  CHECK(first(1, 2, 3) != first(1, 1, 3));
  CHECK(first(1, 2, 3) != first(1, 2, 4));
}

TEST_CASE("GaussianStream: numbers do not depend on how many are drawn at a time") {
  constexpr int kCount = 10'000;
  std::vector<float> at_once(kCount), in_parts(kCount);
  GaussianStream(1, 2, 3).fill(at_once.data(), kCount);
  GaussianStream stream(1, 2, 3);
  for (int begin = 0, size = 0; begin < kCount; begin += size) {
    size = std::min(size % 70 + 1, kCount - begin);
    stream.fill(in_parts.data() + begin, size);
  }
  CHECK((at_once == in_parts));
}
