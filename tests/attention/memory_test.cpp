// SPDX-License-Identifier: MIT

// Tests the memory of attention() and flex_attention() beyond inputs, outputs and gradients.

#include <attend/attention.h>
#include <attend/flex_attention.h>

#include "support/allocator_peak.h"
#include "support/backends.h"
#include "support/heap_peak.h"
#include "support/structs.h"
#include "support/tensor_structs.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::AddedBias;
using attend::test::AllocatorPeak;
using attend::test::HeapPeak;
using attend::test::SameParity;
using attend::test::SoftSign;

namespace memory_test {
namespace {

struct Sizes {
  std::int64_t heads, kv_heads, length;
};

using QueryKeyValue = std::vector<torch::Tensor>;
using Outputs = std::function<std::vector<torch::Tensor>(const QueryKeyValue&)>;

/// The peak memory of a float32 forward and backward pass, in tensors and elsewhere, without the outputs and the three
/// gradients.
std::int64_t extra_bytes(const Sizes& n, const Outputs& outputs_of) {
  constexpr std::int64_t kWidth = 64;
  QueryKeyValue inputs;
  for (const std::int64_t heads : {n.heads, n.kv_heads, n.kv_heads})
    inputs.push_back(torch::randn({1, heads, n.length, kWidth}).requires_grad_());
  const std::vector<torch::Tensor> given{torch::randn_like(inputs[0]), torch::randn(inputs[0].sizes().slice(0, 3))};
  std::int64_t results = 0;
  const HeapPeak heap;
  const AllocatorPeak memory;
  {
    const std::vector<torch::Tensor> outputs = outputs_of(inputs);
    const auto end = given.begin() + static_cast<std::ptrdiff_t>(outputs.size());
    const auto gradients = torch::autograd::grad(outputs, inputs, std::vector(given.begin(), end));
    for (const auto& tensors : {outputs, gradients})
      for (const torch::Tensor& tensor : tensors) results += static_cast<std::int64_t>(tensor.nbytes());
    CHECK(memory.now() >= results);
  }
  CHECK(memory.now() == 0);  // all memory was counted and freed
  return memory.peak() + heap.peak() - results;
}

Outputs attention_with(const AttentionOptions& options, bool with_lse = false) {
  return [=](const QueryKeyValue& in) -> std::vector<torch::Tensor> {
    if (!with_lse) return {attend::attention(in[0], in[1], in[2], options)};
    const attend::AttentionResult both = attend::attention_with_lse(in[0], in[1], in[2], options);
    return {both.output, both.log_sum_exp};
  };
}

/// The peak memory of a forward and backward pass for q, k, v and a learned bias of these sizes, expanded to
/// (N, H, L, S), without the outputs and gradients.
template <class Attention>
std::int64_t extra_bytes_of_bias(std::vector<std::int64_t> sizes, at::ScalarType dtype, const Attention& attention) {
  constexpr std::int64_t kBatch = 4, kHeads = 4, kLength = 512;
  std::vector<torch::Tensor> inputs;
  for (int i = 0; i < 3; ++i) inputs.push_back(torch::randn({kBatch, kHeads, kLength, 16}).to(dtype).requires_grad_());
  inputs.push_back(torch::randn(sizes).to(dtype).requires_grad_());
  const HeapPeak heap;
  const AllocatorPeak memory;
  std::int64_t results = 0;
  {
    const torch::Tensor output =
        attention(inputs[0], inputs[1], inputs[2], inputs[3].expand({kBatch, kHeads, kLength, kLength}));
    const auto gradients = torch::autograd::grad({output}, inputs, {torch::ones_like(output)});
    for (const torch::Tensor& tensor : gradients) results += static_cast<std::int64_t>(tensor.nbytes());
  }
  return memory.peak() + heap.peak() - results;
}

template <class Check>
void check_each_learned_bias(const Check& check) {
  const AttentionOptions options = AttentionOptions().backend(Backend::kCpu);
  check("attn_mask", [=](const auto& q, const auto& k, const auto& v, const torch::Tensor& bias) {
    return attend::attention(q, k, v, AttentionOptions(options).attn_mask(bias));
  });
  check("DenseBias", [=](const auto& q, const auto& k, const auto& v, const torch::Tensor& bias) {
    return attend::flex_attention(q, k, v, attend::DenseBias(bias), attend::EveryKey{}, options);
  });
  check("a user's struct", [=](const auto& q, const auto& k, const auto& v, const torch::Tensor& bias) {
    return attend::flex_attention(q, k, v, AddedBias{bias}, attend::EveryKey{}, options);
  });
}

std::int64_t bytes_of_square(std::int64_t length) { return length * length * std::int64_t{sizeof(float)}; }

}  // namespace

TEST_CASE("AllocatorPeak: tensors held at the same time are counted, on all threads") {
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

TEST_CASE("HeapPeak: memory outside tensors is counted too, on all threads") {
  HeapPeak memory;
  CHECK(memory.peak() == 0);
  auto first = std::make_unique<char[]>(100'000);
  { const auto second = std::make_unique<float[]>(50'000); }
  CHECK(memory.peak() >= 300'000);
  CHECK(memory.peak() < 310'000);
  std::thread([&] { first = std::make_unique<char[]>(1'000'000); }).join();
  CHECK(memory.now() >= 1'000'000);
  CHECK(memory.now() < 1'010'000);  // the thread itself takes some memory
  CHECK(memory.peak() >= 1'100'000);
}

TEST_CASE("AllocatorPeak: the L × L matrix of the dense formula is counted") {
  constexpr std::int64_t kLength = 1024;
  const AttentionOptions options = AttentionOptions().backend(Backend::kReference);
  CHECK(extra_bytes({1, 1, kLength}, attention_with(options)) > bytes_of_square(kLength));
}

TEST_CASE("attention: forward and backward at L 8,192 take less than a tenth of the memory of an L × L matrix") {
  constexpr std::int64_t kLength = 8192;
  torch::Tensor padding = torch::ones({1, 1, 1, kLength}, torch::kBool);
  padding.slice(3, kLength - 1000).fill_(false);
  const auto options = [] { return AttentionOptions(); };
  const AttentionOptions causal = options().is_causal(true), padded = options().attn_mask(padding);
  const Sizes single{1, 1, kLength}, grouped{2, 1, kLength};
  struct Case {
    std::string name;
    Sizes sizes;
    bool sdpa_can;
    AttentionOptions options = {};
    bool with_lse = false;
  };
  const Case cases[] = {
      {"plain", single, true},
      {"plain, grouped", grouped, true},
      {"causal", single, true, causal},
      {"causal, grouped", grouped, true, causal},
      {"padding", single, true, padded},
      {"causal and padding", single, true, AttentionOptions(padded).is_causal(true)},
      {"causal and padding, grouped", grouped, true, AttentionOptions(padded).is_causal(true)},
      {"with lse", single, true, {}, true},
      {"window", single, false, options().window({100, 100})},
      {"causal window", single, false, options().window({256, 0})},
      {"ALiBi and softcap", single, false, options().alibi_slopes(torch::full({1}, 0.01)).softcap(20.0)},
      {"dropout", single, false, options().dropout(0.1)},
  };
  for (const Case& c : cases) {
    for (const Backend backend : attend::test::kBackendsWithOwnGradients) {
      if (backend == Backend::kSdpa && !c.sdpa_can) continue;
      CAPTURE(c.name);
      CAPTURE(backend);
      const AttentionOptions all = AttentionOptions(c.options).backend(backend);
      CHECK(extra_bytes(c.sizes, attention_with(all, c.with_lse)) < bytes_of_square(kLength) / 10);
    }
  }
}

TEST_CASE("flex_attention: scores, masks and learned scores take less than a tenth of an L × L matrix") {
  constexpr std::int64_t kLength = 8192;
  const torch::Tensor slopes = torch::ones({1}).requires_grad_(), table = torch::zeros({1, 101}).requires_grad_();
  const auto check = [&](const std::string& name, const auto& score_mod, const auto& mask_mod) {
    CAPTURE(name);
    const auto flex = [&](const QueryKeyValue& in) -> std::vector<torch::Tensor> {
      return {
          attend::flex_attention(in[0], in[1], in[2], score_mod, mask_mod, AttentionOptions().backend(Backend::kCpu))};
    };
    CHECK(extra_bytes({1, 1, kLength}, flex) < bytes_of_square(kLength) / 10);
  };
  check("a user's", SoftSign{0.5f}, SameParity{} & attend::Causal{});
  check("a window", attend::Unchanged{}, attend::SlidingWindow(256, 0));
  check("learned", attend::then(attend::Alibi(slopes), attend::RelativeBias(table)), attend::Causal{});
}

TEST_CASE("attn_mask, score_mod: an expanded learned bias takes memory only for the tensor before expand") {
  constexpr std::int64_t kMiB = 1 << 20;
  struct Case {
    std::string name;
    std::vector<std::int64_t> sizes;
    std::int64_t most;  // beyond the memory for a bias of one value; 16 float32 copies of (L, S) take 16 MiB
  };
  const Case cases[] = {
      {"over batch and heads", {1, 1, 512, 512}, 6 * kMiB},  // the sums take 4 MiB
      {"from two sizes", {512, 512}, 6 * kMiB},
      {"over queries", {4, 4, 1, 512}, kMiB},
  };
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf})
    check_each_learned_bias([&](const std::string& name, const auto& attention) {
      CAPTURE(dtype);
      CAPTURE(name);
      const std::int64_t of_one_value = extra_bytes_of_bias({1}, dtype, attention);
      CHECK(of_one_value < 6 * kMiB);
      for (const Case& c : cases) {
        CAPTURE(c.name);
        CHECK(extra_bytes_of_bias(c.sizes, dtype, attention) < of_one_value + c.most + kMiB / 8);
      }
    });
}

TEST_CASE("DenseBias, attn_mask: a learned bias has at most two float64 copies of its gradient") {
  constexpr std::int64_t kBytes = 4 * 4 * 512 * 512 * 4;  // size of the bias
  check_each_learned_bias([&](const std::string& name, const auto& attention) {
    CAPTURE(name);
    for (const int threads : {1, 2, 16}) {
      CAPTURE(threads);
      const int before = at::get_num_threads();
      at::set_num_threads(threads);
      const std::int64_t extra = extra_bytes_of_bias({4, 4, 512, 512}, torch::kFloat, attention);
      at::set_num_threads(before);
      const std::int64_t copies = name == "attn_mask" || threads == 1 ? 1 : 2;
      CHECK(extra < 2 * copies * kBytes + kBytes);  // the last term is the workspace of the threads
    }
  });
}

TEST_CASE("block_table: float16 pages of other sequences are not converted") {
  const torch::NoGradGuard no_grad;
  const torch::Tensor pages = torch::zeros({2000, 2, 16, 32}, torch::kHalf);  // 4 MB
  const auto options = AttentionOptions()
                           .block_table(torch::tensor({{1999, 7, 0}}, torch::kInt))
                           .key_lengths(torch::tensor({20}, torch::kInt))
                           .backend(Backend::kCpu);
  const torch::Tensor query = torch::ones({1, 2, 1, 32}, torch::kHalf);
  pages.select(0, 1999).fill_(1);
  pages.select(0, 7).fill_(2);
  const torch::Tensor keys = torch::zeros_like(pages);
  const AllocatorPeak memory;
  const torch::Tensor output = attend::attention(query, keys, pages, options);
  CHECK(output.sub(24.0 / 20).abs().max().item<double>() < 1e-3);  // 16 rows of 1 and 4 of 2
  CHECK(memory.peak() < 100'000);
}

}  // namespace memory_test
