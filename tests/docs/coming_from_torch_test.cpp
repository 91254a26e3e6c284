// SPDX-License-Identifier: MIT

// The C++ of docs/coming_from_torch.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>
#include <attend/io.h>

#include "support/accuracy.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/normalization.h>
#include <torch/serialize.h>

#include <cmath>
#include <iostream>
#include <string>

using attend::test::max_difference;

// clang-format off: the lines are the page's

namespace {

struct TorchBlockImpl : torch::nn::Module {
  torch::nn::LayerNorm norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({64})));
  torch::nn::MultiheadAttention attention = register_module(
      "attention", torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(64, 4)));

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding) {  // (N, L, 64), (N, L)
    torch::Tensor h = norm(x).transpose(0, 1);                                   // (L, N, 64)
    torch::Tensor later = torch::full({x.size(1), x.size(1)}, -INFINITY).triu(1);
    auto [y, weights] = attention(h, h, h, padding, /*need_weights=*/false, later);
    return x + y.transpose(0, 1);
  }
};
TORCH_MODULE(TorchBlock);

struct BlockImpl : torch::nn::Module {
  torch::nn::LayerNorm norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({64})));
  attend::MultiheadAttention attention = register_module(
      "attention", attend::MultiheadAttention(
                       attend::MultiheadAttentionOptions(64, 4).batch_first(true).is_causal(true)));

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding) {  // (N, L, 64), (N, L)
    torch::Tensor h = norm(x);
    auto [y, weights] = attention(h, h, h, padding, /*need_weights=*/false);
    return x + y;
  }
};
TORCH_MODULE(Block);

}  // namespace

TEST_CASE("docs/coming_from_torch.md: a torch::nn block and the attend block exchange weights and agree") {
  TorchBlock torch_block;
  Block block;
  attend::test::TemporaryFolder folder;
  torch::save(torch_block, folder.file("block.pt"));
  torch::load(block, folder.file("block.pt"));
  const torch::Tensor x = torch::randn({3, 9, 64});
  torch::Tensor padding = torch::zeros({3, 9}, torch::kBool);
  padding[1].slice(0, 6) = true;
  CHECK(max_difference(torch_block(x, padding), block(x, padding)) < 1e-5);
}

TEST_CASE("docs/coming_from_torch.md: load_state_dict() and load_safetensors()") {
  TorchBlock torch_block;
  Block block;
  attend::test::TemporaryFolder folder;
  const std::string path = folder.file("block.safetensors");
  attend::save_safetensors(attend::state_dict(*torch_block), path);
  attend::load_state_dict(*block, attend::load_safetensors(path));
  for (const auto& parameter : torch_block->named_parameters())
    CHECK(block->named_parameters()[parameter.key()].equal(parameter.value()));
}

TEST_CASE("docs/coming_from_torch.md: attention(), explain() and BackendGuard") {
  const torch::Tensor q = torch::randn({1, 2, 5, 8}), k = torch::randn({1, 2, 5, 8}), v = torch::randn({1, 2, 5, 8});
  torch::Tensor y;
  torch::Tensor a = at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true);
  torch::Tensor b = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true));
  CHECK(max_difference(a, b) < 1e-6);
  std::cout << attend::explain(q, k, v, attend::AttentionOptions().dropout(0.1)) << '\n';
  // With AVX-512: kCpu runs attend's own CPU kernels with AVX-512 instructions. It reads its inputs without a copy.
  {
    attend::BackendGuard guard(attend::Backend::kSdpa);  // Python: with sdpa_kernel(…):
    y = attend::attention(q, k, v);                      // a fused kernel, or c10::NotImplementedError with the reason
    y = attend::attention(q, k, v, attend::AttentionOptions().backend(attend::Backend::kReference));  // overrides it
  }
  CHECK(y.sizes() == q.sizes());
}

// clang-format on
