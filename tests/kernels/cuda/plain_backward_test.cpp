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
#include <stdexcept>
#include <string>
#include <vector>

using attend::NumberType;
using attend::test::NoTensorCores;

namespace {

void check(NumberType dtype, std::uint32_t count) {
  const std::map<std::string, int> launches =
      attend::test::check_backward<NoTensorCores>(dtype, count, {.most_products = 200'000});
  if (launches.empty()) return;
  for (const char* kernel : {"plain_backward_rows", "plain_backward_keys", "plain_backward_queries"})
    CHECK(launches.at(kernel) == static_cast<int>(count));
  CHECK(launches.at("entry_sums") > 10);
  CHECK(launches.at("tensor_sums") >= 5);
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

namespace {

using attend::AttentionGradients;
using attend::cuda::Call;
using attend::test::Element;
using attend::test::Tensor;

struct InTf32 : attend::cuda::EveryKernel {
  using Float32 = attend::cuda::Widths<64, 256>;
};

/// A call in bfloat16 that runs on tensor cores.
struct TensorCoreCall {
  Tensor tensor{Element::kBFloat16, {1, 2, 16, 64}};
  std::vector<double> saved = std::vector<double>(1024);
  attend::AttentionParams params;
  AttentionGradients gradients;

  TensorCoreCall() {
    params.dtype = NumberType::kBFloat16;
    params.num_heads = params.num_kv_heads = 2;
    params.query_length = params.key_length = 16;
    params.head_dim = params.value_dim = 64;
    params.query = params.key = params.value = gradients.output = tensor.view();
    gradients.query = gradients.key = gradients.value = tensor.view();
  }

  Call call(bool is_saved = true) {
    return attend::cuda::call_of(params, {tensor.view(), nullptr, is_saved ? saved.data() : nullptr,
                                          static_cast<std::int64_t>(saved.size() * sizeof(double))});
  }
  std::string why_plain(const Call& call) const {
    const char* const reason = attend::cuda::why_plain_backward(call, gradients);
    return reason == nullptr ? "" : reason;
  }
};

}  // namespace

TEST_CASE("cuda: why_plain_backward names the reason for kernels without tensor cores") {
  TensorCoreCall c;
  CHECK(c.why_plain(c.call()) == "");
  CHECK(c.why_plain(c.call(/*is_saved=*/false)) == "the forward pass has saved nothing");
  Call call = c.call();
  call.dtype = NumberType::kFloat32;
  CHECK(c.why_plain(call) == "the tensors are float32, and no kernels in tf32 are compiled");
  call.dtype = NumberType::kFloat64;
  CHECK(c.why_plain(call) == "the tensors are float64");
  call = c.call();
  call.head_dim = 264;
  CHECK(c.why_plain(call) == "head_dim or value_dim is above 256");
  call = c.call();
  call.value_dim = 60;
  CHECK(c.why_plain(call) == "head_dim or value_dim is not a multiple of 8");
  call = c.call();
  call.key.strides[2] = 68;
  const std::string reason = "a tensor has columns that are not neighbours, or rows that are not aligned to 16 bytes";
  CHECK(c.why_plain(call) == reason);
  call = c.call();
  call.value.data = static_cast<const char*>(call.value.data) + 8;
  CHECK(c.why_plain(call) == reason);
  c.gradients.query.strides[3] = 2;
  CHECK(c.why_plain(c.call()) == reason);
  CHECK(std::string(
            attend::cuda::why_plain_backward<NoTensorCores>(TensorCoreCall().call(), TensorCoreCall().gradients)) ==
        "the kernels on tensor cores of this type and width are not compiled");
}

TEST_CASE("cuda: why_plain_backward of float32 with Kernels::Float32") {
  TensorCoreCall c;
  c.params.dtype = NumberType::kFloat32;
  const auto why_plain = [&](const Call& call) {
    const char* const reason = attend::cuda::why_plain_backward<InTf32>(call, c.gradients);
    return std::string(reason == nullptr ? "" : reason);
  };
  CHECK(why_plain(c.call()) == "");
  Call call = c.call();
  call.output.strides[2] = 66;
  CHECK(why_plain(call) == "the forward pass is not in tf32");
  call = c.call();
  call.head_dim = 62;
  CHECK(why_plain(call) == "head_dim or value_dim is not a multiple of 4");
  call = c.call();
  call.head_dim = 196;
  CHECK(why_plain(call) == "the backward pass in tf32 has at most 192 columns");
  call = c.call();
  call.head_dim = 96;
  CHECK(why_plain(call) == "the kernels on tensor cores of this type and width are not compiled");
}

TEST_CASE("cuda: backward_why_not names what the backward kernels cannot do") {
  TensorCoreCall c;
  CHECK(attend::cuda::backward_why_not(c.call(), c.gradients) == nullptr);
  Call call = c.call();
  const std::int32_t pages[1] = {};
  call.block_table = pages;
  CHECK(std::string(attend::cuda::backward_why_not(call, c.gradients)) == "keys and values are in pages");
}

TEST_CASE("cuda: launch_backward refuses a call whose grid is too large") {
  TensorCoreCall c;
  Call call = c.call();
  call.batch_size = 1 << 30;
  const auto run = [&] {
    attend::cuda::launch_backward<attend::Unchanged, attend::EveryKey, NoTensorCores>(
        call, c.gradients, [](int, attend::detail::TensorReads*) { return attend::Unchanged(); }, c.saved.data(),
        attend::cuda::backward_workspace_bytes(call, c.gradients), [](auto, const attend::cuda::BackwardCall&) {});
  };
  CHECK_THROWS_WITH_AS(run(),
                       "attend::kernels: a kernel of a backward pass must have at most 2147483647 blocks, got "
                       "2147483648",
                       std::invalid_argument);
}

TEST_CASE("cuda: launch_backward refuses a workspace that is too small") {
  TensorCoreCall c;
  const Call call = c.call();
  const std::int64_t bytes = attend::cuda::backward_workspace_bytes(call, c.gradients);
  std::vector<double> workspace(static_cast<std::size_t>(bytes / 8 + 1));
  const auto run = [&](std::int64_t size) {
    attend::cuda::launch_backward<attend::Unchanged, attend::EveryKey, NoTensorCores>(
        call, c.gradients, [](int, attend::detail::TensorReads*) { return attend::Unchanged(); }, workspace.data(),
        size, [](auto, const attend::cuda::BackwardCall&) {});
  };
  CHECK_NOTHROW(run(bytes));
  const std::string message = "attend::kernels: the workspace of a backward pass must have at least " +
                              std::to_string(bytes) + " bytes, got " + std::to_string(bytes - 1);
  CHECK_THROWS_WITH_AS(run(bytes - 1), message.c_str(), std::invalid_argument);
}
