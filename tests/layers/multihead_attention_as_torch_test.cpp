// SPDX-License-Identifier: MIT

// Compares MultiheadAttention with torch::nn::MultiheadAttention and with Python's module.

#include <attend/layers/multihead_attention.h>

#include "layers/multihead_attention_support.h"
#include "support/accuracy.h"
#include "support/layers.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::Backend;
using attend::MultiheadAttention;
using attend::MultiheadAttentionOptions;
using attend::test::added;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::check_gradients;
using attend::test::copy_parameters;
using attend::test::max_difference;
using attend::test::output_of;
using attend::test::padding;
using attend::test::reference_data;
using attend::test::share_parameters;
using attend::test::weighted_sum;
using attend::test::weights_of;

namespace multihead_attention_as_torch_test {
namespace {

using Call = attend::test::MultiheadCall;
using Results = attend::test::MultiheadResults;

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

/// Options that both modules have.
struct SharedOptions {
  std::string name;
  bool bias = true, add_bias_kv = false, add_zero_attn = false;
  std::int64_t key_width = 12, value_dim = 12;

  template <class Options>
  Options make() const {
    return Options(12, 3)
        .bias(bias)
        .add_bias_kv(add_bias_kv)
        .add_zero_attn(add_zero_attn)
        .kdim(key_width)
        .vdim(value_dim);
  }
  /// Torch's module can be constructed with two different widths, but not called.
  bool torch_can_compute() const { return key_width == value_dim; }
  torch::nn::MultiheadAttention torchs() const {
    return torch::nn::MultiheadAttention(make<torch::nn::MultiheadAttentionOptions>());
  }
  MultiheadAttention ours() const { return MultiheadAttention(make<MultiheadAttentionOptions>()); }
};

const SharedOptions kSharedOptions[] = {
    {"default"},
    {"no bias", false},
    {"add_bias_kv", true, true},
    {"add_zero_attn", true, false, true},
    {"both added keys, no bias", false, true, true},
    {"one width", true, false, false, 5, 5},
    {"one width, no bias, both added keys", false, true, true, 5, 5},
    {"key width", true, true, false, 5, 12},
    {"value width", true, true, false, 12, 5},
};

}  // namespace

// ---- As a replacement of torch::nn::MultiheadAttention --------------------------------------------------------------

TEST_CASE("MultiheadAttention: attn_mask (S), (1, S) or (L, 1) is broadcast as in torch, also with added keys") {
  for (const bool with_added_keys : {false, true}) {
    for (const auto& sizes : {std::vector<std::int64_t>{7}, {1, 7}, {5, 1}}) {
      CAPTURE(with_added_keys);
      CAPTURE(sizes);
      torch::manual_seed(5);
      torch::nn::MultiheadAttention torchs(torch::nn::MultiheadAttentionOptions(12, 3).add_zero_attn(with_added_keys));
      torchs->to(torch::kDouble);
      torch::manual_seed(5);
      MultiheadAttention ours(MultiheadAttentionOptions(12, 3).add_zero_attn(with_added_keys));
      ours->to(torch::kDouble);
      const torch::Tensor query = torch::randn({5, 2, 12}, torch::kDouble),
                          key = torch::randn({7, 2, 12}, torch::kDouble);
      const torch::Tensor mask = torch::randn(sizes, torch::kDouble), full = mask.expand({5, 7});
      // With added keys torch's module appends a column to its mask, so it gets the whole mask.
      const Results expected = torchs(query, key, key, torch::Tensor(), true, with_added_keys ? full : mask);
      const Results results = ours(query, key, key, torch::Tensor(), true, mask);
      CHECK(max_difference(output_of(results), output_of(expected)) < 1e-12);
      CHECK(max_difference(weights_of(results), weights_of(expected)) < 1e-12);
    }
  }
}

TEST_CASE("MultiheadAttention: the same seed gives torch's parameters (names, order, shapes, values) and members") {
  for (const SharedOptions& options : kSharedOptions) {
    CAPTURE(options.name);
    torch::manual_seed(5);
    torch::nn::MultiheadAttention torchs = options.torchs();
    torch::manual_seed(5);
    MultiheadAttention ours = options.ours();

    const auto check_parameters = [&] {
      const auto expected = torchs->named_parameters().pairs(), parameters = ours->named_parameters().pairs();
      REQUIRE(parameters.size() == expected.size());
      for (std::size_t i = 0; i < expected.size(); ++i) {
        CAPTURE(expected[i].first);
        CHECK(parameters[i].first == expected[i].first);
        CHECK(parameters[i].second.equal(expected[i].second));
      }
    };
    check_parameters();
    torch::manual_seed(6);
    torchs->_reset_parameters();
    torch::manual_seed(6);
    ours->_reset_parameters();
    check_parameters();
    CHECK(ours->named_children().keys() == torchs->named_children().keys());

    CHECK(ours->_qkv_same_embed_dim == torchs->_qkv_same_embed_dim);
    CHECK(ours->head_dim == torchs->head_dim);
    const auto check_member = [](const torch::Tensor& member, const torch::Tensor& expected_member) {
      REQUIRE(member.defined() == expected_member.defined());
      if (member.defined()) CHECK(member.equal(expected_member));
    };
    check_member(ours->in_proj_weight, torchs->in_proj_weight);
    check_member(ours->in_proj_bias, torchs->in_proj_bias);
    check_member(ours->bias_k, torchs->bias_k);
    check_member(ours->bias_v, torchs->bias_v);
    check_member(ours->q_proj_weight, torchs->q_proj_weight);
    check_member(ours->k_proj_weight, torchs->k_proj_weight);
    check_member(ours->v_proj_weight, torchs->v_proj_weight);
    check_member(ours->out_proj->weight, torchs->out_proj->weight);
    check_member(ours->out_proj->bias, torchs->out_proj->bias);

    CHECK(ours->options.embed_dim() == torchs->options.embed_dim());
    CHECK(ours->options.num_heads() == torchs->options.num_heads());
    CHECK(ours->options.dropout() == torchs->options.dropout());
    CHECK(ours->options.bias() == torchs->options.bias());
    CHECK(ours->options.add_bias_kv() == torchs->options.add_bias_kv());
    CHECK(ours->options.add_zero_attn() == torchs->options.add_zero_attn());
    CHECK(ours->options.kdim() == torchs->options.kdim());
    CHECK(ours->options.vdim() == torchs->options.vdim());
  }
}

TEST_CASE("MultiheadAttention: results and all gradients equal torch's C++ module, for all calls that it can run") {
  torch::manual_seed(6);
  for (const SharedOptions& options : kSharedOptions) {
    if (!options.torch_can_compute()) continue;
    torch::nn::MultiheadAttention torchs = options.torchs();
    MultiheadAttention ours = options.ours();
    torchs->to(torch::kDouble);
    ours->to(torch::kDouble);
    share_parameters(torchs, ours);
    const torch::Tensor query = normal({5, 3, 12}), key = normal({7, 3, options.key_width}),
                        value = normal(key.sizes());
    std::vector<std::pair<std::string, Call>> calls{{"three tensors", {query, key, value}},
                                                    {"encoder and decoder", {query, key, key}}};
    if (options.key_width == 12) calls.push_back({"self-attention", {query, query, query}});
    for (const auto& entry : calls) {
      for (const bool with_padding : {false, true}) {
        for (const bool with_mask : {false, true}) {
          for (const std::string weights : {"none", "averaged", "for each head"}) {
            CAPTURE(options.name);
            CAPTURE(entry.first);
            CAPTURE(with_padding);
            CAPTURE(with_mask);
            CAPTURE(weights);
            Call call = entry.second;
            const std::int64_t keys = call.key.size(0);
            if (with_padding) call.key_padding_mask = padding(3, keys);
            if (with_mask) call.attn_mask = normal({5, keys});
            call.need_weights = weights != "none";
            call.average_attn_weights = weights == "averaged";

            const Call torchs_call = call.with_leaves(), our_call = call.with_leaves();
            const Results expected = torchs_call.run(torchs), results = our_call.run(ours);
            CHECK(max_difference(output_of(results), output_of(expected)) < 1e-12);
            REQUIRE(weights_of(results).defined() == call.need_weights);
            if (call.need_weights) CHECK(max_difference(weights_of(results), weights_of(expected)) < 1e-12);

            torchs->zero_grad();
            ours->zero_grad();
            weighted_sum(expected).backward();
            weighted_sum(results).backward();
            const std::vector<torch::Tensor> expected_gradients = torchs_call.gradients();
            const std::vector<torch::Tensor> gradients = our_call.gradients();
            for (std::size_t i = 0; i < gradients.size(); ++i)
              CHECK(max_difference(gradients[i], expected_gradients[i]) < 1e-12);
            const auto parameters = torchs->named_parameters();
            for (const auto& parameter : ours->named_parameters()) {
              CAPTURE(parameter.key());
              CHECK(max_difference(parameter->grad(), parameters[parameter.key()].grad()) < 1e-12);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("MultiheadAttention: float32 is as accurate as in torch's C++ module") {
  const SharedOptions options{"default"};
  torch::nn::MultiheadAttention torchs = options.torchs();
  MultiheadAttention ours = options.ours();
  share_parameters(torchs, ours);
  const torch::Tensor x = torch::randn({33, 2, 12});
  const Results plain = torchs(x, x, x), results = ours(x, x, x);
  torchs->to(torch::kDouble);
  const torch::Tensor exact_x = x.to(torch::kDouble);
  const Results exact = torchs(exact_x, exact_x, exact_x);
  check_as_accurate_as(output_of(plain), output_of(results), output_of(exact));
  check_as_accurate_as(weights_of(plain), weights_of(results), weights_of(exact));
}

TEST_CASE("MultiheadAttention: a state dict loads from torch's C++ module and into it; a clone shares no memory") {
  for (const SharedOptions& options : kSharedOptions) {
    if (!options.torch_can_compute()) continue;
    CAPTURE(options.name);
    torch::nn::MultiheadAttention torchs = options.torchs();
    MultiheadAttention ours = options.ours();
    const torch::Tensor query = torch::randn({5, 2, 12}), key = torch::randn({7, 2, options.key_width});
    const Results before = ours(query, key, key);

    std::stringstream to_ours, to_torch;
    torch::save(torchs, to_ours);
    torch::save(ours, to_torch);
    torch::load(ours, to_ours);
    CHECK(max_difference(output_of(ours(query, key, key)), output_of(torchs(query, key, key))) < 1e-6);
    torch::load(torchs, to_torch);
    CHECK(max_difference(output_of(torchs(query, key, key)), output_of(before)) < 1e-6);

    const auto clone = std::dynamic_pointer_cast<attend::MultiheadAttentionImpl>(ours->clone());
    CHECK(output_of(clone->forward(query, key, key)).equal(output_of(ours(query, key, key))));
    const torch::NoGradGuard no_grad;
    const torch::Tensor output = output_of(ours(query, key, key));  // without gradients another kernel may run
    for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
    CHECK(output_of(ours(query, key, key)).equal(output));
    CHECK(output_of(clone->forward(query, key, key)).eq(0).all().item<bool>());
  }
}

TEST_CASE("MultiheadAttention: it runs in AnyModule and Sequential, with and without forward's default arguments") {
  MultiheadAttention layer(12, 3);
  const torch::Tensor x = torch::randn({5, 2, 12}), ignored = padding(2, 5), mask = torch::randn({5, 5});
  const Results by_default = layer->forward(x, x, x), all = layer->forward(x, x, x, ignored, true, mask, false, true);
  const auto check = [](const Results& results, const Results& expected) {
    CHECK(output_of(results).equal(output_of(expected)));
    CHECK(weights_of(results).equal(weights_of(expected)));
  };
  torch::nn::AnyModule any(layer);
  check(any.forward<Results>(x, x, x), by_default);
  check(any.forward<Results>(x, x, x, ignored, true, mask, false, true), all);
  torch::nn::Sequential sequential(layer);
  check(sequential->forward<Results>(x, x, x), by_default);
  check(sequential->forward<Results>(x, x, x, ignored, true, mask, false, true), all);
  CHECK_FALSE(output_of(all).equal(output_of(by_default)));
}

TEST_CASE("MultiheadAttention: options may be changed after construction, as in torch") {
  torch::nn::MultiheadAttention torchs(12, 3);
  MultiheadAttention ours(12, 3);
  share_parameters(torchs, ours);
  torchs->options.add_zero_attn(true);
  ours->options.add_zero_attn(true);
  const torch::Tensor x = torch::randn({5, 2, 12});
  CHECK(max_difference(weights_of(ours(x, x, x)), weights_of(torchs(x, x, x))) < 1e-6);
  const torch::Tensor before = output_of(ours(x, x, x));
  ours->options.dropout(0.5);
  CHECK_FALSE(output_of(ours(x, x, x)).equal(before));
}

// ---- Python's module ------------------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: results and all gradients equal those of Python's module") {
  const std::map<std::string, torch::Tensor> data = reference_data("multihead_attention");
  struct Case {
    std::string name;
    Backend backend;  // ATen if its kernels can run the case
    MultiheadAttentionOptions options = options_of();
    bool is_causal = false, has_attn_mask = true;

    static MultiheadAttentionOptions options_of() { return MultiheadAttentionOptions(12, 4); }
  };
  constexpr Backend kSdpa = Backend::kSdpa, kCpu = Backend::kCpu;
  const auto options = [] { return Case::options_of(); };
  const MultiheadAttentionOptions everything = options()
                                                   .batch_first(true)
                                                   .kdim(6)
                                                   .vdim(9)
                                                   .num_kv_heads(2)
                                                   .head_dim(5)
                                                   .scale(0.3)
                                                   .add_bias_kv(true)
                                                   .add_zero_attn(true)
                                                   .is_causal(true)
                                                   .window({3, 2});
  const Case cases[] = {
      {"plain", kSdpa},
      {"self", kSdpa},
      {"memory", kSdpa},
      {"batch_first", kSdpa, options().batch_first(true)},
      {"unbatched", kSdpa},
      {"unbatched_self", kSdpa},
      {"kdim_vdim", kSdpa, options().kdim(6).vdim(9)},
      {"vdim", kSdpa, options().vdim(9)},
      {"no_bias", kSdpa, options().bias(false)},
      {"dropout", kSdpa, options().dropout(0.5)},
      {"bool_mask", kSdpa},
      {"bool_mask_per_head", kSdpa},
      {"float_mask", kSdpa},
      {"float_mask_per_head", kSdpa},
      {"learned_masks", kCpu},
      {"padding", kSdpa},
      {"float_padding", kSdpa},
      {"bool_masks", kSdpa},
      {"bool_masks_per_head", kSdpa},
      {"float_masks", kSdpa},
      {"float_mask_and_padding", kSdpa},
      {"unbatched_masks", kSdpa},
      {"unbatched_shared_mask", kSdpa, options().batch_first(true)},
      {"added_keys", kSdpa, options().add_bias_kv(true).add_zero_attn(true)},
      {"bias_kv_bool_masks", kSdpa, options().add_bias_kv(true)},
      {"zero_attn_float_masks", kSdpa, options().add_zero_attn(true)},
      {"causal", kSdpa, options().is_causal(true)},
      // The argument is_causal needs no mask, does not change a causal mask, and has the effect of the option.
      {"causal", kSdpa, options(), /*is_causal=*/true},
      {"causal_hint", kSdpa, options(), true, /*has_attn_mask=*/true},
      {"causal_hint", kSdpa, options(), true, false},
      {"causal_hint", kSdpa, options().is_causal(true), false, false},
      {"causal_hint_float", kSdpa, options().batch_first(true), true, true},
      {"causal_hint_float", kSdpa, options().batch_first(true), true, false},
      {"causal_hint_padding", kSdpa, options(), true, true},
      {"causal_hint_padding", kSdpa, options(), true, false},

      {"longer_keys_causal", kSdpa, options().is_causal(true)},
      {"longer_keys_causal", kSdpa, options(), /*is_causal=*/true},
      {"causal_padding", kSdpa, options().is_causal(true)},
      {"causal_masks_padding", kSdpa, options().is_causal(true)},
      {"window", kCpu, options().window({2, 1})},
      {"causal_window", kCpu, options().is_causal(true).window({2, 4})},
      {"window_float_mask", kCpu, options().window({2, 1})},
      {"causal_added_keys", kSdpa, options().is_causal(true).add_bias_kv(true).add_zero_attn(true)},
      {"causal_added_keys", kSdpa, options().add_bias_kv(true).add_zero_attn(true), /*is_causal=*/true},
      {"window_bias_kv", kSdpa, options().window({1, 0}).add_bias_kv(true)},
      {"grouped", kSdpa, options().num_kv_heads(2)},
      {"grouped_self", kSdpa, options().num_kv_heads(2).batch_first(true)},
      {"grouped_memory", kSdpa, options().num_kv_heads(1).add_bias_kv(true)},
      {"wide_heads", kSdpa, options().head_dim(5)},
      {"narrow_heads", kSdpa, MultiheadAttentionOptions(12, 2).head_dim(3)},
      {"scaled", kSdpa, options().scale(0.3)},
      {"everything", kSdpa, everything},
      {"everything_unbatched", kSdpa, everything},
  };
  for (const Case& c : cases) {
    for (const Backend backend : {c.backend, Backend::kReference, Backend::kCpu}) {
      CAPTURE(c.name);
      CAPTURE(c.is_causal);
      CAPTURE(c.has_attn_mask);
      CAPTURE(backend);
      const std::string prefix = c.name + "/";
      MultiheadAttention layer(MultiheadAttentionOptions(c.options).backend(backend));
      layer->to(torch::kDouble);
      layer->eval();
      copy_parameters(data, prefix, *layer);

      std::map<std::string, torch::Tensor> leaves;  // tensors with a gradient, by name
      const auto tensor = [&](const std::string& name, const torch::Tensor& otherwise) {
        if (data.count(prefix + name) == 0) return otherwise;
        torch::Tensor copy = data.at(prefix + name).clone();
        if (data.count(prefix + name + "_gradient") == 1) leaves[name] = copy.requires_grad_();
        return copy;
      };
      Call call;
      call.query = tensor("query", {});
      call.key = tensor("key", call.query);
      call.value = tensor("value", call.key);
      call.key_padding_mask = tensor("key_padding_mask", {});
      if (c.has_attn_mask) call.attn_mask = tensor("attn_mask", {});
      call.is_causal = c.is_causal;

      const torch::Tensor averaged = weights_of(call.run(layer));
      call.need_weights = false;
      const Results without_weights = call.run(layer);
      call.need_weights = true;
      call.average_attn_weights = false;
      const Results results = call.run(layer);
      CHECK(max_difference(output_of(results), data.at(prefix + "output")) < 1e-12);
      CHECK(max_difference(output_of(without_weights), data.at(prefix + "output")) < 1e-12);
      CHECK_FALSE(weights_of(without_weights).defined());
      CHECK(max_difference(weights_of(results), data.at(prefix + "weights")) < 1e-12);
      CHECK(max_difference(averaged, data.at(prefix + "weights").mean(-3)) < 1e-12);

      torch::autograd::backward({output_of(results), weights_of(results)},
                                {data.at(prefix + "output_gradient"), data.at(prefix + "weights_gradient")});
      check_gradients(data, prefix, *layer);
      for (const auto& leaf : leaves) {
        CAPTURE(leaf.first);
        check_equal_in_float64(leaf.second.grad(), data.at(prefix + leaf.first + "_gradient"));
      }
    }
  }
}

TEST_CASE("MultiheadAttention: a state dict saved in Python has the same names and shapes and gives Python's outputs") {
  const std::map<std::string, torch::Tensor> data = reference_data("multihead_attention");
  const std::pair<std::string, MultiheadAttentionOptions> cases[] = {
      {"plain", MultiheadAttentionOptions(12, 4)},
      {"all", MultiheadAttentionOptions(12, 4).kdim(6).vdim(9).add_bias_kv(true).add_zero_attn(true)},
      {"no_bias", MultiheadAttentionOptions(12, 4).bias(false)},
  };
  for (const auto& c : cases) {
    CAPTURE(c.first);
    const std::map<std::string, torch::Tensor> state = reference_data("multihead_attention_" + c.first);
    MultiheadAttention layer(c.second);
    layer->to(torch::kDouble);
    CHECK(state.size() == layer->named_parameters().size() + layer->named_buffers().size());
    copy_parameters(state, "", *layer);
    const auto tensor = [&](const std::string& name) { return data.at("state_" + c.first + "/" + name); };
    CHECK(max_difference(output_of(layer(tensor("query"), tensor("key"), tensor("value"))), tensor("output")) < 1e-12);
  }
}

}  // namespace multihead_attention_as_torch_test
