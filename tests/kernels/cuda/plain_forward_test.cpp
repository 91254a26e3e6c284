// SPDX-License-Identifier: MIT

// The forward pass of the CUDA kernels without tensor cores, run on the host by the harness
// (tests/support/cuda_block.h), against a loop in float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_forward.h"

#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>

namespace attend::test::cuda_plain_forward_test {

template <NumberType kType>
void check_plain(std::uint32_t count, bool has_pages) {
  check_cuda_forward<kType, /*kHasStructs=*/true>(count, {.most_products = 400'000, .dtype = kType}, has_pages,
                                                  [](const cuda::Call& call, void*, const auto& launch) {
                                                    launch_checked(cuda::detail::PlainForward<kType>(), call, launch);
                                                  });
}

}  // namespace attend::test::cuda_plain_forward_test

namespace {
using enum attend::NumberType;
using attend::test::cuda_plain_forward_test::check_plain;
}  // namespace

TEST_CASE("cuda forward without tensor cores: random calls in float32 are as exact as the dense formula") {
  check_plain<kFloat32>(60, /*has_pages=*/true);
}
TEST_CASE("cuda forward without tensor cores: random calls in float64 are exact to 1e-12") {
  check_plain<kFloat64>(60, /*has_pages=*/false);
}
TEST_CASE("cuda forward without tensor cores: random calls in bfloat16 are as exact as the dense formula") {
  check_plain<kBFloat16>(30, /*has_pages=*/false);
}
TEST_CASE("cuda forward without tensor cores: random calls in float16 are as exact as the dense formula") {
  check_plain<kFloat16>(30, /*has_pages=*/false);
}
