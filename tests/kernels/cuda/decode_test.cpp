// SPDX-License-Identifier: MIT

// The forward pass of few queries of the CUDA kernels, run on the host by the harness (tests/support/cuda_block.h),
// against a loop in float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_forward.h"

#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace attend::test::cuda_decode_test {

/// Random calls of few queries.
template <NumberType kType, int kWidth, bool kHasStructs>
void check(std::uint32_t count, const std::vector<std::int64_t>& widths, bool has_pages) {
  const Wishes wishes{
      .most_products = 1'500'000, .dtype = kType, .widths = widths, .has_whole_rows = true, .is_decoding = true};
  check_cuda_forward<kType, kHasStructs>(
      count, wishes, has_pages, [](const cuda::Call& call, void* workspace, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of(call).kernel == cuda::ForwardKernel::kDecode);
        cuda::detail::launch_decode<kType, kWidth>(call, workspace, launch);
      });
}

}  // namespace attend::test::cuda_decode_test

namespace {
using enum attend::NumberType;
using attend::test::cuda_decode_test::check;
}  // namespace

TEST_CASE("cuda decode: random calls of few queries in bfloat16 are as exact as the dense formula") {
  check<kBFloat16, 64, true>(40, {8, 48, 64}, /*has_pages=*/false);
}
TEST_CASE("cuda decode: random calls of few queries in float16 are as exact as the dense formula") {
  check<kFloat16, 64, false>(20, {16, 64}, /*has_pages=*/false);
}
TEST_CASE("cuda decode: keys and values in pages") { check<kBFloat16, 64, false>(30, {8, 64}, /*has_pages=*/true); }
TEST_CASE("cuda decode: every head width") {
  check<kFloat16, 32, false>(10, {8, 32}, /*has_pages=*/false);
  check<kBFloat16, 96, false>(10, {72, 96}, /*has_pages=*/false);
  check<kFloat16, 128, false>(10, {104, 128}, /*has_pages=*/false);
  check<kBFloat16, 192, false>(10, {192}, /*has_pages=*/false);
  check<kFloat16, 256, false>(10, {208, 256}, /*has_pages=*/true);
}
