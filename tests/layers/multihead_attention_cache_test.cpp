// SPDX-License-Identifier: MIT

// Tests that MultiheadAttention with a KeyValueCache equals the layer without one.

#include <attend/attention/key_value_cache.h>
#include <attend/layers/multihead_attention.h>

#include "layers/multihead_formula.h"
#include "support/accuracy.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <utility>
#include <vector>

using attend::KeyValueCache;
using attend::KeyValueCacheOptions;
using attend::MultiheadAttention;
using attend::MultiheadAttentionCall;
using attend::MultiheadAttentionOptions;
using attend::test::check_equal_in_float64;
using attend::test::each_option;
using attend::test::MultiheadFormula;
using attend::test::NamedOptions;
using attend::test::plain;
using attend::test::random_layer;

namespace multihead_attention_cache_test {
namespace {

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

KeyValueCacheOptions fitting(const MultiheadAttention& layer, std::int64_t batch) {
  return KeyValueCacheOptions(1, batch, layer->options.num_kv_heads().value_or(layer->options.num_heads()),
                              layer->head_dim, 16)
      .dtype(torch::kDouble);
}

}  // namespace

TEST_CASE(
    "MultiheadAttention: with a cache, tokens one by one and in pieces give what all give at once, for each option") {
  torch::manual_seed(30);
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = normal({2, 9, 24});
  for (const NamedOptions& each : each_option()) {
    for (const bool has_window : {false, true}) {
      MultiheadAttentionOptions options = each.value;
      options.is_causal(true).window({has_window ? 3 : -1, -1});
      MultiheadAttention layer = random_layer(options);
      const torch::Tensor expected = MultiheadFormula(layer)(x, x).output;
      for (const std::int64_t page_size : {0, 4}) {
        for (const std::vector<std::int64_t>& pieces : {std::vector<std::int64_t>(9, 1), {4, 1, 3, 1}}) {
          CAPTURE(each.name);
          CAPTURE(has_window);
          CAPTURE(page_size);
          CAPTURE(pieces.size());
          KeyValueCache cache(fitting(layer, 2).page_size(page_size));
          std::int64_t begin = 0;
          for (const std::int64_t length : pieces) {
            const auto placed = [&](const torch::Tensor& t) { return options.batch_first() ? t : t.transpose(0, 1); };
            const torch::Tensor y =
                layer->self_attention(placed(x.narrow(1, begin, length)), MultiheadAttentionCall().cache(&cache));
            check_equal_in_float64(placed(y), expected.narrow(1, begin, length));
            begin += length;
          }
        }
      }
    }
  }
}

TEST_CASE("MultiheadAttention: a cache with entries of different lengths gives each what it gets alone") {
  torch::manual_seed(31);
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = normal({2, 5, 24}), next = normal({2, 1, 24});
  for (const NamedOptions& each : each_option()) {
    if (!each.value.batch_first() || each.value.position_bias()) continue;
    CAPTURE(each.name);
    MultiheadAttention layer = random_layer(MultiheadAttentionOptions(each.value).is_causal(true));
    KeyValueCache cache(fitting(layer, 2));
    const torch::Tensor valid = torch::tensor({5, 2});
    layer->self_attention(x, MultiheadAttentionCall().cache(&cache).cache_valid(valid));
    const torch::Tensor y = layer->self_attention(next, MultiheadAttentionCall().cache(&cache));
    for (std::int64_t n = 0; n < 2; ++n) {
      const auto length = valid[n].item<std::int64_t>();
      const torch::Tensor alone =
          torch::cat({x.narrow(0, n, 1).narrow(1, 5 - length, length), next.narrow(0, n, 1)}, 1);
      check_equal_in_float64(y.narrow(0, n, 1), MultiheadFormula(layer)(alone, alone).output.narrow(1, length, 1));
    }
  }
}

TEST_CASE(
    "MultiheadAttention: with a cache, an attn_mask covers all cached keys; cross_attention() reads it without "
    "memory") {
  torch::manual_seed(32);
  const torch::NoGradGuard no_grad;
  MultiheadAttention layer = random_layer(plain());
  const torch::Tensor memory = normal({2, 6, 24}), x = normal({2, 3, 24});
  const torch::Tensor ignored = torch::rand({3, 6}) > 0.6;
  KeyValueCache cache(fitting(layer, 2));
  const auto call = [&] { return MultiheadAttentionCall().cache(&cache); };
  check_equal_in_float64(layer->cross_attention(x, memory, call()), MultiheadFormula(layer)(x, memory).output);
  check_equal_in_float64(layer->cross_attention(x, {}, call().attn_mask(ignored)),
                         MultiheadFormula(layer)(x, memory, ignored).output);
  CHECK(cache.lengths().equal(torch::tensor({6, 6})));
}

TEST_CASE("MultiheadAttention: cross_attention() to a cache, with rotary: the last query is at the last key") {
  torch::manual_seed(33);
  const torch::NoGradGuard no_grad;
  MultiheadAttention layer = random_layer(plain().rotary(attend::RotaryEmbeddingOptions(6)));
  const torch::Tensor memory = normal({2, 7, 24});
  for (const std::int64_t queries : {1, 3, 5}) {
    CAPTURE(queries);
    const torch::Tensor x = normal({2, queries, 24});
    KeyValueCache cache(fitting(layer, 2));
    const auto call = MultiheadAttentionCall().cache(&cache);
    for (const auto& [begin, end] : {std::pair(0, 4), std::pair(4, 7)})
      check_equal_in_float64(layer->cross_attention(x, memory.narrow(1, begin, end - begin), call),
                             MultiheadFormula(layer)(x, memory.narrow(1, 0, end)).output);
    check_equal_in_float64(layer->cross_attention(x, {}, call), MultiheadFormula(layer)(x, memory).output);
  }
}

TEST_CASE("MultiheadAttention: a cache of another batch size, dtype or head count is refused") {
  MultiheadAttention layer = random_layer(plain());
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = normal({2, 3, 24});
  const auto options = [&] { return fitting(layer, 2); };
  const auto run = [&](const KeyValueCacheOptions& given) {
    KeyValueCache cache(given);
    layer->self_attention(x, MultiheadAttentionCall().cache(&cache));
  };
  CHECK_THROWS_AS(run(options().batch_size(3)), c10::ValueError);
  CHECK_THROWS_AS(run(options().num_kv_heads(2)), c10::ValueError);
  CHECK_THROWS_AS(run(options().head_dim(8)), c10::ValueError);
  CHECK_THROWS_AS(run(options().dtype(torch::kFloat)), c10::TypeError);
  CHECK_THROWS_AS(run(options().max_length(2)), c10::ValueError);
}

}  // namespace multihead_attention_cache_test
