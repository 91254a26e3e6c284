// SPDX-License-Identifier: MIT

// float32 on tensor cores in tf32, run on the host by the harness (tests/support/cuda_block.h), against a loop in
// float64.
//
// The rule of accuracy is the house rule for tf32: the error is at most twice that of the dense formula in float32
// whose factors of matrix products are rounded to tf32, and 1e-6 (Rounding::kTf32).
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_backward.h"
#include "kernels/support/cuda_forward.h"

#include <attend/kernels/cuda/every_kernel.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace attend::test::tf32_test {

constexpr NumberType kType = NumberType::kFloat32;

template <int... kWidths>
struct InTf32 {
  using BFloat16 = cuda::Widths<>;
  using Float16 = BFloat16;
  using Float32 = cuda::Widths<kWidths...>;
};
using AllInTf32 = InTf32<32, 64, 96, 128, 192, 256>;

template <int kWidth, bool kHasStructs>
void check_forward(std::uint32_t count, const std::vector<std::int64_t>& widths, bool has_pages = false) {
  check_cuda_forward<kType, kHasStructs, AllInTf32>(
      count, {.most_products = 1'500'000, .dtype = kType, .widths = widths, .has_whole_rows = true}, has_pages,
      [](const cuda::Call& call, void*, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of<AllInTf32>(call).kernel != cuda::ForwardKernel::kPlain);
        cuda::detail::launch_tiles<kType, kWidth>(call, launch);
      });
}

template <int kWidth>
void check_decode(std::uint32_t count, const std::vector<std::int64_t>& widths, bool has_pages = false) {
  const Wishes wishes{
      .most_products = 1'500'000, .dtype = kType, .widths = widths, .has_whole_rows = true, .is_decoding = true};
  check_cuda_forward<kType, false, AllInTf32>(
      count, wishes, has_pages, [](const cuda::Call& call, void* workspace, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of<AllInTf32>(call).kernel == cuda::ForwardKernel::kDecode);
        cuda::detail::launch_decode<kType, kWidth>(call, workspace, launch);
      });
}

/// StructKernels: those for the structs of a user. Compiling takes more time than running, so they are few.
void check_backward_kernels(std::uint32_t count, const std::vector<std::int64_t>& widths) {
  const std::map<std::string, int> launches = check_backward<InTf32<64>, AllInTf32>(
      kType, count, {.most_products = 400'000, .widths = widths, .has_whole_rows = true}, /*is_tf32=*/true);
  if (launches.empty()) return;
  CHECK(launches.at("backward_queries") > static_cast<int>(count) / 2);
  CHECK(launches.at("entry_sums") > 5);
}

}  // namespace attend::test::tf32_test

namespace {
using attend::test::tf32_test::check_backward_kernels;
using attend::test::tf32_test::check_decode;
using attend::test::tf32_test::check_forward;
}  // namespace

TEST_CASE("cuda forward in tf32: random calls are as exact as the dense formula in tf32") {
  check_forward<64, true>(60, {4, 16, 36, 64, 64});
}
TEST_CASE("cuda forward in tf32: keys and values in pages") {
  check_forward<64, false>(20, {24, 64}, /*has_pages=*/true);
}
TEST_CASE("cuda forward in tf32: every head width") {
  check_forward<32, false>(20, {8, 12, 32});
  check_forward<96, false>(20, {68, 96});
  check_forward<128, false>(20, {100, 128});
  check_forward<192, false>(15, {64, 132, 192});
  check_forward<256, false>(15, {196, 256});
}
TEST_CASE("cuda decode in tf32: random calls are as exact as the dense formula in tf32") {
  check_decode<64>(20, {4, 36, 64});
  check_decode<64>(10, {24, 64}, /*has_pages=*/true);
  check_decode<32>(10, {12, 32});
  check_decode<96>(10, {68, 96});
  check_decode<128>(10, {100, 128});
  check_decode<192>(10, {132, 192});
  check_decode<256>(10, {196, 256});
}
TEST_CASE("cuda backward in tf32: random calls are as exact as the dense formula in tf32") {
  check_backward_kernels(60, {64, 64, 40, 52, 4});
}
TEST_CASE("cuda backward in tf32: every head width") {
  check_backward_kernels(50, {32, 64, 96, 128, 192, 12, 80, 100, 160});
}
