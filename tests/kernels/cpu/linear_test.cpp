// SPDX-License-Identifier: MIT
#include <attend/kernels/cpu/linear.h>

#include "simd/isas.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace linear_test {

using namespace attend;

std::vector<float> draws(std::size_t count, int seed) {
  std::mt19937 generator(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

double gelu_in_double(double x) { return x * 0.5 * std::erfc(-x * std::sqrt(0.5)); }

TEST_CASE("LinearCall: x Wᵀ + b and its GELU are those of a loop in double, for sizes that fill no panel") {
  test::for_each_isa([]<class Isa>(Isa) {
    const auto& tiles = cpu::kTileOperations<float, Isa>;
    const auto& operations = cpu::kLinearOperations<Isa>;
    for (const auto& [rows, channels, outputs] :
         std::vector<std::array<int, 3>>{{5, 384, 70}, {13, 130, 64}, {1, 7, 3}, {12, 1, 129}})
      for (const bool has_bias : {true, false})
        for (const auto activation : {cpu::LinearActivation::kNone, cpu::LinearActivation::kGelu}) {
          CAPTURE(rows);
          CAPTURE(outputs);
          const std::vector<float> x = draws(rows * channels, 1), weight = draws(outputs * channels, 2),
                                   bias = draws(outputs, 3);
          std::vector<float> y(rows * outputs, -1.0f);
          const cpu::LinearCall call{
              x.data(), weight.data(), has_bias ? bias.data() : nullptr, y.data(), rows, channels, outputs, activation};
          std::vector<float> packed(call.packed_size()), sums(rows * cpu::kTileQueries);
          for (int panel = 0; panel < call.panels(); ++panel) call.pack(panel, packed.data(), tiles);
          for (int first = 0; first < rows; first += 4)
            call.compute(first, std::min(4, rows - first), packed.data(), sums.data(), tiles, operations);
          double largest_error = 0;
          for (int i = 0; i < rows; ++i)
            for (int j = 0; j < outputs; ++j) {
              double expected = has_bias ? bias[j] : 0;
              for (int k = 0; k < channels; ++k) expected += double(x[i * channels + k]) * weight[j * channels + k];
              if (activation == cpu::LinearActivation::kGelu) expected = gelu_in_double(expected);
              largest_error =
                  std::max(largest_error, std::abs(expected - y[i * outputs + j]) / (1 + std::abs(expected)));
            }
          CHECK(largest_error < 1e-6 * std::sqrt(channels));
        }
  });
}

TEST_CASE("gelu: its error is below 3e-7 times the number, and infinity and NaN stay what they are") {
  test::for_each_isa([]<class Isa>(Isa) {
    const auto gelu = [](float x) {
      std::vector<float> sums(cpu::kTileQueries, x);
      float y = 0;
      cpu::kLinearOperations<Isa>.finish(sums.data(), nullptr, cpu::LinearActivation::kGelu, &y, 1, 1, 1);
      return y;
    };
    double largest_error = 0;
    for (int i = -150000; i <= 150000; ++i) {
      const float x = static_cast<float>(i) * 1e-4f;
      largest_error =
          std::max(largest_error, std::abs(gelu(x) - gelu_in_double(x)) / std::max(1e-3, std::abs(double(x))));
    }
    CHECK(largest_error < 3e-7);
    CHECK(gelu(std::numeric_limits<float>::infinity()) == std::numeric_limits<float>::infinity());
    CHECK(gelu(1e30f) == 1e30f);
    CHECK(gelu(-1e30f) == 0);
    CHECK(std::isnan(gelu(std::numeric_limits<float>::quiet_NaN())));
  });
}

}  // namespace linear_test
