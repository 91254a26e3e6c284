// SPDX-License-Identifier: MIT
#include "simd/isas.h"

#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/vector.h>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

using namespace attend::simd;
using attend::test::for_each_isa;

namespace {

/// to = from, `count` numbers of any of the types that a vector loads and stores.
template <class From, class To>
struct Copy {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const From* from, To* to, int count) {
    using V = Vec<std::conditional_t<std::is_same_v<From, double>, double, float>, Isa>;
    for (int i = 0; i < count; i += V::kLanes) {
      typename V::Vector vector;
      V::load(vector, from + i);
      V::store(to + i, vector);
    }
  }
};

float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// The nearest bfloat16 number by comparison of distances, in double; of two, the even one.
std::uint16_t nearest_bfloat16(float value) {
  if (std::isnan(value)) return 0x7FC0;
  const auto below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);  // towards zero
  if (std::isinf(value)) return below;
  const auto above = static_cast<std::uint16_t>(below + 1);
  // The number after the largest one is 2^128, which rounds to infinity.
  const auto wide = [](std::uint16_t bits) {
    return (bits & 0x7FFF) == 0x7F80 ? std::copysign(std::ldexp(1.0, 128), bits & 0x8000 ? -1.0 : 1.0)
                                     : static_cast<double>(float_of(static_cast<std::uint32_t>(bits) << 16));
  };
  const double low = std::abs(value - wide(below)), high = std::abs(value - wide(above));
  return low < high || (low == high && below % 2 == 0) ? below : above;
}

/// Random bits, all bfloat16 numbers, the numbers half-way between two of them and next to that, and special numbers.
std::vector<float> floats_to_round() {
  std::vector<float> floats;
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper)
    for (const std::uint32_t lower : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
      floats.push_back(float_of(upper << 16 | lower));
  std::mt19937 generator(1);
  for (int i = 0; i < 1 << 18; ++i) floats.push_back(float_of(static_cast<std::uint32_t>(generator())));
  using Limits = std::numeric_limits<float>;
  for (const float x : {0.0f, -0.0f, Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min(),
                        Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN()})
    floats.push_back(x);
  floats.resize((floats.size() + 15) / 16 * 16);
  return floats;
}

}  // namespace

TEST_CASE("BFloat16: rounds to nearest, ties to even; NaN, infinities and overflow") {
  int wrong = 0;
  for (const float x : floats_to_round()) wrong += BFloat16(x).bits != nearest_bfloat16(x);
  CHECK(wrong == 0);
  CHECK(BFloat16(3.4e38f).bits == 0x7F80);
  CHECK(BFloat16(1.0f + 1.0f / 256).bits == 0x3F80);  // a tie: down to the even number
  CHECK(BFloat16(1.0f + 3.0f / 256).bits == 0x3F82);  // a tie: up to the even number
}

TEST_CASE("BFloat16: every number becomes the float and the double with the same value") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 number;
    number.bits = static_cast<std::uint16_t>(bits);
    const float exact = float_of(bits << 16);
    const auto same = [](auto a, auto b) {
      return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b);
    };
    if (!same(static_cast<float>(number), exact) || !same(static_cast<double>(number), static_cast<double>(exact)))
      FAIL_CHECK(bits);
  }
}

TEST_CASE("Vec::store to bfloat16 rounds as BFloat16, for vectors of every instruction set") {
  const std::vector<float> floats = floats_to_round();
  for_each_isa([&](auto isa) {
    std::vector<BFloat16> rounded(floats.size());
    CompiledFor<decltype(isa), Copy<float, BFloat16>>::call(floats.data(), rounded.data(),
                                                            static_cast<int>(floats.size()));
    int wrong = 0;
    for (std::size_t i = 0; i < floats.size(); ++i) wrong += rounded[i].bits != nearest_bfloat16(floats[i]);
    CHECK(wrong == 0);
  });
}

TEST_CASE("Vec::load from bfloat16: all 65,536 numbers, for vectors of every instruction set") {
  std::vector<BFloat16> numbers(0x10000);
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) numbers[bits].bits = static_cast<std::uint16_t>(bits);
  for_each_isa([&](auto isa) {
    std::vector<float> loaded(numbers.size());
    CompiledFor<decltype(isa), Copy<BFloat16, float>>::call(numbers.data(), loaded.data(), 0x10000);
    int wrong = 0;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
      wrong += std::bit_cast<std::uint32_t>(loaded[bits]) != bits << 16;
    CHECK(wrong == 0);
  });
}

TEST_CASE_TEMPLATE("Vec::load and Vec::store: any address, and nothing beyond the vector", T, float, double) {
  const std::vector<T> numbers = attend::test::random_numbers<T>(64, 2);
  for_each_isa([&](auto isa) {
    constexpr int kLanes = Vec<T, decltype(isa)>::kLanes;
    for (int from = 0; from < 16; ++from)
      for (int to = 0; to < 16; ++to) {
        std::vector<T> copy(64, T(7));
        CompiledFor<decltype(isa), Copy<T, T>>::call(numbers.data() + from, copy.data() + to, kLanes);
        for (int i = 0; i < 64; ++i) {
          const bool is_inside = i >= to && i < to + kLanes;
          if (copy[i] != (is_inside ? numbers[from + i - to] : T(7))) FAIL_CHECK("from " << from << " to " << to);
        }
      }
  });
}

TEST_CASE("Vec::load and Vec::store of bfloat16: any address, and nothing beyond the vector") {
  const std::vector<float> numbers = attend::test::random_numbers<float>(16, 3);
  for_each_isa([&](auto isa) {
    constexpr int kLanes = Vec<float, decltype(isa)>::kLanes;
    for (int to = 0; to < 16; ++to) {
      std::vector<BFloat16> copy(64, BFloat16(7.0f));
      CompiledFor<decltype(isa), Copy<float, BFloat16>>::call(numbers.data(), copy.data() + to, kLanes);
      for (int i = 0; i < 64; ++i) {
        const bool is_inside = i >= to && i < to + kLanes;
        if (copy[i].bits != BFloat16(is_inside ? numbers[i - to] : 7.0f).bits) FAIL_CHECK("to " << to);
      }
    }
  });
}
