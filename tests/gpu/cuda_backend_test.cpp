// SPDX-License-Identifier: MIT

// Tests attend's CUDA kernels, and ATen's operators by the name kSdpa, on a GPU.

#include <attend/attend.h>

#include "gpu/kernels.h"
#include "support/accuracy.h"
#include "support/device_cases.h"

#include <doctest/doctest.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <cstdint>
#include <iostream>
#include <string>
#include <type_traits>
#include <vector>

namespace cuda_backend_test {
namespace {

using attend::AttentionOptions;
using attend::Backend;
using attend::BackendChoice;

static_assert(std::is_same_v<attend::test::DeviceScore, attend::Then<attend::Softcap, attend::RelativeBias>>);
static_assert(std::is_same_v<attend::test::DeviceMask, attend::And<attend::Document, attend::Causal>>);

bool has_gpu() {
  const bool has = torch::cuda::is_available();
  if (!has) std::cout << "this machine has no GPU" << std::endl;
  return has;
}

}  // namespace

TEST_CASE("attend::cuda::backend on a GPU: every option of attention(), with gradients") {
  if (has_gpu()) attend::test::check_every_option(torch::kCUDA, attend::test::plain_kernels());
}

TEST_CASE("attend::cuda::backend on a GPU: structs that hold tensors, with gradients") {
  if (has_gpu()) attend::test::check_structs(torch::kCUDA, attend::test::kernels_of_structs());
}

TEST_CASE(
    "attend::cuda::backend on a GPU: long sequences in every width, and gradients that are the same in each run") {
  if (!has_gpu()) return;
  for (const std::int64_t width : {32, 64, 96, 128, 192, 256}) {
    CAPTURE(width);
    const auto random = [&](std::int64_t heads) { return torch::randn({2, heads, 700, width}); };
    const auto call = [](const std::vector<torch::Tensor>& given, const BackendChoice& choice) {
      return attend::attention_with_lse(given[0], given[1], given[2],
                                        AttentionOptions().is_causal(true).backend(choice));
    };
    const std::vector<torch::Tensor> inputs{random(4), random(2), random(2)};
    attend::test::compare_on(torch::kCUDA, inputs, torch::kBFloat16, call, attend::test::plain_kernels());
    std::vector<torch::Tensor> moved;
    for (const torch::Tensor& input : inputs) moved.push_back(input.to(torch::kCUDA, torch::kBFloat16));
    const auto run = [&] {
      return attend::test::results_of(
          moved, [&](const auto& given) { return call(given, attend::test::plain_kernels()); }, true);
    };
    const auto first = run(), second = run();
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].equal(second[i]));
  }
}

TEST_CASE("attend::cuda::backend on a GPU: layers under a BackendGuard, and their dropout differs from call to call") {
  if (!has_gpu()) return;
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(64, 4).is_causal(true).dropout(0.2));
  layer->to(torch::kCUDA);
  const torch::Tensor x = torch::randn({50, 2, 64}, torch::kCUDA);
  const auto output = [&] { return std::get<0>(layer(x, x, x)); };
  const auto with_seed = [&](const BackendChoice& choice) {
    const attend::BackendGuard guard(choice);
    torch::manual_seed(2);
    return output();
  };
  const torch::Tensor ours = with_seed(attend::test::plain_kernels());
  CHECK(attend::test::max_difference(ours.cpu(), with_seed(Backend::kReference).cpu()) < 1e-4);
  const attend::BackendGuard guard(attend::test::plain_kernels());
  CHECK_FALSE(output().equal(output()));
}

TEST_CASE("kSdpa on a GPU: ATen's operators give attention()'s results and gradients") {
  if (!has_gpu()) return;
  torch::manual_seed(3);
  struct Case {
    std::string name;
    at::ScalarType dtype;
    AttentionOptions options;
    std::int64_t L = 200, S = 300;
    bool with_lse = true;
    std::vector<std::int64_t> learned = {};  // the sizes of attn_mask
  };
  const auto with = [] { return AttentionOptions(); };
  const auto integers = [](const torch::Tensor& tensor) { return tensor.to(torch::kCUDA, torch::kInt); };
  const torch::Tensor offsets = integers(torch::tensor({0, 70, 70, 200})),
                      key_offsets = integers(torch::tensor({0, 90, 110, 300}));
  const torch::Tensor mask = torch::rand({200, 300}, torch::kCUDA) < 0.7;
  const Case cases[] = {
      {"log-sum-exp", torch::kBFloat16, with()},
      {"causal, L < S", torch::kHalf, with().is_causal(true)},
      {"causal, L > S", torch::kBFloat16, with().is_causal(true), 300, 200},
      {"window", torch::kBFloat16, with().window({40, 5})},
      {"packed, causal", torch::kBFloat16, with().query_offsets(offsets).key_offsets(key_offsets).is_causal(true)},
      {"float32, log-sum-exp, causal", torch::kFloat, with().is_causal(true)},
      {"float32, mask and causal", torch::kFloat, with().is_causal(true).attn_mask(mask), 200, 300, false},
      {"float32, learned bias", torch::kFloat, with(), 200, 300, false, {4, 200, 300}},
      {"learned bias, causal", torch::kBFloat16, with().is_causal(true), 200, 300, false, {200, 300}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::int64_t N = c.options.query_offsets().defined() ? 1 : 2;
    std::vector<torch::Tensor> inputs{torch::randn({N, 4, c.L, 64}), torch::randn({N, 2, c.S, 64}),
                                      torch::randn({N, 2, c.S, 64})};
    if (!c.learned.empty()) inputs.push_back(torch::randn(c.learned));
    for (torch::Tensor& input : inputs) input = input.to(torch::kCUDA, c.dtype);
    const auto results = [&](const BackendChoice& choice, at::ScalarType dtype) {
      std::vector<torch::Tensor> leaves;
      for (const torch::Tensor& input : inputs) leaves.push_back(input.to(dtype).detach().requires_grad_());
      AttentionOptions options = AttentionOptions(c.options).backend(choice);
      if (!c.learned.empty()) options.attn_mask(leaves[3]);
      attend::AttentionResult result;
      if (c.with_lse)
        result = attend::attention_with_lse(leaves[0], leaves[1], leaves[2], options);
      else
        result.output = attend::attention(leaves[0], leaves[1], leaves[2], options);
      torch::Tensor sum = attend::test::weighted_sum(result.output);
      if (c.with_lse)
        sum = sum + attend::test::weighted_sum(result.log_sum_exp.masked_fill(result.log_sum_exp.isinf(), 0));
      std::vector<torch::Tensor> all{result.output};
      for (const torch::Tensor& gradient : torch::autograd::grad({sum}, leaves)) all.push_back(gradient);
      return all;
    };
    const auto ours = results(Backend::kSdpa, c.dtype), dense = results(Backend::kReference, c.dtype),
               exact = results(Backend::kReference, torch::kDouble);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      const auto error = [&](const torch::Tensor& result) {
        return attend::test::max_difference(result.cpu().to(torch::kDouble), exact[i].cpu());
      };
      CHECK(error(ours[i]) <= attend::test::kAtensFactor * error(dense[i]) + 1e-5);
    }
  }
}

}  // namespace cuda_backend_test
