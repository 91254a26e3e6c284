// SPDX-License-Identifier: MIT
#pragma once

// The peak rate of a core: how many multiplications and additions it does in a second. No LibTorch.

#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/vector.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace benchmark {

inline constexpr int kChains = 12;  // independent of each other: more than latency · multiplications per cycle

/// kChains chains of multiplications and additions.
template <class T>
struct MultiplyAdd {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* numbers, int steps) {
    using V = attend::simd::Vec<T, Isa>;
    typename V::Vector sums[kChains], factor, summand;
    V::load(factor, numbers);
    V::load(summand, numbers + V::kLanes);
    ATTEND_UNROLL for (int i = 0; i < kChains; ++i) sums[i] = summand * T(i + 1);
    for (int k = 0; k < steps; ++k)
      ATTEND_UNROLL for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + summand;
    ATTEND_UNROLL for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
    V::store(numbers, sums[0]);
  }
};

/// Billions of operations per second: the best of 40 samples of about 2 ms.
template <class Work>
double rate(double operations, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_of = [&](int calls) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) work();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const int calls = std::max(1, static_cast<int>(0.002 / (seconds_of(10) / 10)));
  double best = seconds_of(calls);
  for (int sample = 1; sample < 40; ++sample) best = std::min(best, seconds_of(calls));
  return operations * calls / best * 1e-9;
}

/// The peak rate of this core with an instruction set, in billions of operations per second.
template <class T, class Isa>
double peak_rate() {
  constexpr int kLanes = attend::simd::Vec<T, Isa>::kLanes, kSteps = 1000;
  std::vector<T> numbers(2 * kLanes, T(0.5));
  // a call that is not inlined
  void (*volatile multiply_add)(T*, int) = &attend::simd::CompiledFor<Isa, MultiplyAdd<T>>::call;
  return rate(2.0 * kChains * kLanes * kSteps, [&] { multiply_add(numbers.data(), kSteps); });
}

}  // namespace benchmark
