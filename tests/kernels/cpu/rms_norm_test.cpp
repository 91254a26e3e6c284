// SPDX-License-Identifier: MIT

// Root mean square normalization of rows, held against loops in double.

#include "simd/isas.h"

#include <attend/kernels/cpu/rms_norm.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

using namespace attend;
using cpu::BFloat16;

namespace {

template <class Element>
constexpr double kRounding = std::is_same_v<Element, double>     ? std::numeric_limits<double>::epsilon()
                             : std::is_same_v<Element, BFloat16> ? 1.0 / 256
                                                                 : std::numeric_limits<float>::epsilon();

template <class Element>
std::vector<Element> random_elements(std::int64_t count, std::uint32_t seed) {
  std::vector<Element> elements;
  for (const float number : test::random_numbers<float>(static_cast<std::size_t>(count), seed))
    elements.push_back(Element(number));
  return elements;
}

}  // namespace

TEST_CASE_TEMPLATE("RmsNormParams: forward and backward on every instruction set, width and range of rows", Element,
                   float, double, BFloat16) {
  using T = cpu::Computed<Element>;
  test::for_each_isa([](auto isa) {
    for (const int width : {1, 3, 8, 16, 17, 64, 100, 128, 300}) {
      CAPTURE(width);
      const cpu::Three sizes{2, 3, 15};
      const std::int64_t rows = 90;
      const auto n = static_cast<std::int64_t>(width);
      const auto x = random_elements<Element>(rows * n, 1), g = random_elements<Element>(rows * n, 2);
      const auto weight = test::random_numbers<T>(static_cast<std::size_t>(width), 3);
      std::vector<Element> y(x.size()), dx(x.size());
      std::vector<T> inverses(rows), sums(static_cast<std::size_t>(width));
      const T eps = T(1e-3);
      // x is (2, 3, 15) in memory, the others are (2, 15, 3).
      const cpu::Three in_order{45 * n, 15 * n, n}, swapped{45 * n, n, 3 * n};
      const cpu::RmsNormParams<Element> params{
          sizes,         width,           {x.data(), in_order},
          weight.data(), inverses.data(), &cpu::kRmsNormOperations<Element, decltype(isa)>};
      for (const auto& [begin, end] : {std::pair(40, 90), std::pair(0, 40)}) {
        params.forward({y.data(), swapped}, eps, begin, end);
        params.backward({g.data(), swapped}, {dx.data(), swapped}, sums.data(), begin, end);
      }
      int wrong = 0;
      std::vector<double> exact_sums(sums.size()), sizes_of_sums(sums.size());
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t i = row / 45, j = row / 15 % 3, k = row % 15;
        const Element* const from = x.data() + row * n;
        const auto other = static_cast<std::size_t>(i * 45 * n + j * n + k * 3 * n);
        double squares = 0, products = 0, size = 0;
        for (int d = 0; d < width; ++d) squares += static_cast<double>(from[d]) * static_cast<double>(from[d]);
        const double inverse = 1 / std::sqrt(squares / width + eps);
        const auto at = [&](int d) { return static_cast<double>(from[d]) * inverse; };
        const auto given = [&](int d) { return static_cast<double>(g[other + static_cast<std::size_t>(d)]); };
        const auto factor = [&](int d) { return static_cast<double>(weight[static_cast<std::size_t>(d)]); };
        for (int d = 0; d < width; ++d) {
          products += given(d) * factor(d) * at(d) / width;
          size += std::abs(given(d) * factor(d) * at(d)) / width;
        }
        for (int d = 0; d < width; ++d) {
          const auto entry = other + static_cast<std::size_t>(d);
          const double exact = at(d) * factor(d), exact_dx = inverse * (given(d) * factor(d) - at(d) * products);
          const double size_of_dx = inverse * (std::abs(given(d) * factor(d)) + std::abs(at(d)) * size);
          wrong += !(std::abs(static_cast<double>(y[entry]) - exact) <= 8 * kRounding<Element> * std::abs(exact));
          wrong += !(std::abs(static_cast<double>(dx[entry]) - exact_dx) <= 16 * kRounding<Element> * size_of_dx);
          exact_sums[static_cast<std::size_t>(d)] += given(d) * at(d);
          sizes_of_sums[static_cast<std::size_t>(d)] += std::abs(given(d) * at(d));
        }
      }
      for (std::size_t d = 0; d < sums.size(); ++d)
        wrong += !(std::abs(static_cast<double>(sums[d]) - exact_sums[d]) <= 16 * kRounding<T> * sizes_of_sums[d]);
      CHECK(wrong == 0);

      // Without one of the two gradients the other one is the same.
      std::vector<Element> dx_alone(x.size());
      std::vector<T> sums_alone(sums.size());
      params.backward({g.data(), swapped}, {dx_alone.data(), swapped}, nullptr, 0, rows);
      params.backward({g.data(), swapped}, {nullptr, {}}, sums_alone.data(), 40, 90);
      params.backward({g.data(), swapped}, {nullptr, {}}, sums_alone.data(), 0, 40);
      for (std::size_t d = 0; d < dx.size(); ++d)
        wrong += static_cast<double>(dx_alone[d]) != static_cast<double>(dx[d]);
      CHECK(wrong == 0);
      CHECK(sums_alone == sums);
    }
  });
}
