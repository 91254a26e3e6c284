// SPDX-License-Identifier: MIT

// The plain kernels of the backward pass and the sums over many scores, run on the host by the harness
// (tests/support/cuda_block.h), against a loop in float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/cuda_backward.h"

#include <attend/kernels/cuda/backward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <string>

using attend::NumberType;

namespace {

struct NoKernel {
  using BFloat16 = attend::cuda::Widths<>;
  using Float16 = BFloat16;
};

void check(NumberType dtype, std::uint32_t count) {
  const std::map<std::string, int> launches =
      attend::test::check_backward<NoKernel>(dtype, count, {.most_products = 200'000});
  if (launches.empty()) return;
  for (const char* kernel : {"plain_backward_rows", "plain_backward_keys", "plain_backward_queries"})
    CHECK(launches.at(kernel) == static_cast<int>(count));
  CHECK(launches.at("entry_sums") > 10);
  CHECK(launches.at("tensor_sums") > 5);
}

}  // namespace

TEST_CASE("cuda: the plain backward kernels are as exact as the dense formula in float32") {
  check(NumberType::kFloat32, 50);
}
TEST_CASE("cuda: the plain backward kernels are exact to 1e-12 in float64") { check(NumberType::kFloat64, 50); }
TEST_CASE("cuda: the plain backward kernels are as exact as the dense formula in bfloat16") {
  check(NumberType::kBFloat16, 40);
}
TEST_CASE("cuda: the plain backward kernels are as exact as the dense formula in float16") {
  check(NumberType::kFloat16, 40);
}
