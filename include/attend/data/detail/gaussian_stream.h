// SPDX-License-Identifier: MIT
#pragma once

#include <attend/data/detail/random_words.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Standard normal numbers by the ziggurat method of Marsaglia and Tsang.
///
/// 256 layers of equal area cover the area below the right half of the bell curve. Each layer is a horizontal strip, as
/// wide as the bell curve at the strip's lower edge. The lowest layer also has the tail. A random point of a random
/// layer is accepted at once in 99 of 100 cases.
///
/// The same seed gives the same bits with every compiler. No sum has a product as a term, except in std::fma, so there
/// is nothing that a compiler could fuse. IEEE 754 defines the result of each operation used here.
///
/// Source: G. Marsaglia, W. W. Tsang, "The ziggurat method for generating random variables", J. Stat. Soft. 5 (2000).
class GaussianStream {
 public:
  /// The stream of one sample, from the Philox counters (first_counter, sample) on.
  GaussianStream(std::uint64_t seed, std::uint64_t first_counter, std::int64_t sample)
      : layers_(layers()), words_(seed, first_counter, sample) {}

  /// Writes the next numbers of the stream.
  void fill(float* numbers, std::int64_t count) {
    for (float* const end = numbers + count; numbers < end;) {
      const std::uint32_t* const words = words_.begin();
      const auto most = static_cast<int>(std::min<std::int64_t>(end - numbers, words_.end() - words));
      int i = 0;
      for (; i < most; ++i) {  // up to a point that may be above the bell curve
        const std::uint32_t layer = words[i] % kLayers;
        const std::int32_t position = (static_cast<std::int32_t>(words[i]) >> 7) | 1;  // odd, within ±2²⁴
        numbers[i] = static_cast<float>(position) * layers_.step[layer];
        if (std::abs(position) >= layers_.inside[layer]) break;
      }
      words_.skip(i);
      numbers += i;
      if (i < most && is_settled(*numbers)) ++numbers;
    }
  }

 private:
  static constexpr int kLayers = 256;
  static constexpr double kTail = 3.6541528853610088;           // x at which the tail begins
  static constexpr double kTailHeight = 1.2602859304985976e-3;  // exp(−x²/2) at kTail
  static constexpr double kArea = 4.9286732339746554e-3;        // the area of each layer

  struct Layers {
    float step[kLayers];           // the width of a layer, divided by 2²⁴
    std::int32_t inside[kLayers];  // smaller positions are below the curve, because the next layer covers them too
    double height[kLayers + 1];    // of the bell curve, at the lower edge of a layer
  };

  static const Layers& layers() {
    static const Layers kAll = [] {
      Layers all{};
      double width = kArea / kTailHeight, next = kTail;  // the lowest layer, as if it were a strip
      for (int i = 0; i < kLayers; ++i) {
        all.step[i] = static_cast<float>(width * 0x1p-24);
        all.inside[i] = static_cast<std::int32_t>(next / width * 0x1p24);
        all.height[i + 1] = i == 0 ? kTailHeight : all.height[i] + kArea / width;
        width = next;
        const double above = all.height[i + 1] + kArea / width;
        next = above < 1.0 ? std::sqrt(-2.0 * log(above)) : 0.0;
      }
      return all;
    }();
    return kAll;
  }

  /// Whether the point of the next word is accepted. If it belongs to the tail, `x` is replaced by a tail value.
  bool is_settled(float& x) {
    const std::uint32_t layer = words_() % kLayers;
    if (layer != 0) return is_below_bell(x, layer);
    x = std::copysign(tail(), x);
    return true;
  }

  bool is_below_bell(double x, std::uint32_t layer) {
    const double low = layers_.height[layer], high = layers_.height[layer + 1];
    return -2.0 * log(std::fma(words_.uniform(), high - low, low)) > x * x;
  }

  float tail() {
    for (;;) {
      const double x = -log(words_.uniform()) / kTail, y = -log(words_.uniform());
      if (y + y > x * x) return static_cast<float>(kTail + x);
    }
  }

  /// The natural logarithm: x = m · 2ᵉ with m near 1, and log m = 2 artanh((m − 1)/(m + 1)) by its power series.
  static double log(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < 0.70710678118654752) {
      mantissa *= 2.0;
      exponent -= 1;
    }
    const double t = (mantissa - 1.0) / (mantissa + 1.0);  // |t| ≤ 0.1716
    const double square = t * t;
    double series = 1.0 / 19.0;
    for (int odd = 17; odd >= 1; odd -= 2) series = std::fma(series, square, 1.0 / odd);
    return std::fma(exponent, 0.69314718055994531, 2.0 * t * series);
  }

  const Layers& layers_;
  RandomWords words_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
