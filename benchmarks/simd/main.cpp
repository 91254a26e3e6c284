// SPDX-License-Identifier: MIT

// Which share of a core's product rate does simd::Product reach? It prints a table of results/simd.md. No LibTorch:
//   g++ -std=c++20 -O2 -Iinclude benchmarks/simd/main.cpp -o simd && ./simd

#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <type_traits>
#include <vector>

using namespace attend::simd;

namespace {

constexpr int kChains = 12;  // independent of each other: more than latency · multiplications per cycle

/// kChains chains of multiplications and additions.
template <class T>
struct MultiplyAdd {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(T* numbers, int steps) {
    using V = Vec<T, Isa>;
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

template <class T, class Isa>
void measure(const char* set, const char* type) {
  if (!Isa::is_supported()) return;
  constexpr int kLanes = Vec<T, Isa>::kLanes, kSteps = 1000;
  std::vector<T> numbers(2 * kLanes, T(0.5));
  void (*volatile multiply_add)(T*, int) = &CompiledFor<Isa, MultiplyAdd<T>>::call;  // a call that is not inlined
  const double peak = rate(2.0 * kChains * kLanes * kSteps, [&] { multiply_add(numbers.data(), kSteps); });
  std::printf("| %s | %s | %.0f |", set, type, peak);
  for (const int depth : {64, 128}) {
    constexpr int kRows = 64, kColumns = 64;
    std::vector<T> a(kRows * depth, T(0.25)), b(depth * kColumns, T(0.25)), c(kRows * kColumns);
    // A is transposed in the products with Vᵀ and Kᵀ.
    for (const bool is_transposed : {false, true}) {
      const Strided<T> strided = is_transposed ? Strided<T>{a.data(), 1, kRows} : Strided<T>{a.data(), depth, 1};
      const double reached = rate(2.0 * kRows * kColumns * depth, [&] {
        CompiledFor<Isa, Product<T>>::call(strided, b.data(), kColumns, c.data(), kColumns, kRows, kColumns, depth,
                                           /*add=*/is_transposed);
      });
      std::printf(" %.0f (%.0f %%) |", reached, 100 * reached / peak);
    }
  }
  std::printf("\n");
}

/// The same with dot products of bfloat16, whose rate is twice that of float32.
template <class Isa>
void measure_bfloat16(const char* set) {
  if (!Isa::is_supported()) return;
  std::printf("| %s | bfloat16 | |", set);
  for (const int depth : {64, 128}) {
    constexpr int kRows = 64, kColumns = 64;
    std::vector<Bf16x2> a(kRows * depth / 2, 0x3E803E80), b(depth / 2 * kColumns, 0x3E803E80);
    std::vector<float> c(kRows * kColumns);
    for (const bool is_transposed : {false, true}) {
      const Strided<Bf16x2> strided =
          is_transposed ? Strided<Bf16x2>{a.data(), 1, kRows} : Strided<Bf16x2>{a.data(), depth / 2, 1};
      const double reached = rate(2.0 * kRows * kColumns * depth, [&] {
        CompiledFor<Isa, Product<Bf16x2>>::call(strided, b.data(), kColumns, c.data(), kColumns, kRows, kColumns,
                                                depth / 2, /*add=*/is_transposed, 1.0f);
      });
      std::printf(" %.0f |", reached);
    }
  }
  std::printf("\n");
}

}  // namespace

int main() {
  std::printf(
      "| instruction set | type | peak | depth 64 | depth 64, Aᵀ, add | depth 128 | depth 128, Aᵀ, add |\n"
      "| --- | --- | --- | --- | --- | --- | --- |\n");
  measure<float, Portable>("baseline", "float32");
  measure<double, Portable>("baseline", "float64");
#if defined(__x86_64__)
  measure<float, Avx2>("AVX2", "float32");
  measure<double, Avx2>("AVX2", "float64");
  measure<float, Avx512>("AVX-512", "float32");
  measure<double, Avx512>("AVX-512", "float64");
  measure_bfloat16<Avx512Bf16>("AVX-512");
#elif defined(__aarch64__)
  measure<float, Neon>("NEON", "float32");
  measure<double, Neon>("NEON", "float64");
#if defined(ATTEND_HAS_NEON_BF16)
  measure_bfloat16<NeonBf16>("NEON");
#endif
#endif
}
