// SPDX-License-Identifier: MIT

// Which share of a core's product rate does simd::Product reach? It prints a table of results/simd.md. No LibTorch:
//   g++ -std=c++20 -O2 -Iinclude -Ibenchmarks benchmarks/simd/main.cpp -o simd && ./simd

#include <attend/simd/dispatch.h>
#include <attend/simd/product.h>

#include "support/peak.h"

#include <cstdio>
#include <type_traits>
#include <vector>

using namespace attend::simd;

namespace {

template <class T, class Isa>
void measure(const char* set, const char* type) {
  if (!Isa::is_supported()) return;
  const double peak = benchmark::peak_rate<T, Isa>();
  std::printf("| %s | %s | %.0f |", set, type, peak);
  for (const int depth : {64, 128}) {
    constexpr int kRows = 64, kColumns = 64;
    std::vector<T> a(kRows * depth, T(0.25)), b(depth * kColumns, T(0.25)), c(kRows * kColumns);
    // A is transposed in the products with Vᵀ and Kᵀ.
    for (const bool is_transposed : {false, true}) {
      const Strided<T> strided = is_transposed ? Strided<T>{a.data(), 1, kRows} : Strided<T>{a.data(), depth, 1};
      const double reached = benchmark::rate(2.0 * kRows * kColumns * depth, [&] {
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
      const double reached = benchmark::rate(2.0 * kRows * kColumns * depth, [&] {
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
