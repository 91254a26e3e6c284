// SPDX-License-Identifier: MIT
#include "simd/isas.h"

#include <attend/simd/bfloat16.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

using namespace attend::simd;

namespace {

/// The sizes and the layout of one product.
struct Shape {
  int rows, columns, depth;
  bool is_transposed, add;
  double factor;
};

/// Calls check(shape) for all remainders of rows and vectors, and for depths around those of one pass and of one part.
template <class Isa, class T>
void for_each_shape(const auto& check) {
  constexpr int kLanes = Vec<T, Isa>::kLanes;
  std::mt19937 generator(4);
  for (const int rows : {1, 2, 3, 4, 5, 7, 8, 13})
    for (int vectors = 1; vectors <= 2 * Isa::kPanelVectors + 1; ++vectors)
      for (const int depth : {0, 1, 2, 3, 4, 5, 7, 64, 127, 128, 129, 300}) {
        const auto bits = generator();
        check(Shape{rows, vectors * kLanes, depth, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0 ? 1.0 : 0.375});
      }
}

constexpr int kGap = 3;  // numbers between the rows of a matrix, which must not be written

/// Checks C of `depth` products for each entry against sums in a wider type. In each step of a sum the error may be
/// `units` times that of rounding to T. The gaps between the rows of C must keep their numbers.
template <class T>
void check_result(const Shape& shape, int depth, double units, const std::vector<T>& c, const std::vector<T>& before,
                  const auto& a_at, const auto& b_at) {
  using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;
  const Wide factor = static_cast<T>(shape.factor);
  const int c_row = shape.columns + 2 * kGap;
  int wrong = 0;
  for (int i = 0; i < shape.rows; ++i)
    for (int n = 0; n < c_row; ++n) {
      const std::size_t entry = i * c_row + n;
      if (n >= shape.columns) {
        wrong += c[entry] != before[entry];
        continue;
      }
      Wide sum = 0, size = 0;
      for (int k = 0; k < depth; ++k) {
        const Wide term = static_cast<Wide>(a_at(i, k)) * static_cast<Wide>(b_at(k, n));
        sum += term;
        size += std::abs(term);
      }
      const Wide exact = factor * sum + (shape.add ? before[entry] : T(0));
      const Wide allowed = units * std::numeric_limits<T>::epsilon() / 2 * (depth + 8) *
                           (factor * size + (shape.add ? std::abs(before[entry]) : T(0)));
      wrong += !(std::abs(c[entry] - exact) <= allowed);
    }
  CAPTURE(shape.rows);
  CAPTURE(shape.columns);
  CAPTURE(shape.depth);
  CAPTURE(shape.is_transposed);
  CAPTURE(shape.add);
  CHECK(wrong == 0);
}

/// Checks Product<T> of numbers that draw() returns.
template <class T, class Isa>
void check_numbers(const Shape& shape, double units, const auto& draw) {
  const auto [rows, columns, depth, is_transposed, add, factor] = shape;
  const int a_row = is_transposed ? 1 : depth + kGap, a_column = is_transposed ? rows + kGap : 1;
  const std::int64_t b_row = columns + kGap, c_row = columns + 2 * kGap;
  std::vector<T> a((rows + kGap) * (depth + kGap)), b(depth * b_row + 1), c(rows * c_row);
  for (auto* matrix : {&a, &b, &c})
    for (T& number : *matrix) number = draw();
  const std::vector<T> before = c;
  CompiledFor<Isa, Product<T>>::call(Strided<T>{a.data(), a_row, a_column}, b.data(), b_row, c.data(), c_row, rows,
                                     columns, depth, add, static_cast<T>(factor));
  check_result<T>(
      shape, depth, units, c, before, [&](int i, int k) { return a[i * a_row + k * a_column]; },
      [&](int k, int n) { return b[k * b_row + n]; });
}

/// The same for Product<Bf16x2>: A is (rows, 2 depth) and B (2 depth, columns), in pairs.
template <class Isa>
void check_pairs(const Shape& shape, double units, const auto& draw) {
  const auto [rows, columns, depth, is_transposed, add, factor] = shape;
  const int a_row = is_transposed ? 1 : depth + kGap, a_column = is_transposed ? rows + kGap : 1;
  const std::int64_t b_row = columns + kGap, c_row = columns + 2 * kGap;
  std::vector<Bf16x2> a((rows + kGap) * (depth + kGap)), b(depth * b_row + 1);
  for (auto* matrix : {&a, &b})
    for (Bf16x2& pair : *matrix) pair = BFloat16(draw()).bits | static_cast<Bf16x2>(BFloat16(draw()).bits) << 16;
  std::vector<float> c(rows * c_row);
  for (float& number : c) number = draw();
  const std::vector<float> before = c;
  CompiledFor<Isa, Product<Bf16x2>>::call(Strided<Bf16x2>{a.data(), a_row, a_column}, b.data(), b_row, c.data(), c_row,
                                          rows, columns, depth, add, static_cast<float>(factor));
  const auto half = [](Bf16x2 pair, int which) {
    BFloat16 number;
    number.bits = static_cast<std::uint16_t>(pair >> 16 * which);
    return static_cast<double>(number);
  };
  check_result<float>(
      shape, 2 * depth, units, c, before, [&](int i, int k) { return half(a[i * a_row + k / 2 * a_column], k % 2); },
      [&](int k, int n) { return half(b[k / 2 * b_row + n], k % 2); });
}

}  // namespace

TEST_CASE_TEMPLATE("Product: normally distributed numbers, with the error of a sum in T", T, float, double) {
  attend::test::for_each_isa([](auto isa) {
    std::mt19937 generator(5);
    std::normal_distribution<double> normal;
    for_each_shape<decltype(isa), T>([&](const Shape& shape) {
      check_numbers<T, decltype(isa)>(shape, 1, [&] { return static_cast<T>(normal(generator)); });
    });
  });
}

TEST_CASE_TEMPLATE("Product: small whole numbers are exact", T, float, double) {
  attend::test::for_each_isa([](auto isa) {
    std::mt19937 generator(6);
    std::uniform_int_distribution<int> whole(-50, 50);  // times 8, so that a product with the factor is whole too
    for_each_shape<decltype(isa), T>([&](const Shape& shape) {
      check_numbers<T, decltype(isa)>(shape, 0, [&] { return static_cast<T>(8 * whole(generator)); });
    });
  });
}

TEST_CASE("Product of bfloat16 pairs: normally distributed numbers, with the error of a sum in float32") {
  attend::test::for_each_bf16_isa([](auto isa) {
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    // NEON rounds each step to odd, which has an error of up to one unit instead of half a unit.
    for_each_shape<decltype(isa), float>(
        [&](const Shape& shape) { check_pairs<decltype(isa)>(shape, 2, [&] { return normal(generator); }); });
  });
}

TEST_CASE("Product of bfloat16 pairs: small whole numbers are exact") {
  attend::test::for_each_bf16_isa([](auto isa) {
    std::mt19937 generator(8);
    std::uniform_int_distribution<int> whole(-16, 16);
    for_each_shape<decltype(isa), float>([&](const Shape& shape) {
      check_pairs<decltype(isa)>(shape, 0, [&] { return static_cast<float>(8 * whole(generator)); });
    });
  });
}
