// SPDX-License-Identifier: MIT

// The forward pass of the CUDA kernels, run on the host by the harness (tests/support/cuda_block.h), against a loop in
// float64.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_forward.h"
#include "kernels/support/house_rule.h"
#include "support/environment.h"

#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace attend::test::cuda_forward_test {

/// Compares calls with the loop. float64: 1e-12; otherwise by the house rule.
template <NumberType kType, bool kHasStructs, class LaunchAll>
void check(std::uint32_t count, Wishes wishes, const LaunchAll& launch_all) {
  using T = cuda::detail::Computed<kType>;
  wishes.dtype = kType;
  const auto [begin, end, are_all] = wanted_calls(count);
  Accuracy accuracy;
  for (std::uint32_t n = begin; n < end; ++n) {
    CudaForwardRun<T, kHasStructs> run(n, wishes);
    CAPTURE(run.description());
    GlobalMemory memory;
    run.add_inputs(memory);
    const Results exact = run.exact(), dense = std::is_same_v<T, double> ? Results{} : run.dense();
    const AttentionParams& p = run.configuration().params;
    const bool has_few_errors =
        run.configuration().has_large_scores || p.batch_size * p.num_heads * p.query_length < 64;
    for (const auto& [full_name, numbers] : run.computed(p, memory, /*seed=*/n % 3, launch_all)) {
      CAPTURE(full_name);
      const std::string name = full_name.substr(0, full_name.find(','));
      if (std::is_same_v<T, double>)
        CHECK(max_difference(numbers, exact.at(name)) <= 1e-12 * size_of(exact.at(name)));
      else
        accuracy.check(full_name, has_few_errors, dense.at(name), numbers, exact.at(name));
    }
  }
  if (are_all) accuracy.check_results_of_few_numbers();
}

template <NumberType kType>
void check_plain(std::uint32_t count) {
  check<kType, /*kHasStructs=*/true>(count, {.most_products = 400'000}, [](const cuda::Call& call, const auto& launch) {
    launch_checked(cuda::detail::PlainForward<kType>(), call, launch);
  });
}

template <NumberType kType, int kWidth, bool kHasStructs>
void check_tensor_cores(std::uint32_t count, const std::vector<std::int64_t>& widths) {
  check<kType, kHasStructs>(count, {.most_products = 1'500'000, .widths = widths, .has_whole_rows = true},
                            [](const cuda::Call& call, const auto& launch) {
                              REQUIRE(cuda::forward_kernel_of(call).kernel == cuda::ForwardKernel::kTensorCores);
                              cuda::detail::launch_tensor_cores<kType, kWidth>(call, launch);
                            });
}

}  // namespace attend::test::cuda_forward_test

namespace {
using enum attend::NumberType;
using attend::test::cuda_forward_test::check_plain;
using attend::test::cuda_forward_test::check_tensor_cores;
}  // namespace

TEST_CASE("cuda forward without tensor cores: random calls in float32 are as exact as the dense formula") {
  check_plain<kFloat32>(60);
}
TEST_CASE("cuda forward without tensor cores: random calls in float64 are exact to 1e-12") {
  check_plain<kFloat64>(60);
}
TEST_CASE("cuda forward without tensor cores: random calls in bfloat16 are as exact as the dense formula") {
  check_plain<kBFloat16>(30);
}
TEST_CASE("cuda forward without tensor cores: random calls in float16 are as exact as the dense formula") {
  check_plain<kFloat16>(30);
}
TEST_CASE("cuda forward on tensor cores: random calls in bfloat16 are as exact as the dense formula") {
  check_tensor_cores<kBFloat16, 64, true>(60, {8, 16, 48, 64, 64});
}
TEST_CASE("cuda forward on tensor cores: random calls in float16 are as exact as the dense formula") {
  check_tensor_cores<kFloat16, 64, true>(40, {8, 32, 56, 64, 64});
}
TEST_CASE("cuda forward on tensor cores: every head width") {
  check_tensor_cores<kBFloat16, 32, false>(20, {8, 24, 32});
  check_tensor_cores<kFloat16, 96, false>(20, {72, 96});
  check_tensor_cores<kBFloat16, 128, false>(20, {104, 128});
  check_tensor_cores<kFloat16, 192, false>(15, {64, 136, 192});
  check_tensor_cores<kBFloat16, 256, false>(15, {200, 256});
}
