// SPDX-License-Identifier: MIT

// The C++ of docs/decoding.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attention.h>
#include <attend/attention/key_value_cache.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
#include <torch/utils.h>

using attend::test::max_difference;

// clang-format off: the lines are the page's

namespace decoding_test {
namespace {

struct Decoder : torch::nn::Module {
  torch::nn::Embedding embedding{50, 32};
  torch::nn::Linear q_proj{32, 32}, k_proj{32, 16}, v_proj{32, 16}, head{32, 50};

  Decoder() {
    register_module("embedding", embedding);
    register_module("q_proj", q_proj);
    register_module("k_proj", k_proj);
    register_module("v_proj", v_proj);
    register_module("head", head);
  }

  // tokens (N, L), the new ones only → logits (N, L, 50)
  torch::Tensor forward(const torch::Tensor& tokens, attend::KeyValueCache& cache, const torch::Tensor& valid = {}) {
    torch::Tensor x = embedding(tokens);  // (N, L, 32)
    const auto heads = [](const torch::Tensor& rows) { return rows.unflatten(2, {-1, 8}).transpose(1, 2); };
    cache.append(/*layer=*/0, heads(k_proj(x)), heads(v_proj(x)), valid);
    torch::Tensor y = cache.attention(/*layer=*/0, heads(q_proj(x)), attend::AttentionOptions().is_causal(true));
    return head(x + y.transpose(1, 2).flatten(2));
  }
};

}  // namespace

TEST_CASE("docs/decoding.md: generation, prompts of different lengths, beam search, kinds of caches, options") {
  torch::manual_seed(1);
  Decoder decoder;
  const torch::Tensor prompt = torch::tensor({{3, 1, 4, 1, 5}});

  torch::NoGradGuard no_grad;  // no gradient reaches cached keys and values
  attend::KeyValueCacheOptions sizes(/*num_layers=*/1, /*batch_size=*/1, /*num_kv_heads=*/2, /*head_dim=*/8, /*max_length=*/64);
  attend::KeyValueCache cache(sizes);
  torch::Tensor tokens = prompt;  // (1, L) int64
  torch::Tensor next = prompt;
  for (int step = 0; step < 10; ++step) {
    next = decoder.forward(next, cache).select(1, -1).argmax(-1, /*keepdim=*/true);  // (1, 1)
    tokens = torch::cat({tokens, next}, 1);
  }

  attend::KeyValueCache fresh(sizes);
  const torch::Tensor at_once = decoder.forward(tokens, fresh);  // (1, 15, 50)
  CHECK(at_once.slice(1, 4, 14).argmax(-1).equal(tokens.slice(1, 5)));

  torch::Tensor prompts = torch::tensor({{7, 8, 9}, {0, 0, 5}});  // the second prompt has one token
  torch::Tensor valid = torch::tensor({3, 1});
  attend::KeyValueCache batch(attend::KeyValueCacheOptions(1, 2, 2, 8, 64));
  torch::Tensor logits = decoder.forward(prompts, batch, valid);  // the last row is that of the last token

  fresh.reset();
  CHECK(max_difference(logits[1][2], decoder.forward(torch::tensor({{5}}), fresh)[0][0]) < 1e-6);

  batch.reorder(torch::tensor({1, 1}));  // both beams continue the second one

  CHECK(batch.lengths().equal(torch::tensor({1, 1})));
  const torch::Tensor continued = decoder.forward(torch::tensor({{6}, {6}}), batch);
  CHECK(max_difference(continued[0], continued[1]) == 0);
  CHECK(max_difference(continued[0], decoder.forward(torch::tensor({{6}}), fresh)[0]) < 1e-6);

  attend::KeyValueCache sliding(attend::KeyValueCacheOptions(1, 1, 2, 8, /*max_length=*/1000000).window(256).max_append(512));
  CHECK(max_difference(decoder.forward(tokens, sliding), at_once) < 1e-6);

  const torch::Tensor q = torch::randn({1, 4, 1, 8});
  attend::CachedKeys cached = cache.arguments(/*layer=*/0, /*query_length=*/1);
  torch::Tensor capped = attend::flex_attention(q, cached.key, cached.value, attend::Softcap{30}, {}, cached.options);

  CHECK(max_difference(capped, cache.attention(0, q, attend::AttentionOptions().softcap(30))) < 1e-6);

  torch::Tensor pages = torch::randn({5, 2, 16, 8});  // 5 pages of 16 keys, G 2, D 8
  attend::AttentionOptions options = attend::AttentionOptions()
                                         .key_lengths(torch::tensor({20, 7}, torch::kInt))
                                         .block_table(torch::tensor({{3, 0}, {4, 0}}, torch::kInt));
  torch::Tensor y = attend::attention(torch::randn({2, 4, 1, 8}), pages, pages, options);
  CHECK(y.sizes() == at::IntArrayRef({2, 4, 1, 8}));
}

}  // namespace decoding_test
