// SPDX-License-Identifier: MIT

// The C++ of docs/coming_from_torch.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>

#include "support/accuracy.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/normalization.h>
#include <torch/serialize.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
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

void load_from_python(torch::nn::Module& module, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto saved = torch::pickle_load({std::istreambuf_iterator<char>(file), {}}).toGenericDict();
  const torch::NoGradGuard no_grad;
  for (auto& parameter : module.named_parameters()) {  // and likewise named_buffers(), if the model has any
    TORCH_CHECK(saved.contains(parameter.key()), path, " has no ", parameter.key());
    const torch::Tensor value = saved.at(parameter.key()).toTensor();
    TORCH_CHECK(value.sizes() == parameter->sizes(), parameter.key(), " is ", value.sizes(), " in ", path);
    parameter->copy_(value);
  }
}

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

TEST_CASE("docs/coming_from_torch.md: load_from_python() loads by name and names a missing or misshapen weight") {
  Block saved, loaded;
  c10::Dict<std::string, torch::Tensor> dictionary;
  for (const auto& parameter : saved->named_parameters()) dictionary.insert(parameter.key(), parameter.value().detach());
  attend::test::TemporaryFolder folder;
  const auto write = [&] {
    const std::vector<char> bytes = torch::pickle_save(dictionary);
    std::ofstream(folder.file("block.pt"), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  write();
  load_from_python(*loaded, folder.file("block.pt"));
  for (const auto& parameter : saved->named_parameters())
    CHECK(loaded->named_parameters()[parameter.key()].equal(parameter.value()));

  dictionary.insert_or_assign("norm.bias", torch::zeros({3}));
  write();
  CHECK_THROWS_WITH_AS(load_from_python(*loaded, folder.file("block.pt")), doctest::Contains("norm.bias is [3] in"), c10::Error);
  CHECK(dictionary.erase("norm.bias") == 1);
  write();
  CHECK_THROWS_WITH_AS(load_from_python(*loaded, folder.file("block.pt")), doctest::Contains("has no norm.bias"), c10::Error);
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
