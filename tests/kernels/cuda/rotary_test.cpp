// SPDX-License-Identifier: MIT

// Rotary embeddings in the CUDA kernels, which rotate queries and keys when they load them. The kernels run on the host
// by the harness (tests/support/cuda_block.h). They are compared with a loop in float64 that rotates by the formula
// (kernels/support/naive.h).
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone (tests/support/environment.h).

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_backward.h"
#include "kernels/support/cuda_forward.h"

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace attend::test::cuda_rotary_test {
namespace {

using enum NumberType;

Wishes rotated(std::int64_t most_products, NumberType dtype, const std::vector<std::int64_t>& widths) {
  return {.most_products = most_products,
          .dtype = dtype,
          .widths = widths,
          .has_whole_rows = !widths.empty(),
          .has_rotary = true};
}

template <NumberType kType>
void check_plain_forward(std::uint32_t count, bool has_pages) {
  check_cuda_forward<kType, /*kHasStructs=*/false>(count, rotated(300'000, kType, {}), has_pages,
                                                   [](const cuda::Call& call, void*, const auto& launch) {
                                                     launch_checked(cuda::detail::PlainForward<kType>(), call, launch);
                                                   });
}

template <NumberType kType, int kWidth>
void check_forward(std::uint32_t count, const std::vector<std::int64_t>& widths) {
  check_cuda_forward<kType, /*kHasStructs=*/false>(
      count, rotated(1'000'000, kType, widths), /*has_pages=*/false,
      [](const cuda::Call& call, void*, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of(call).kernel != cuda::ForwardKernel::kPlain);
        cuda::detail::launch_tiles<kType, kWidth>(call, launch);
      });
}

template <NumberType kType, int kWidth>
void check_decode(std::uint32_t count, const std::vector<std::int64_t>& widths, bool has_pages) {
  Wishes wishes = rotated(1'000'000, kType, widths);
  wishes.is_decoding = true;
  check_cuda_forward<kType, /*kHasStructs=*/false>(
      count, wishes, has_pages, [](const cuda::Call& call, void* workspace, const auto& launch) {
        REQUIRE(cuda::forward_kernel_of(call).kernel == cuda::ForwardKernel::kDecode);
        cuda::detail::launch_decode<kType, kWidth>(call, workspace, launch);
      });
}

struct SomeWidths {
  using BFloat16 = cuda::Widths<64, 96, 256>;
  using Float16 = cuda::Widths<32, 128>;
};

void check_backward(NumberType dtype, std::uint32_t count, const std::vector<std::int64_t>& widths) {
  // Structs have no tensor cores here, which would take long to compile.
  const std::map<std::string, int> launches = attend::test::check_backward<NoTensorCores, SomeWidths>(
      dtype, count, rotated(widths.empty() ? 150'000 : 400'000, dtype, widths));
  if (launches.empty()) return;
  if (widths.empty())
    CHECK(launches.at("plain_backward_keys") == static_cast<int>(count));
  else
    CHECK(launches.at("backward_queries") > static_cast<int>(count) / 3);
}

}  // namespace
}  // namespace attend::test::cuda_rotary_test

namespace {
using enum attend::NumberType;
using namespace attend::test::cuda_rotary_test;
}  // namespace

TEST_CASE("cuda rotary: the forward pass without tensor cores is as exact as the dense formula in every dtype") {
  check_plain_forward<kFloat32>(20, /*has_pages=*/true);
  check_plain_forward<kFloat64>(20, /*has_pages=*/false);
  check_plain_forward<kBFloat16>(20, /*has_pages=*/false);
  check_plain_forward<kFloat16>(20, /*has_pages=*/false);
}
TEST_CASE("cuda rotary: the forward pass on tensor cores is as exact as the dense formula") {
  check_forward<kBFloat16, 64>(40, {16, 48, 64, 64});
  check_forward<kFloat16, 32>(20, {16, 24, 32});
  check_forward<kFloat16, 96>(15, {72, 80, 96});
  check_forward<kBFloat16, 128>(15, {104, 128});
  check_forward<kBFloat16, 256>(15, {208, 256});
}
TEST_CASE("cuda rotary: the forward pass of few queries is as exact as the dense formula") {
  check_decode<kBFloat16, 64>(30, {16, 64}, /*has_pages=*/true);
  check_decode<kFloat16, 128>(15, {112, 128}, /*has_pages=*/false);
}
TEST_CASE("cuda rotary: the backward pass without tensor cores is as exact as the dense formula in every dtype") {
  for (const attend::NumberType dtype : {kFloat32, kFloat64, kBFloat16, kFloat16}) check_backward(dtype, 20, {});
}
TEST_CASE("cuda rotary: the backward pass on tensor cores is as exact as the dense formula") {
  check_backward(kBFloat16, 50, {64, 64, 48, 16, 96, 80, 256, 200});
  check_backward(kFloat16, 40, {32, 24, 16, 128, 112});
}
