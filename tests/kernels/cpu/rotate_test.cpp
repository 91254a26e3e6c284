// SPDX-License-Identifier: MIT

// The rotation of rows, held against loops in double.

#include "simd/isas.h"

#include <attend/kernels/cpu/rotate.h>

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

/// The relative error of one rounding.
template <class Element>
constexpr double kRounding = std::is_same_v<Element, double>     ? std::numeric_limits<double>::epsilon()
                             : std::is_same_v<Element, BFloat16> ? 1.0 / 256
                                                                 : std::numeric_limits<float>::epsilon();

template <class Element>
double value_of(Element x) {
  return static_cast<double>(x);
}

}  // namespace

TEST_CASE_TEMPLATE("RotateRows: pairs are rotated, and all other numbers are kept, for every width and layout", Element,
                   float, double, BFloat16) {
  using T = cpu::Computed<Element>;
  constexpr std::int64_t kRows = 3;
  test::for_each_isa([](auto isa) {
    for (const int pairs : {1, 2, 3, 4, 7, 8, 12, 16, 24, 31, 32, 64, 65}) {
      for (const int rest : {0, 5}) {
        for (const bool is_interleaved : {false, true}) {
          for (const T sign : {T(1), T(-1)}) {
            CAPTURE(pairs);
            CAPTURE(is_interleaved);
            const int width = 2 * pairs + rest;
            const std::int64_t x_row = width + 3, y_row = width + 1;
            const auto numbers = test::random_numbers<float>(static_cast<std::size_t>(kRows * x_row), 1);
            std::vector<Element> x, y(static_cast<std::size_t>(kRows * y_row), Element(77.0f));
            for (const float number : numbers) x.push_back(Element(number));
            const auto cos = test::random_numbers<T>(static_cast<std::size_t>(kRows * pairs), 2),
                       sin = test::random_numbers<T>(static_cast<std::size_t>(kRows * pairs), 3);
            const auto function = cpu::rotate_function<Element, decltype(isa)>(is_interleaved);
            function(x.data(), x_row, y.data(), y_row, cos.data(), pairs, sin.data(), pairs, kRows, pairs, width, sign);
            int wrong = 0;
            for (std::int64_t row = 0; row < kRows; ++row) {
              const auto at = [&](int d) { return value_of(x[static_cast<std::size_t>(row * x_row + d)]); };
              const auto result = [&](int d) { return value_of(y[static_cast<std::size_t>(row * y_row + d)]); };
              for (int i = 0; i < pairs; ++i) {
                const int first = is_interleaved ? 2 * i : i, second = is_interleaved ? 2 * i + 1 : i + pairs;
                const auto entry = static_cast<std::size_t>(row * pairs + i);
                const double c = cos[entry], s = sin[entry] * sign, a = at(first), b = at(second);
                const double size = std::abs(a * c) + std::abs(b * s) + std::abs(b * c) + std::abs(a * s);
                wrong += !(std::abs(result(first) - (a * c - b * s)) <= 2 * kRounding<Element> * size);
                wrong += !(std::abs(result(second) - (b * c + a * s)) <= 2 * kRounding<Element> * size);
              }
              for (int d = 2 * pairs; d < width; ++d) wrong += result(d) != at(d);
              wrong += result(width) != 77.0;  // beyond the row
            }
            CHECK(wrong == 0);
          }
        }
      }
    }
  });
}

TEST_CASE("cpu::rotate: every range of rows in three dimensions reads its own rows of the tables") {
  const cpu::Three sizes{2, 3, 4};
  constexpr int kPairs = 2, kWidth = 4;
  const auto x = test::random_numbers<double>(2 * 3 * 4 * kWidth, 1);
  const auto cos = test::random_numbers<double>(3 * kPairs, 2), sin = test::random_numbers<double>(2 * 4 * kPairs, 3);
  std::vector<double> whole(x.size()), parts(x.size());
  cpu::RotateParams<double> params{sizes,
                                   {x.data(), {48, 16, 4}},
                                   {whole.data(), {48, 4, 12}},  // another order in memory
                                   {cos.data(), {0, kPairs, 0}},
                                   {sin.data(), {4 * kPairs, 0, kPairs}},
                                   kPairs,
                                   kWidth,
                                   false};
  const auto function = cpu::rotate_function<double>(simd::best_instruction_set(), false);
  cpu::rotate(params, function, 0, 24);
  int wrong = 0;
  for (int n = 0; n < 2; ++n)
    for (int h = 0; h < 3; ++h)
      for (int l = 0; l < 4; ++l)
        for (int i = 0; i < kPairs; ++i) {
          const double* const row = x.data() + 48 * n + 16 * h + 4 * l;
          const double c = cos[h * kPairs + i], s = sin[(n * 4 + l) * kPairs + i];
          const double expected = row[i] * c - row[i + kPairs] * s;
          wrong += !(std::abs(whole[48 * n + 4 * h + 12 * l + i] - expected) < 1e-14);
        }
  CHECK(wrong == 0);
  params.y.data = parts.data();
  for (const auto& [begin, end] : {std::pair(5, 13), std::pair(13, 24), std::pair(0, 5), std::pair(7, 7)})
    cpu::rotate(params, function, begin, end);
  CHECK(parts == whole);
}
