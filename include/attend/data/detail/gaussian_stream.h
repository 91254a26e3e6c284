// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>

#include <cmath>
#include <cstdint>

namespace attend::detail {

/// Standard normal numbers by Marsaglia's polar method. The sum, the logarithm and the noise are built from fma alone,
/// so that no compiler may contract them differently, and from operations that IEEE 754 rounds in one way only.
class GaussianStream {
 public:
  /// The stream of one sample, from the Philox counters (first_counter, sample) on.
  GaussianStream(std::uint64_t seed, std::uint64_t first_counter, std::int64_t sample)
      : seed_(seed), counter_(first_counter), sample_(sample) {}

  double operator()() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    for (;;) {
      const double u = uniform(), v = uniform();
      const double square = std::fma(u, u, v * v);
      if (square >= 1.0) continue;
      const double factor = std::sqrt(-2.0 * log(square) / square);
      spare_ = v * factor;
      has_spare_ = true;
      return u * factor;
    }
  }

 private:
  /// In (−1, 1), never 0: the middles of 2³² equal steps.
  double uniform() {
    if (used_ == 4) {
      block_ = philox(seed_, counter_++, sample_);
      used_ = 0;
    }
    return (2.0 * block_.words[used_++] + 1.0) * 0x1p-32 - 1.0;  // exact
  }

  /// The natural logarithm: x = m · 2ᵉ with m around 1, and log m = 2 artanh((m − 1)/(m + 1)) by its series.
  static double log(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < 0.70710678118654752) {
      mantissa *= 2.0;
      exponent -= 1;
    }
    const double t = (mantissa - 1.0) / (mantissa + 1.0);  // at most 0.1716 in size
    const double square = t * t;
    double series = 1.0 / 19.0;
    for (int odd = 17; odd >= 1; odd -= 2) series = std::fma(series, square, 1.0 / odd);
    return std::fma(exponent, 0.69314718055994531, 2.0 * t * series);
  }

  std::uint64_t seed_, counter_;
  std::int64_t sample_;
  PhiloxBlock block_{};
  int used_ = 4;
  double spare_ = 0.0;
  bool has_spare_ = false;
};

}  // namespace attend::detail
