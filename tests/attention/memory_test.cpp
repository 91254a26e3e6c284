// SPDX-License-Identifier: MIT

// How much memory attention() takes beside its inputs, outputs and gradients.

#include <attend/attention.h>

#include "support/allocator_peak.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::AllocatorPeak;

namespace {

struct Sizes {
  std::int64_t heads, kv_heads, length;
};

/// The peak of a forward and a backward pass in float32, less what the caller gets: the output and three gradients.
std::int64_t extra_bytes(const Sizes& n, const AttentionOptions& options, bool with_lse = false) {
  constexpr std::int64_t kWidth = 64;
  const torch::Tensor query = torch::randn({1, n.heads, n.length, kWidth}).requires_grad_();
  const torch::Tensor key = torch::randn({1, n.kv_heads, n.length, kWidth}).requires_grad_();
  const torch::Tensor value = torch::randn({1, n.kv_heads, n.length, kWidth}).requires_grad_();
  const torch::Tensor output_gradient = torch::randn_like(query),
                      lse_gradient = torch::randn(query.sizes().slice(0, 3));
  std::int64_t results = 0;
  const AllocatorPeak memory;
  {
    std::vector<torch::Tensor> outputs, gradients{output_gradient};
    if (with_lse) {
      const attend::AttentionResult both = attend::attention_with_lse(query, key, value, options);
      outputs = {both.output, both.log_sum_exp};
      gradients.push_back(lse_gradient);
    } else {
      outputs = {attend::attention(query, key, value, options)};
    }
    const std::vector<torch::Tensor> inputs = torch::autograd::grad(outputs, {query, key, value}, gradients);
    for (const auto& tensors : {outputs, inputs})
      for (const torch::Tensor& tensor : tensors) results += static_cast<std::int64_t>(tensor.nbytes());
    CHECK(memory.now() >= results);
  }
  CHECK(memory.now() == 0);  // all of it was seen, and given back
  return memory.peak() - results;
}

std::int64_t bytes_of_square(std::int64_t length) { return length * length * std::int64_t{sizeof(float)}; }

}  // namespace

TEST_CASE("the instrument counts what is held at once, on all threads") {
  const torch::Tensor before = torch::zeros({1000});
  AllocatorPeak memory;
  CHECK(memory.peak() == 0);
  torch::Tensor first = torch::zeros({1000});  // 4,000 bytes
  { const torch::Tensor second = torch::zeros({500}); }
  CHECK(memory.now() == 4000);
  CHECK(memory.peak() == 6000);
  std::thread([&] { first = torch::zeros({3000}); }).join();
  CHECK(memory.now() == 12000);
  CHECK(memory.peak() == 16000);
}

TEST_CASE("the instrument sees the L × L matrix of the dense formula") {
  constexpr std::int64_t kLength = 1024;
  CHECK(extra_bytes({1, 1, kLength}, AttentionOptions().backend(Backend::kReference)) > bytes_of_square(kLength));
}

TEST_CASE("forward and backward at L 8,192 take less than a tenth of an L × L matrix") {
  constexpr std::int64_t kLength = 8192;
  torch::Tensor padding = torch::ones({1, 1, 1, kLength}, torch::kBool);
  padding.slice(3, kLength - 1000).fill_(false);
  const AttentionOptions causal = AttentionOptions().is_causal(true), padded = AttentionOptions().attn_mask(padding);
  const Sizes single{1, 1, kLength}, grouped{2, 1, kLength};
  struct Case {
    std::string name;
    Sizes sizes;
    AttentionOptions options;
    bool with_lse = false;
  };
  const Case cases[] = {
      {"plain", single, {}},
      {"plain, grouped", grouped, {}},
      {"causal", single, causal},
      {"causal, grouped", grouped, causal},
      {"padding", single, padded},
      {"causal and padding", single, AttentionOptions(padded).is_causal(true)},
      {"causal and padding, grouped", grouped, AttentionOptions(padded).is_causal(true)},
      {"with lse", single, {}, true},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(extra_bytes(c.sizes, c.options, c.with_lse) < bytes_of_square(kLength) / 10);
  }
}
