// SPDX-License-Identifier: MIT
#include <attend/data/detail/uniform_stream.h>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

using attend::detail::UniformStream;

TEST_CASE("UniformStream: numbers are uniform between -1 and 1, without the end points and without bias") {
  constexpr int kCount = 1'000'000;
  std::vector<float> numbers(kCount);
  UniformStream(7, 0, 3).fill(numbers.data(), kCount);
  std::vector<int> counts(20);
  double sum = 0;
  for (const float x : numbers) {
    REQUIRE(std::abs(x) < 1.0f);
    sum += x;
    ++counts[static_cast<int>((x + 1) * 10)];
  }
  CHECK(std::abs(sum / kCount) < 5 / std::sqrt(3.0 * kCount));
  for (const int count : counts) CHECK(std::abs(count - kCount / 20) < 5 * std::sqrt(kCount * 0.05 * 0.95));
}

TEST_CASE("UniformStream: a stream continues where it ended, and differs by seed, counter and sample") {
  std::vector<float> whole(100), parts(100);
  UniformStream(7, 0, 3).fill(whole.data(), 100);
  UniformStream stream(7, 0, 3);
  stream.fill(parts.data(), 33);
  stream.fill(parts.data() + 33, 67);
  CHECK(whole == parts);
  for (UniformStream other : {UniformStream(8, 0, 3), UniformStream(7, 1 << 20, 3), UniformStream(7, 0, 4)}) {
    other.fill(parts.data(), 100);
    CHECK(whole != parts);
  }
}
