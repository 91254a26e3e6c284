// SPDX-License-Identifier: MIT

// The forward pass of the CUDA kernels, run on the host by the harness (tests/support/cuda_block.h), against a loop in
// float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_forward.h"

#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace attend::test::cuda_forward_test {

template <NumberType kType, int kWidth, bool kHasStructs>
void check_tensor_cores(std::uint32_t count, const std::vector<std::int64_t>& widths, bool has_pages = false) {
  check_cuda_forward<kType, kHasStructs>(
      count, {.most_products = 1'500'000, .dtype = kType, .widths = widths, .has_whole_rows = true}, has_pages,
      [](const cuda::Call& call, void*, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of(call).kernel != cuda::ForwardKernel::kPlain);
        cuda::detail::launch_tiles<kType, kWidth>(call, launch);
      });
}

}  // namespace attend::test::cuda_forward_test

namespace {
using enum attend::NumberType;
using attend::test::cuda_forward_test::check_tensor_cores;
}  // namespace

TEST_CASE("cuda forward on tensor cores: random calls in bfloat16 are as exact as the dense formula") {
  check_tensor_cores<kBFloat16, 64, true>(60, {8, 16, 48, 64, 64});
}
TEST_CASE("cuda forward on tensor cores: random calls in float16 are as exact as the dense formula") {
  check_tensor_cores<kFloat16, 64, true>(40, {8, 32, 56, 64, 64});
}
TEST_CASE("cuda forward on tensor cores: keys and values in pages") {
  check_tensor_cores<kBFloat16, 64, false>(20, {24, 64}, /*has_pages=*/true);
}
TEST_CASE("cuda forward on tensor cores: every head width") {
  check_tensor_cores<kBFloat16, 32, false>(20, {8, 24, 32});
  check_tensor_cores<kFloat16, 96, false>(20, {72, 96});
  check_tensor_cores<kBFloat16, 128, false>(20, {104, 128});
  check_tensor_cores<kFloat16, 192, false>(15, {64, 136, 192});
  check_tensor_cores<kBFloat16, 256, false>(15, {200, 256});
}
