// SPDX-License-Identifier: MIT

// Tests the options of MultiheadAttention that torch lacks, each against the formula in float64.

#include <attend/layers/multihead_attention.h>

#include "layers/multihead_attention_support.h"
#include "layers/multihead_formula.h"
#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/autocast.h"
#include "support/draws.h"
#include "support/errors.h"

#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/serialize.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using attend::MultiheadAttention;
using attend::MultiheadAttentionCall;
using attend::MultiheadAttentionOptions;
using attend::QkNorm;
using attend::RotaryEmbeddingOptions;
using attend::RotaryLayout;
using attend::test::check_equal_in_float64;
using attend::test::copy_of;
using attend::test::DistanceBias;
using attend::test::Draws;
using attend::test::each_option;
using attend::test::message_of;
using attend::test::MultiheadFormula;
using attend::test::NamedOptions;
using attend::test::output_of;
using attend::test::plain;
using attend::test::random_layer;
using attend::test::weights_of;

namespace multihead_attention_options_test {
namespace {

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

/// Compares the output, the weights and all gradients of a self-attention with the formula. x is batch-first.
void check_self_attention(const MultiheadAttention& layer, const torch::Tensor& given,
                          const torch::Tensor& key_padding_mask = {}) {
  const bool batch_first = layer->options.batch_first(), has_weights = !layer->options.attention_function();
  const torch::Tensor x = given.detach().clone().requires_grad_();
  const torch::Tensor ignored =
      key_padding_mask.defined() ? key_padding_mask.view({x.size(0), 1, 1, x.size(1)}) : torch::Tensor();
  const auto expected = MultiheadFormula(layer)(x, x, ignored);
  const torch::Tensor tokens = batch_first ? x : x.transpose(0, 1);
  MultiheadAttention shared = layer;
  const auto results = shared->forward(tokens, tokens, tokens, key_padding_mask, has_weights, {}, false);
  const torch::Tensor output = batch_first ? output_of(results) : output_of(results).transpose(0, 1);
  check_equal_in_float64(output, expected.output);
  if (has_weights) check_equal_in_float64(weights_of(results), expected.weights);
  auto call = MultiheadAttentionCall().key_padding_mask(key_padding_mask);
  CHECK(shared->self_attention(tokens, call).equal(output_of(results)));

  std::vector<torch::Tensor> inputs = layer->parameters();
  inputs.push_back(x);
  const torch::Tensor direction = torch::randn_like(expected.output), of_weights = torch::randn_like(expected.weights);
  torch::Tensor loss = (output * direction).sum(), expected_loss = (expected.output * direction).sum();
  if (has_weights) {
    loss = loss + (weights_of(results) * of_weights).sum();
    expected_loss = expected_loss + (expected.weights * of_weights).sum();
  }
  const auto gradients = torch::autograd::grad({loss}, inputs),
             expected_gradients = torch::autograd::grad({expected_loss}, inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(i);
    CHECK(expected_gradients[i].abs().max().item<double>() > 0.0);
    check_equal_in_float64(gradients[i], expected_gradients[i]);
  }
}

}  // namespace

TEST_CASE("MultiheadAttention: each option of attend equals the formula in float64, with weights and gradients") {
  torch::manual_seed(20);
  const torch::Tensor x = normal({2, 7, 24});
  for (const NamedOptions& each : each_option()) {
    CAPTURE(each.name);
    const MultiheadAttention layer = random_layer(each.value);
    check_self_attention(layer, x);
    check_self_attention(layer, x, attend::test::padding(2, 7));
  }
}

TEST_CASE("MultiheadAttention: 150 random combinations of its options equal the formula in float64") {
  for (std::uint32_t number = 0; number < 150; ++number) {
    CAPTURE(number);
    torch::manual_seed(number);
    Draws draws(number);
    const std::int64_t heads = draws.one_of(std::vector<std::int64_t>{2, 3, 4}), head_dim = 2 * (2 + draws.below(4));
    MultiheadAttentionOptions options(heads * 4, heads);
    options.head_dim(head_dim).batch_first(!draws.one_in(3)).separate_projections(draws.one_in(2));
    options.num_kv_heads(draws.one_in(2) ? 1 : heads).bias(draws.one_in(2)).is_causal(draws.one_in(2));
    if (draws.one_in(3)) options.qkv_bias(draws.one_in(2));
    if (draws.one_in(3)) options.out_bias(draws.one_in(2));
    options.qk_norm(draws.one_of(std::vector<QkNorm>{QkNorm::kNone, QkNorm::kRms, QkNorm::kLayer}));
    if (draws.one_in(3)) options.softcap(2.0);
    if (draws.one_in(3)) options.alibi(true);
    if (draws.one_in(3)) options.scale(0.3);
    if (draws.one_in(3)) options.window({1 + draws.below(4), draws.below(3)});
    if (draws.one_in(3)) options.position_bias(DistanceBias(heads, 2).ptr());
    if (draws.one_in(2)) {
      options.rotary(RotaryEmbeddingOptions(head_dim)
                         .rotary_dim(draws.one_in(2) ? head_dim - 2 : head_dim)
                         .layout(draws.one_in(2) ? RotaryLayout::kHalfSplit : RotaryLayout::kInterleaved));
    }
    const MultiheadAttention layer = random_layer(options);
    std::ostringstream printed;
    printed << layer;
    CAPTURE(printed.str());
    check_self_attention(layer, normal({2, 6, heads * 4}),
                         draws.one_in(2) ? attend::test::padding(2, 6) : torch::Tensor());
  }
}

TEST_CASE("MultiheadAttention: in float32 the options are as accurate as the formula in float32") {
  torch::manual_seed(21);
  const torch::Tensor x = torch::randn({2, 40, 64});
  const auto options = [] { return MultiheadAttentionOptions(64, 4).batch_first(true); };
  for (const auto& each : {options().separate_projections(true).num_kv_heads(2), options().qk_norm(QkNorm::kRms),
                           options().softcap(1.0), options().alibi(true), options().rotary(RotaryEmbeddingOptions(16)),
                           options().position_bias(DistanceBias(4, 9).ptr())}) {
    const MultiheadAttention exact = random_layer(each);
    MultiheadAttention layer = copy_of(exact);
    layer->to(torch::kFloat);
    const torch::Tensor exact_output = MultiheadFormula(exact)(x.to(torch::kDouble), x.to(torch::kDouble)).output;
    attend::test::check_as_accurate_as(MultiheadFormula(layer)(x, x).output, layer->self_attention(x), exact_output);
  }
}

TEST_CASE("MultiheadAttention: cross_attention() equals forward() with one memory, for each option") {
  torch::manual_seed(22);
  const torch::Tensor x = normal({2, 5, 24}), memory = normal({2, 9, 24});
  for (const NamedOptions& each : each_option()) {
    CAPTURE(each.name);
    MultiheadAttention layer = random_layer(each.value);
    const bool batch_first = each.value.batch_first();
    const auto placed = [&](const torch::Tensor& tensor) { return batch_first ? tensor : tensor.transpose(0, 1); };
    const torch::Tensor tokens = placed(x), others = placed(memory);
    const auto results = layer->forward(tokens, others, others, {}, /*need_weights=*/true, {}, false);
    const auto expected = MultiheadFormula(layer)(x, memory);
    check_equal_in_float64(placed(output_of(results)), expected.output);
    check_equal_in_float64(weights_of(results), expected.weights);
    CHECK(layer->cross_attention(tokens, others).equal(output_of(results)));
  }
}

// ---- What a call can have
// ----------------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: rotary positions of a call, for all or for each batch entry, equal the formula") {
  torch::manual_seed(23);
  MultiheadAttention layer = random_layer(plain().rotary(RotaryEmbeddingOptions(6)));
  const torch::Tensor x = normal({2, 5, 24}), memory = normal({2, 7, 24});
  const torch::Tensor positions = torch::tensor({3, 0, 9, 9, 100}), others = torch::arange(7) * 3;
  const auto self = layer->self_attention(x, MultiheadAttentionCall().positions(positions));
  check_equal_in_float64(self, MultiheadFormula(layer)(x, x, {}, positions, positions).output);
  const auto cross =
      layer->cross_attention(x, memory, MultiheadAttentionCall().positions(positions).key_positions(others));
  check_equal_in_float64(cross, MultiheadFormula(layer)(x, memory, {}, positions, others).output);
  const auto of_entries =
      layer->self_attention(x, MultiheadAttentionCall().positions(torch::stack({positions, positions + 4})));
  check_equal_in_float64(of_entries, self);  // only distances matter
}

TEST_CASE("MultiheadAttention: a packed batch gives each sequence what it gets alone, for each option") {
  torch::manual_seed(24);
  const torch::Tensor offsets = torch::tensor({0, 4, 5, 11}, torch::kInt),
                      others = torch::tensor({0, 5, 9, 16}, torch::kInt);
  const torch::Tensor x = normal({1, 11, 24}), memory = normal({1, 16, 24});
  for (const NamedOptions& each : each_option()) {
    CAPTURE(each.name);
    // A bias counts positions through all sequences. In self-attention distances are those within a sequence.
    const bool has_bias = each.value.position_bias() != nullptr;
    for (const bool is_causal : {false, true}) {
      const MultiheadAttention layer =
          random_layer(MultiheadAttentionOptions(each.value).batch_first(true).is_causal(is_causal));
      MultiheadAttention packed = layer;
      const torch::Tensor self = packed->self_attention(x, MultiheadAttentionCall().query_offsets(offsets));
      const torch::Tensor cross =
          packed->cross_attention(x, memory, MultiheadAttentionCall().query_offsets(offsets).key_offsets(others));
      for (std::int64_t b = 0; b < 3; ++b) {
        const auto part = [b](const torch::Tensor& tensor, const torch::Tensor& bounds) {
          const auto begin = bounds[b].item<std::int64_t>();
          return tensor.narrow(1, begin, bounds[b + 1].item<std::int64_t>() - begin);
        };
        const torch::Tensor tokens = part(x, offsets), of_memory = part(memory, others);
        check_equal_in_float64(part(self, offsets), MultiheadFormula(layer)(tokens, tokens).output);
        if (!has_bias) check_equal_in_float64(part(cross, offsets), MultiheadFormula(layer)(tokens, of_memory).output);
      }
    }
  }
}

TEST_CASE(
    "MultiheadAttention: attention_function gets the heads and all options; position_bias of a call replaces its own") {
  torch::manual_seed(25);
  const torch::Tensor x = normal({2, 7, 24});
  const auto squared = [](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const attend::AttentionOptions& options) {
    CHECK(options.dropout() == 0.0);
    return attend::flex_attention(q, k, v, attend::Softcap{0.75}, attend::EveryKey{}, options);
  };
  MultiheadAttention own =
      random_layer(plain().attention_function(squared).num_kv_heads(2).is_causal(true).alibi(true));
  MultiheadAttention softcap = random_layer(plain().softcap(0.75).num_kv_heads(2).is_causal(true));
  torch::nn::Module& target = *softcap;
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : target.named_parameters()) parameter->copy_(own->named_parameters()[parameter.key()]);
  }
  // The score_mod comes after the slopes, so the slopes are set to 0 for the comparison.
  MultiheadAttention without = random_layer(plain().attention_function(squared).num_kv_heads(2).is_causal(true));
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : without->named_parameters()) parameter->copy_(own->named_parameters()[parameter.key()]);
  }
  const torch::Tensor ignored = attend::test::padding(2, 7);
  const auto call = MultiheadAttentionCall().key_padding_mask(ignored);
  check_equal_in_float64(without->self_attention(x, call), softcap->self_attention(x, call));
  CHECK_FALSE(own->self_attention(x, call).allclose(softcap->self_attention(x, call)));

  MultiheadAttention plain_layer = random_layer(plain());
  MultiheadAttention biased = random_layer(plain().position_bias(DistanceBias(4, 3).ptr()));
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : plain_layer->named_parameters())
      parameter->copy_(biased->named_parameters()[parameter.key()]);
  }
  const torch::Tensor expected = biased->self_attention(x);
  check_equal_in_float64(
      plain_layer->self_attention(x, MultiheadAttentionCall().position_bias(biased->position_bias.get())), expected);
  DistanceBias other(4, 2);
  other->to(torch::kDouble);
  CHECK_FALSE(biased->self_attention(x, MultiheadAttentionCall().position_bias(other.get())).allclose(expected));
}

TEST_CASE("MultiheadAttention: dropout of attention_function and position_bias is that of the layer in training mode") {
  double given = -1.0;
  MultiheadAttention layer(
      plain().dropout(0.25).attention_function([&](const torch::Tensor& q, const torch::Tensor& k,
                                                   const torch::Tensor& v, const attend::AttentionOptions& options) {
        given = options.dropout();
        return attend::attention(q, k, v, options);
      }));
  const torch::Tensor x = torch::randn({1, 3, 24});
  layer->self_attention(x);
  CHECK(given == 0.25);
  layer->eval();
  layer->self_attention(x);
  CHECK(given == 0.0);
}

// ---- What all layers promise, with each option
// -------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: clone, torch::save and to(dtype) keep each option; two threads may use it") {
  torch::manual_seed(26);
  const torch::Tensor x = torch::randn({2, 7, 24});
  for (const NamedOptions& each : each_option()) {
    CAPTURE(each.name);
    MultiheadAttention layer(each.value);
    {
      const torch::NoGradGuard no_grad;
      for (torch::Tensor& parameter : layer->parameters()) parameter.normal_(0.0, 0.5);
    }
    const torch::Tensor y = layer->self_attention(x);
    MultiheadAttention clone = copy_of(layer);
    CHECK(clone->self_attention(x).equal(y));
    MultiheadAttention loaded(each.value);
    std::stringstream stream;
    torch::save(layer, stream);
    torch::load(loaded, stream);
    CHECK(loaded->self_attention(x).equal(y));

    std::vector<torch::Tensor> results(2);
    std::vector<std::thread> threads;
    for (torch::Tensor& result : results)
      threads.emplace_back([&] {
        for (int i = 0; i < 10; ++i) result = loaded->self_attention(x);
      });
    for (std::thread& thread : threads) thread.join();
    for (const torch::Tensor& result : results) CHECK(result.equal(y));

    loaded->to(torch::kDouble);
    CHECK(attend::test::max_difference(loaded->self_attention(x.to(torch::kDouble)), y) <
          1e-6 * y.abs().max().item<double>());
    loaded->to(torch::kBFloat16);
    const torch::Tensor low = loaded->self_attention(x.to(torch::kBFloat16));
    CHECK((low.scalar_type() == torch::kBFloat16));
    CHECK(attend::test::max_difference(low, y) < 0.06 * y.abs().max().item<double>());
    const attend::test::Autocast autocast;
    const torch::Tensor cast = layer->self_attention(x);
    CHECK((cast.scalar_type() == torch::kBFloat16));
    CHECK(attend::test::max_difference(cast, y) < 0.06 * y.abs().max().item<double>());

    const torch::NoGradGuard no_grad;  // a clone shares nothing
    for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
    CHECK_FALSE(clone->self_attention(x).equal(cast));
    CHECK(layer->self_attention(x).equal(cast));
  }
}

TEST_CASE("MultiheadAttention: after a call under InferenceMode, gradients can be recorded") {
  for (const auto& options : {plain().alibi(true), plain().rotary(RotaryEmbeddingOptions(6))}) {
    MultiheadAttention layer = random_layer(options);
    const torch::Tensor x = normal({2, 5, layer->options.embed_dim()});
    {
      const c10::InferenceMode inference_mode;
      layer->self_attention(x);
    }
    CHECK_NOTHROW(layer->self_attention(x).sum().backward());
  }
}

TEST_CASE(
    "MultiheadAttention: each option registers the parameters that it names, and reset_parameters() sets them anew") {
  const auto names = [](const MultiheadAttentionOptions& options) {
    std::string joined;
    for (const auto& parameter : MultiheadAttention(options)->named_parameters()) joined += parameter.key() + " ";
    return joined;
  };
  CHECK(names(plain()) == "in_proj_weight in_proj_bias out_proj.weight out_proj.bias ");
  CHECK(names(plain().qkv_bias(false)) == "in_proj_weight out_proj.weight out_proj.bias ");
  CHECK(names(plain().out_bias(false)) == "in_proj_weight in_proj_bias out_proj.weight ");
  CHECK(names(plain().separate_projections(true).bias(false)) ==
        "q_proj.weight k_proj.weight v_proj.weight out_proj.weight ");
  CHECK(names(plain().separate_projections(true).out_bias(false).qk_norm(QkNorm::kRms)) ==
        "q_proj.weight q_proj.bias k_proj.weight k_proj.bias v_proj.weight v_proj.bias out_proj.weight q_norm.weight "
        "k_norm.weight ");
  CHECK(names(plain().bias(false).qk_norm(QkNorm::kLayer).rotary(RotaryEmbeddingOptions(6)).alibi(true)) ==
        "in_proj_weight out_proj.weight q_norm.weight q_norm.bias k_norm.weight k_norm.bias ");
  CHECK(names(plain().bias(false).position_bias(DistanceBias(4, 3).ptr())) ==
        "in_proj_weight out_proj.weight position_bias.table ");

  MultiheadAttention layer(plain().separate_projections(true).qk_norm(QkNorm::kLayer));
  const double range = std::sqrt(6.0 / (24 + 24));  // of xavier_uniform_
  for (int i = 0; i < 2; ++i) {
    for (const torch::nn::Linear& projection : {layer->q_proj, layer->k_proj, layer->v_proj}) {
      CHECK(projection->weight.abs().max().item<double>() <= range);
      CHECK(projection->weight.abs().max().item<double>() > 0.9 * range);
      CHECK(projection->bias.eq(0).all().item<bool>());
    }
    const auto parameters = layer->named_parameters();
    CHECK(parameters["q_norm.weight"].eq(1).all().item<bool>());
    CHECK(parameters["k_norm.bias"].eq(0).all().item<bool>());
    const torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : layer->parameters()) parameter.fill_(5.0);
    layer->reset_parameters();
  }
}

TEST_CASE("MultiheadAttention: explain() names the backend with each option, and allocates nothing") {
  const torch::Tensor x = torch::randn({2, 40, 24});
  for (const NamedOptions& each : each_option()) {
    CAPTURE(each.name);
    MultiheadAttention layer(each.value);
    const attend::test::AllocatorPeak memory;
    CHECK(layer->explain(x, x, x).backend == attend::Backend::kCpu);
    CHECK(memory.peak() == 0);
  }
}

TEST_CASE("MultiheadAttention: a layer prints the options of attend that are set") {
  std::ostringstream stream;
  MultiheadAttention(plain()
                         .qkv_bias(true)
                         .out_bias(false)
                         .separate_projections(true)
                         .rotary(RotaryEmbeddingOptions(6))
                         .qk_norm(QkNorm::kRms)
                         .qk_norm_eps(0.01)
                         .softcap(30)
                         .alibi(true)
                         .position_bias(DistanceBias(4, 3).ptr()))
      ->pretty_print(stream);
  const std::string expected =
      "scale=kInverseSqrt, qkv_bias=true, out_bias=false, separate_projections=true, qk_norm=kRms, qk_norm_eps=0.01, "
      "rotary=(given), softcap=30, alibi=true, position_bias=(given))";
  CHECK(stream.str().ends_with(expected));
}

// ---- Bad input
// ---------------------------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: options of attend that contradict each other are refused with the rule and the values") {
  const auto attention = [](const torch::Tensor& q, const torch::Tensor&, const torch::Tensor&,
                            const attend::AttentionOptions&) { return q; };
  const std::string no_position = ", because the added key has no position";
  const std::pair<MultiheadAttentionOptions, std::string> cases[] = {
      {plain().softcap(-1), "softcap (-1) must be positive and finite, or 0 for none"},
      {plain().softcap(std::numeric_limits<double>::infinity()), "softcap (inf) must be positive and finite"},
      {plain().qk_norm_eps(-1), "qk_norm_eps (-1) must be finite and at least 0"},
      {plain().rotary(RotaryEmbeddingOptions(8)), "head_dim of rotary (8) must be the head_dim of the layer (6)"},
      {plain().position_bias(DistanceBias(3, 2).ptr()), "position_bias must have num_heads (4), got one of 3 heads"},
      {plain().position_bias(DistanceBias(4, 2).ptr()).attention_function(attention),
       "position_bias cannot be combined with attention_function, which computes all scores"},
      {plain().add_bias_kv(true).rotary(RotaryEmbeddingOptions(6)),
       "add_bias_kv cannot be combined with rotary" + no_position},
      {plain().add_zero_attn(true).alibi(true), "add_zero_attn cannot be combined with alibi" + no_position},
      {plain().add_bias_kv(true).position_bias(DistanceBias(4, 2).ptr()),
       "add_bias_kv cannot be combined with position_bias" + no_position},
  };
  for (const auto& [options, expected] : cases) {
    CAPTURE(expected);
    const std::string message = message_of<c10::ValueError>([&, given = options] { MultiheadAttention layer(given); });
    CAPTURE(message);
    CHECK(message.find("attend::MultiheadAttention: " + expected) != std::string::npos);
  }
}

TEST_CASE("MultiheadAttention: calls that contradict the options or themselves are refused with the rule") {
  const torch::Tensor x = torch::randn({1, 5, 24}), offsets = torch::tensor({0, 5}, torch::kInt);
  attend::KeyValueCache cache(attend::KeyValueCacheOptions(1, 1, 4, 6, 16));
  DistanceBias bias(4, 2), of_three(3, 2);
  const auto attention = [](const torch::Tensor& q, const torch::Tensor&, const torch::Tensor&,
                            const attend::AttentionOptions&) { return q; };
  const auto call = [] { return MultiheadAttentionCall(); };
  const std::string no_position = ", because the added key has no position";
  struct Case {
    MultiheadAttentionOptions options;
    MultiheadAttentionCall call;
    std::string expected;
  };
  const Case cases[] = {
      {plain(), call().positions(torch::arange(5)), "positions need the option rotary"},
      {plain(), call().key_positions(torch::arange(5)), "key_positions need the option rotary"},
      {plain(), call().cache_valid(torch::tensor({5})), "cache_valid needs a cache"},
      {plain(), call().cache(&cache).key_padding_mask(torch::zeros({1, 5}, torch::kBool)),
       "key_padding_mask cannot be combined with a cache; pass cache_valid"},
      {plain(), call().cache(&cache).query_offsets(offsets),
       "query_offsets cannot be combined with a cache; each batch entry of a cache is one sequence"},
      {plain(), call().position_bias(of_three.get()), "position_bias must have num_heads (4), got one of 3 heads"},
      {plain().attention_function(attention), call().position_bias(bias.get()),
       "position_bias cannot be combined with attention_function, which computes all scores"},
      {plain().add_bias_kv(true), call().cache(&cache), "add_bias_kv cannot be combined with a cache" + no_position},
      {plain().add_zero_attn(true), call().query_offsets(offsets),
       "add_zero_attn cannot be combined with query_offsets" + no_position},
      {plain().add_bias_kv(true), call().position_bias(bias.get()),
       "add_bias_kv cannot be combined with position_bias" + no_position},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    MultiheadAttention layer(c.options);
    const std::string message = message_of<c10::ValueError>([&] { layer->self_attention(x, c.call); });
    CAPTURE(message);
    CHECK(message.find("attend::MultiheadAttention: " + c.expected) != std::string::npos);
  }
  MultiheadAttention layer(plain());
  attend::test::check_throws<c10::ValueError>("attend::MultiheadAttention: key must be a tensor, got an undefined one",
                                              [&] { layer->cross_attention(x, {}); });
  MultiheadAttention rotary(plain().rotary(attend::RotaryEmbeddingOptions(6)));
  attend::test::check_throws<c10::ValueError>(
      "attend::MultiheadAttention: key_positions need memory; the keys in the cache are rotated already",
      [&] { rotary->cross_attention(x, {}, call().cache(&cache).key_positions(torch::arange(5))); });
}

TEST_CASE("MultiheadAttention: with attention_function, need_weights and explain() are refused with the reason") {
  const torch::Tensor x = torch::randn({1, 5, 24});
  MultiheadAttention layer(
      plain().attention_function([](const torch::Tensor& q, const torch::Tensor&, const torch::Tensor&,
                                    const attend::AttentionOptions&) { return q; }));
  CHECK(message_of<c10::NotImplementedError>([&] { layer(x, x, x); }) ==
        "attend::MultiheadAttention: need_weights: the option attention_function has no weights; pass need_weights = "
        "false");
  CHECK(message_of<c10::NotImplementedError>([&] { layer->explain(x, x, x); }) ==
        "attend::MultiheadAttention: explain() does not know what the attention_function of the options computes");
  layer(x, x, x, torch::Tensor(), /*need_weights=*/false);
}

TEST_CASE("MultiheadAttention: an archive of other options of attend is refused with the option that differs") {
  const std::pair<std::pair<MultiheadAttentionOptions, MultiheadAttentionOptions>, std::string> cases[] = {
      {{plain(), plain().separate_projections(true)}, "bias, qkv_bias or separate_projections."},
      {{plain().bias(false), plain().bias(false).separate_projections(true)}, "kdim, vdim or separate_projections."},
      {{plain().separate_projections(true), plain().separate_projections(true).qkv_bias(false)},
       "bias, qkv_bias or separate_projections."},
      {{plain(), plain().out_bias(false)}, "bias or out_bias."},
      {{plain(), plain().qk_norm(QkNorm::kRms)}, "qk_norm."},
      {{plain().separate_projections(true).bias(false).head_dim(4), plain().separate_projections(true).bias(false)},
       "num_kv_heads or head_dim."},
  };
  for (const auto& [layers, expected] : cases) {
    CAPTURE(expected);
    MultiheadAttention to(layers.first), from(layers.second);
    std::stringstream stream;
    torch::save(from, stream);
    const std::string message = message_of<c10::ValueError>([&, &target = to] { torch::load(target, stream); });
    CAPTURE(message);
    CHECK(message.ends_with("The saved layer has a different " + expected));
  }
}

}  // namespace multihead_attention_options_test
