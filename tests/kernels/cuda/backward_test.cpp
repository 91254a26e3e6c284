// SPDX-License-Identifier: MIT

// The tensor-core kernels of the backward pass, run on the host by the harness (tests/support/cuda_block.h), against a
// loop in float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/cuda_backward.h"

#include <attend/kernels/cuda/backward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

using attend::NumberType;

namespace {

// Compiling takes more time than running. So the structs of a user have few kernels.
struct StructKernels {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<32>;
};

void check(NumberType dtype, std::uint32_t count, std::vector<std::int64_t> widths) {
  const std::map<std::string, int> launches = attend::test::check_backward<StructKernels, attend::cuda::EveryKernel>(
      dtype, count, {.most_products = 400'000, .widths = widths, .has_whole_rows = true});
  if (launches.empty()) return;
  CHECK(launches.at("backward_queries") > static_cast<int>(count) / 2);
  CHECK(launches.at("tensor_core_entry_sums") > 5);
}

}  // namespace

TEST_CASE("cuda: the backward kernels are as exact as the dense formula in bfloat16") {
  check(NumberType::kBFloat16, 50, {64, 64, 40, 56, 8});
}
TEST_CASE("cuda: the backward kernels are as exact as the dense formula in float16") {
  check(NumberType::kFloat16, 50, {32, 32, 24, 8});
}
TEST_CASE("cuda: the backward kernels of all widths are as exact as the dense formula in bfloat16") {
  check(NumberType::kBFloat16, 40, {32, 64, 96, 128, 192, 256, 80, 160, 200});
}
TEST_CASE("cuda: the backward kernels of all widths are as exact as the dense formula in float16") {
  check(NumberType::kFloat16, 40, {32, 64, 96, 128, 192, 256, 80, 160, 200});
}
