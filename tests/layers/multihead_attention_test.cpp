// SPDX-License-Identifier: MIT
#include <attend/layers/multihead_attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/errors.h"
#include "support/layers.h"
#include "support/operator_log.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using attend::Backend;
using attend::MultiheadAttention;
using attend::MultiheadAttentionOptions;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::check_gradients;
using attend::test::copy_parameters;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::OperatorLog;
using attend::test::reference_data;

namespace {

using Results = std::tuple<torch::Tensor, torch::Tensor>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const torch::Tensor& output_of(const Results& results) { return std::get<0>(results); }
const torch::Tensor& weights_of(const Results& results) { return std::get<1>(results); }

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

/// Randomizes torch's parameters and copies them into `ours`.
void share_parameters(torch::nn::MultiheadAttention& torchs, MultiheadAttention& ours) {
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> parameters;
  for (auto& parameter : torchs->named_parameters()) {
    parameter->normal_();
    parameters[parameter.key()] = parameter.value();
  }
  copy_parameters(parameters, "", *ours);
}

/// A call that either module can run.
struct Call {
  torch::Tensor query, key, value;
  torch::Tensor key_padding_mask = {}, attn_mask = {};
  bool need_weights = true, average_attn_weights = true;
  bool is_causal = false;  // the argument, which only attend's module has

  template <class Module>
  Results run(Module& module) const {
    if constexpr (std::is_same_v<Module, MultiheadAttention>)
      return module->forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                             is_causal);
    else
      return module->forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights);
  }

  /// The same call with its own leaves. Arguments that were one tensor stay one tensor.
  Call with_leaves() const {
    Call call = *this;
    call.query = query.detach().clone().requires_grad_();
    call.key = key.is_same(query) ? call.query : key.detach().clone().requires_grad_();
    call.value = value.is_same(key) ? call.key : value.detach().clone().requires_grad_();
    if (attn_mask.defined() && attn_mask.is_floating_point()) call.attn_mask = attn_mask.clone().requires_grad_();
    return call;
  }

  std::vector<torch::Tensor> gradients() const {
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& tensor : {query, key, value, attn_mask})
      if (tensor.defined() && tensor.requires_grad()) gradients.push_back(tensor.grad());
    return gradients;
  }
};

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

/// A weighted sum of all results of a call, with the same weights for the same sizes.
torch::Tensor weighted_sum(const Results& results) {
  const auto weighted = [](const torch::Tensor& tensor) {
    return (tensor * torch::arange(1, tensor.numel() + 1, tensor.options()).view_as(tensor).cos()).sum();
  };
  const torch::Tensor sum = weighted(output_of(results));
  return weights_of(results).defined() ? sum + weighted(weights_of(results)) : sum;
}

/// A padding mask (N, S), true = ignore. Batch entry n ignores its last 2n keys.
torch::Tensor padding(std::int64_t batch, std::int64_t keys) {
  return torch::arange(keys).unsqueeze(0) >= (keys - 2 * torch::arange(batch)).unsqueeze(1);
}

/// The mask as a float mask: −∞ where it is true.
torch::Tensor added(const torch::Tensor& ignored, torch::Dtype dtype) {
  return torch::zeros(ignored.sizes(), dtype).masked_fill(ignored, -kInfinity);
}

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

// ---- Masks ----------------------------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: a query that may attend to nothing gives the output bias, zero weights and gradients") {
  torch::manual_seed(8);
  // In each case the queries of batch entry 1 may attend to nothing.
  struct Case {
    std::string name;
    MultiheadAttentionOptions options;
    std::function<void(Call&)> forbid;
  };
  const auto options = [] { return MultiheadAttentionOptions(12, 3); };
  const Case cases[] = {
      {"padding", options(), [](Call& call) { call.key_padding_mask[1] = true; }},
      {"float padding", options(),
       [](Call& call) {
         call.key_padding_mask[1] = true;
         call.key_padding_mask = added(call.key_padding_mask, call.query.scalar_type());
       }},
      {"bool mask for each head", options(),
       [](Call& call) {
         call.attn_mask = torch::zeros({6, 5, 7}, torch::kBool);
         call.attn_mask.slice(0, 3) = true;  // the heads of batch entry 1
       }},
      {"float mask for each head", options(),
       [](Call& call) {
         call.attn_mask = torch::zeros({6, 5, 7}, call.query.scalar_type());
         call.attn_mask.slice(0, 3) = -kInfinity;
       }},
      {"padding and mask together", options(),
       [](Call& call) {
         call.key_padding_mask[1].slice(0, 3) = true;
         call.attn_mask = (torch::arange(7) < 3).expand({5, 7});
         call.attn_mask = torch::stack({torch::zeros({5, 7}, torch::kBool), call.attn_mask}).repeat_interleave(3, 0);
       }},
      {"padding, causal, grouped, wide heads", options().num_kv_heads(1).is_causal(true).head_dim(8),
       [](Call& call) { call.key_padding_mask[1] = true; }},
  };
  for (const Case& c : cases) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      for (const Backend backend : {Backend::kAuto, Backend::kReference, Backend::kCpu, Backend::kSdpa}) {
        CAPTURE(c.name);
        CAPTURE(dtype);
        CAPTURE(backend);
        MultiheadAttention layer(MultiheadAttentionOptions(c.options).backend(backend));
        layer->to(dtype);
        {
          const torch::NoGradGuard no_grad;
          layer->in_proj_bias.normal_();
          layer->out_proj->bias.normal_();
        }
        const auto tensor = [&](std::int64_t length) { return torch::randn({length, 2, 12}).to(dtype); };
        Call call{tensor(5), tensor(7), tensor(7)};
        call.key_padding_mask = torch::zeros({2, 7}, torch::kBool);
        call.average_attn_weights = false;
        c.forbid(call);
        const bool learned = call.attn_mask.defined() && call.attn_mask.is_floating_point();
        const bool is_for_sdpa = !learned && !c.options.is_causal();  // no gradient for a mask, no causal with L ≠ S
        if (backend == Backend::kSdpa && !is_for_sdpa) continue;
        call = call.with_leaves();
        const Results results = call.run(layer);
        CHECK(output_of(results).select(1, 1).equal(layer->out_proj->bias.expand({5, 12})));
        CHECK(weights_of(results)[1].eq(0).all().item<bool>());
        CHECK((weights_of(results)[0].sum(-1) - 1).abs().max().item<double>() < 0.02);

        // The gradients are those of a call without that batch entry.
        (output_of(results).pow(2).sum() + weights_of(results).pow(2).sum()).backward();
        for (const torch::Tensor& leaf : {call.query, call.key, call.value})
          CHECK(leaf.grad().select(1, 1).eq(0).all().item<bool>());
        if (learned) CHECK(call.attn_mask.grad().slice(0, 3).eq(0).all().item<bool>());
        const std::vector<torch::Tensor> parameters{layer->in_proj_weight, layer->in_proj_bias,
                                                    layer->out_proj->weight};
        std::vector<torch::Tensor> gradients;
        for (const torch::Tensor& parameter : parameters) gradients.push_back(parameter.grad().clone());
        layer->zero_grad();
        const auto first = [](const torch::Tensor& x, int dimension, std::int64_t count) {
          return x.defined() ? x.detach().narrow(dimension, 0, count) : x;
        };
        Call alone{first(call.query, 1, 1), first(call.key, 1, 1), first(call.value, 1, 1),
                   first(call.key_padding_mask, 0, 1), first(call.attn_mask, 0, 3)};
        alone.average_attn_weights = false;
        const Results alone_results = alone.run(layer);
        (output_of(alone_results).pow(2).sum() + weights_of(alone_results).pow(2).sum()).backward();
        const double tolerance = dtype == torch::kDouble ? 1e-12 : dtype == torch::kFloat ? 1e-4 : 2e-2;
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          const torch::Tensor expected = parameters[i].grad();
          CHECK(max_difference(gradients[i], expected) <= tolerance * expected.abs().max().item<double>());
        }
      }
    }
  }
}

TEST_CASE("MultiheadAttention: queries without keys give the output projection's bias, also with is_causal") {
  MultiheadAttention layer(MultiheadAttentionOptions(12, 3).is_causal(true));
  {
    const torch::NoGradGuard no_grad;
    layer->out_proj->bias.normal_();
  }
  const torch::Tensor query = torch::randn({5, 2, 12});
  const auto is_bias = [&](const torch::Tensor& y) { return y.equal(layer->out_proj->bias.expand_as(y)); };
  CHECK(is_bias(output_of(layer(query, torch::randn({0, 2, 12}), torch::randn({0, 2, 12})))));
  const torch::Tensor few = torch::randn({3, 2, 12});
  const Results results = layer(query, few, few);
  CHECK(is_bias(output_of(results).slice(0, 0, 2)));  // query 2 is aligned with the first key
  CHECK(weights_of(results).sum(-1).sub(torch::tensor({0, 0, 1, 1, 1})).abs().max().item<double>() < 1e-6);
  CHECK(output_of(layer(torch::randn({0, 2, 12}), few, few)).sizes() == torch::IntArrayRef{0, 2, 12});
  CHECK(weights_of(layer(torch::randn({5, 0, 12}), few.slice(1, 0, 0), few.slice(1, 0, 0))).sizes() ==
        torch::IntArrayRef{0, 5, 3});
}

TEST_CASE("MultiheadAttention: uint8 masks act like bool masks, and float masks of any dtype are added") {
  MultiheadAttention layer(12, 3);
  layer->to(torch::kDouble);
  const torch::Tensor x = normal({7, 2, 12});
  const torch::Tensor ignored = padding(2, 7);
  for (const torch::Tensor& mask : {torch::ones({7, 7}, torch::kBool).triu(1), (torch::rand({6, 7, 7}) < 0.4)}) {
    const Results expected = Call{x, x, x, ignored, mask}.run(layer);
    const torch::Tensor two = mask.to(torch::kByte) * 2;  // every value except 0 is true
    CHECK(output_of(Call{x, x, x, ignored.to(torch::kByte), two}.run(layer)).equal(output_of(expected)));
    CHECK(weights_of(Call{x, x, x, ignored.to(torch::kByte), two}.run(layer)).equal(weights_of(expected)));
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      CAPTURE(dtype);
      const Results results = Call{x, x, x, added(ignored, dtype), added(mask, dtype)}.run(layer);
      CHECK(max_difference(output_of(results), output_of(expected)) < 1e-12);
    }
  }
}

TEST_CASE("key_padding_mask: in bfloat16, float16 and under autocast as accurate as the dense formula") {
  torch::manual_seed(9);
  // Torch's module accepts no padding there. For one batch entry at a time, a float mask has the same effect.
  const auto torchs_output = [](torch::nn::MultiheadAttention& torchs, const torch::Tensor& x,
                                const torch::Tensor& ignored, const torch::Tensor& mask) {
    std::vector<torch::Tensor> outputs;
    for (std::int64_t n = 0; n < x.size(1); ++n) {
      const torch::Tensor one = x.narrow(1, n, 1);
      const torch::Tensor sum = mask.masked_fill(ignored[n].unsqueeze(0), -kInfinity).to(x.scalar_type());
      outputs.push_back(output_of(torchs->forward(one, one, one, {}, /*need_weights=*/false, sum)));
    }
    return torch::cat(outputs, 1);
  };
  struct Case {
    torch::Dtype dtype;
    bool is_autocast;
  };
  for (const Case& c : {Case{torch::kBFloat16, false}, Case{torch::kHalf, false}, Case{torch::kBFloat16, true}}) {
    for (const bool is_float : {false, true}) {
      CAPTURE(c.dtype);
      CAPTURE(c.is_autocast);
      CAPTURE(is_float);
      const torch::Dtype weight_dtype = c.is_autocast ? torch::kFloat : c.dtype;
      torch::nn::MultiheadAttention torchs(16, 2);
      MultiheadAttention ours(16, 2);
      torchs->to(weight_dtype);
      ours->to(weight_dtype);
      share_parameters(torchs, ours);
      const auto leaf = [](const torch::Tensor& tensor) { return tensor.detach().clone().requires_grad_(); };
      torch::Tensor plain_x = leaf(torch::randn({33, 3, 16}).to(weight_dtype)), x = leaf(plain_x);
      const torch::Tensor ignored = padding(3, 33), mask = torch::randn({33, 33}).to(c.dtype).to(torch::kFloat);
      const torch::Tensor given = is_float ? added(ignored, torch::kFloat) : ignored;
      torch::Tensor plain, output, weights;
      {
        std::optional<attend::test::Autocast> autocast;
        if (c.is_autocast) autocast.emplace();
        plain = torchs_output(torchs, plain_x, ignored, mask);
        std::tie(output, weights) = ours(x, x, x, given, true, mask);
      }
      CHECK((output.scalar_type() == c.dtype));
      CHECK(weights.masked_select(ignored.unsqueeze(1)).eq(0).all().item<bool>());
      CHECK((weights.sum(-1) - 1).abs().max().item<double>() < 0.02);

      torchs->to(torch::kDouble);
      torch::Tensor exact_x = leaf(x.to(torch::kDouble));
      const torch::Tensor exact = torchs_output(torchs, exact_x, ignored, mask);
      check_as_accurate_as(plain, output, exact);
      const torch::Tensor gradient = torch::randn({33, 3, 16}).to(c.dtype);
      plain.backward(gradient);
      output.backward(gradient);
      exact.backward(gradient.to(torch::kDouble));
      check_as_accurate_as(plain_x.grad(), x.grad(), exact_x.grad());
    }
  }
}

// ---- Weights, dropout, gradients ------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: need_weights does not change the output, which still comes from the fused kernel") {
  MultiheadAttention layer(MultiheadAttentionOptions(64, 4).batch_first(true));
  const torch::Tensor x = torch::randn({2, 100, 64}), ignored = padding(2, 100);
  const auto output = [&](bool need_weights) { return output_of(layer(x, x, x, ignored, need_weights)); };
  for (const Backend backend : {Backend::kAuto, Backend::kCpu, Backend::kSdpa}) {
    CAPTURE(backend);
    const attend::BackendGuard guard(backend);
    const torch::Tensor without = output(false);
    const Backend taken = layer->explain(x, x, x, ignored).backend;
    {
      const OperatorLog log;
      CHECK(output(true).equal(without));
      CHECK(log.count("aten::_scaled_dot_product_flash_attention_for_cpu") == (taken == Backend::kSdpa ? 1 : 0));
    }
    // The other backends round differently, so that equality to the bit is significant.
    for (const Backend other : {Backend::kReference, Backend::kCpu, Backend::kSdpa}) {
      CAPTURE(other);
      const attend::BackendGuard other_guard(other);
      CHECK(output(false).equal(without) == (other == taken));
    }
  }
}

TEST_CASE("MultiheadAttention: explain() names the backend of a call; a requested backend throws with the reason") {
  const torch::Tensor x = torch::randn({4, 2, 12}, torch::kDouble);
  const torch::Tensor learned = torch::zeros({4, 4}, torch::kDouble).requires_grad_();
  MultiheadAttention layer(MultiheadAttentionOptions(12, 3).dropout(0.1));
  layer->to(torch::kDouble);
  attend::Explanation explanation = layer->explain(x, x, x);
  CHECK(explanation.backend == Backend::kCpu);
  CHECK(explanation.why_not_faster == "");
  layer->eval();
  explanation = layer->explain(x, x, x);
  CHECK(explanation.backend == Backend::kSdpa);
  CHECK(explanation.why_not_faster == "kCpu can run, but kSdpa is faster for so few queries (L = 4).");
  CHECK(explanation.copies == "");
  explanation = layer->explain(x, x, x, {}, /*need_weights=*/false, learned);
  CHECK(explanation.backend == Backend::kCpu);
  CHECK(explanation.why_not_faster == "");

  const auto check_refused = [&](MultiheadAttention named, const torch::Tensor& mask, const std::string& reason) {
    CAPTURE(reason);
    named->to(torch::kDouble);
    CHECK(message_of<c10::NotImplementedError>([&] { named->explain(x, x, x, {}, false, mask); }).find(reason) !=
          std::string::npos);
    CHECK(message_of<c10::NotImplementedError>([&] {
            named(x, x, x, torch::Tensor(), /*need_weights=*/false, mask);
          }).find(reason) != std::string::npos);
  };
  const auto named = [] { return MultiheadAttentionOptions(12, 3).backend(Backend::kSdpa); };
  check_refused(MultiheadAttention(named().window({1, 1})), {}, "window");
  check_refused(MultiheadAttention(named().dropout(0.1)), {}, "dropout");
  check_refused(MultiheadAttention(named()), learned, "no gradient for attn_mask");
}

TEST_CASE("MultiheadAttention: explain() names the backend that forward() uses, in the words of attention()") {
  torch::manual_seed(12);
  struct Options {
    std::string name;
    MultiheadAttentionOptions value;
  };
  const auto options = [] { return MultiheadAttentionOptions(12, 6).batch_first(true); };
  const Options all_options[] = {
      {"default", options()},
      {"grouped", options().num_kv_heads(2)},
      {"wide heads", options().head_dim(8)},
      {"widths", options().kdim(12).vdim(7)},
      {"no bias", options().bias(false)},
      {"added keys", options().add_bias_kv(true).add_zero_attn(true)},
      {"causal", options().is_causal(true)},
      {"window", options().window({2, 1})},
      {"dropout", options().dropout(0.5)},
  };
  /// The call of attention() by forward(), from the definition of the layer.
  const auto by_hand = [](const MultiheadAttention& layer, const Call& call) {
    const auto& given = layer->options;
    const std::int64_t width = given.num_heads() * layer->head_dim,
                       kv_width = given.num_kv_heads().value_or(given.num_heads()) * layer->head_dim;
    const bool is_one = layer->in_proj_weight.defined();
    const std::vector<torch::Tensor> weights =
        is_one ? layer->in_proj_weight.split_with_sizes({width, kv_width, kv_width})
               : std::vector{layer->q_proj_weight, layer->k_proj_weight, layer->v_proj_weight};
    const std::vector<torch::Tensor> biases = given.bias()
                                                  ? layer->in_proj_bias.split_with_sizes({width, kv_width, kv_width})
                                                  : std::vector<torch::Tensor>(3);
    const auto heads = [&](const torch::Tensor& x, std::size_t i) {
      return torch::linear(x, weights[i], biases[i]).unflatten(2, {-1, layer->head_dim}).transpose(1, 2);
    };
    torch::Tensor query = heads(call.query, 0), key = heads(call.key, 1), value = heads(call.value, 2);
    const std::int64_t added_keys = given.add_bias_kv() ? 2 : 0;
    if (added_keys > 0) {
      key = torch::cat({key, torch::zeros({key.size(0), key.size(1), 2, key.size(3)}, key.options())}, 2);
      value = torch::cat({value, torch::zeros({key.size(0), key.size(1), 2, key.size(3)}, key.options())}, 2);
    }
    attend::AttentionOptions result;
    result.backend(given.backend()).dropout(given.dropout());
    if (added_keys == 0) result.window(given.window()).is_causal(given.is_causal() || call.is_causal);
    torch::Tensor mask;
    if (call.key_padding_mask.defined()) mask = call.key_padding_mask.logical_not().unsqueeze(1).unsqueeze(1);
    if (call.attn_mask.defined())
      mask = mask.defined() ? torch::where(mask, call.attn_mask.to(query.dtype()), -kInfinity)
                            : call.attn_mask.to(query.dtype()).unsqueeze(0).unsqueeze(0);
    if (mask.defined() && added_keys > 0) mask = torch::constant_pad_nd(mask, {0, added_keys}, 1);
    if (mask.defined()) result.attn_mask(mask);
    return attend::explain(query, key, value, result);
  };
  const auto text = [](const attend::Explanation& explanation) {
    std::ostringstream stream;
    stream << explanation;
    return stream.str();
  };
  std::map<Backend, int> seen;
  for (const Options& each : all_options) {
    for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
      for (const bool is_autocast : {false, true}) {
        for (const bool has_gradients : {false, true}) {
          for (const Backend backend : {Backend::kAuto, Backend::kReference, Backend::kCpu}) {
            for (const std::int64_t length : {1, 40}) {
              CAPTURE(each.name);
              CAPTURE(dtype);
              CAPTURE(is_autocast);
              CAPTURE(has_gradients);
              CAPTURE(backend);
              CAPTURE(length);
              MultiheadAttention layer(MultiheadAttentionOptions(each.value).backend(backend));
              layer->to(dtype);
              const torch::Tensor query = torch::randn({2, length, 12}, dtype), key = torch::randn({2, 40, 12}, dtype),
                                  value = torch::randn({2, 40, each.value.vdim()}, dtype);
              const torch::Tensor learned = torch::randn({length, 40}, dtype).requires_grad_();
              const c10::AutoGradMode mode(has_gradients);
              std::optional<attend::test::Autocast> autocast;
              if (is_autocast) autocast.emplace();
              for (const Call& call :
                   {Call{query, key, value}, Call{query, key, value, padding(2, 40)},
                    Call{query, key, value, padding(2, 40), learned}, Call{query, key, value, {}, learned.detach()}}) {
                const attend::Explanation plan =
                    layer->explain(call.query, call.key, call.value, call.key_padding_mask, false, call.attn_mask);
                CHECK(text(plan) == text(by_hand(layer, call)));
                const OperatorLog log;
                layer->forward(call.query, call.key, call.value, call.key_padding_mask, /*need_weights=*/false,
                               call.attn_mask);
                CHECK(log.count("aten::_scaled_dot_product_flash_attention_for_cpu") ==
                      (plan.backend == Backend::kSdpa ? 1 : 0));
                CHECK(log.count("aten::_safe_softmax") == (plan.backend == Backend::kReference ? 1 : 0));
                ++seen[plan.backend];
              }
            }
          }
        }
      }
    }
  }
  for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kSdpa}) CHECK(seen[backend] > 50);
}

TEST_CASE("MultiheadAttention: forward(is_causal) needs no (L, S) mask and uses the backend of explain(is_causal)") {
  MultiheadAttention layer(MultiheadAttentionOptions(16, 2).batch_first(true));
  const torch::Tensor x = torch::randn({2, 30, 16});
  const torch::Tensor later = torch::ones({30, 30}, torch::kBool).triu(1);
  const Results causal = layer(x, x, x, torch::Tensor(), true, torch::Tensor(), true, /*is_causal=*/true);
  const Results masked = layer(x, x, x, torch::Tensor(), true, later);
  CHECK(max_difference(output_of(causal), output_of(masked)) < 1e-6);
  CHECK(max_difference(weights_of(causal), weights_of(masked)) < 1e-6);
  CHECK(weights_of(causal).masked_select(later).eq(0).all().item<bool>());
  const attend::BackendGuard guard(Backend::kSdpa);
  CHECK(layer->explain(x, x, x, {}, false, later).copies == "It converts the bool attn_mask to a float mask.");
  CHECK(layer->explain(x, x, x, {}, false, {}, true, /*is_causal=*/true).copies == "");
  CHECK(message_of<c10::NotImplementedError>([&] {
          layer->explain(x, x.slice(1, 0, 20), x.slice(1, 0, 20), {}, false, {}, true, /*is_causal=*/true);
        }).find("is_causal for L = 30 and S = 20") != std::string::npos);
}

TEST_CASE("MultiheadAttention: dropout only in training mode, new in each call; weights are before dropout") {
  torch::manual_seed(10);
  MultiheadAttention layer(MultiheadAttentionOptions(12, 3).dropout(0.4));
  const torch::Tensor x = torch::randn({6, 2, 12});
  layer->eval();
  const Results expected = layer(x, x, x);
  CHECK(output_of(layer(x, x, x)).equal(output_of(expected)));

  layer->train();
  const Results first = layer(x, x, x);
  CHECK_FALSE(output_of(first).equal(output_of(layer(x, x, x))));
  CHECK(max_difference(weights_of(first), weights_of(expected)) < 1e-6);
  torch::manual_seed(11);
  const torch::Tensor seeded = output_of(layer(x, x, x));
  torch::manual_seed(11);
  CHECK(output_of(layer(x, x, x)).equal(seeded));

  constexpr int kCopies = 2000;  // with independent dropout
  const torch::NoGradGuard no_grad;
  const torch::Tensor copies = x.narrow(1, 0, 1).repeat({1, kCopies, 1});
  const torch::Tensor outputs = output_of(layer->forward(copies, copies, copies, {}, /*need_weights=*/false));
  const torch::Tensor standard_error = outputs.std(1) / std::sqrt(kCopies);
  const torch::Tensor difference = outputs.mean(1) - output_of(expected).select(1, 0);
  CHECK((difference.abs() / standard_error).max().item<double>() < 5);
}

TEST_CASE("MultiheadAttention: dropout of 1 gives the bias of the output projection") {
  MultiheadAttention layer(MultiheadAttentionOptions(12, 3).dropout(1.0));
  torch::nn::init::normal_(layer->out_proj->bias);
  const torch::Tensor x = torch::randn({6, 2, 12});
  CHECK(output_of(layer(x, x, x)).equal(layer->out_proj->bias.expand({6, 2, 12})));
}

TEST_CASE("MultiheadAttention: self-attention is detected by tensor handles, not by comparing contents") {
  torch::nn::MultiheadAttention torchs(12, 3);
  MultiheadAttention ours(12, 3);
  torchs->to(torch::kDouble);
  ours->to(torch::kDouble);
  share_parameters(torchs, ours);
  const torch::Tensor x = normal({5, 2, 12}), same = x.clone(), same_again = x.clone();
  const Results expected = torchs(x, x, x);
  struct Case {
    Call call;
    int more_projections;  // more than self-attention needs
  };
  std::ptrdiff_t projections_of_self = 0;
  for (const Case& c :
       {Case{{x, x, x}, 0}, Case{{x, same, same}, 1}, Case{{x, x, same}, 2}, Case{{x, same, same_again}, 2}}) {
    CAPTURE(c.more_projections);
    {
      const OperatorLog log;
      c.call.run(torchs);
      CHECK(log.count("aten::equal") > 0);  // the log records it
    }
    const OperatorLog log;
    const Results results = c.call.run(ours);
    const std::ptrdiff_t projections = log.count("aten::linear");
    if (c.more_projections == 0) projections_of_self = projections;
    CHECK(projections == projections_of_self + c.more_projections);
    CHECK(log.count("aten::equal") == 0);
    CHECK(log.count("aten::item") + log.count("aten::_local_scalar_dense") + log.count("aten::is_nonzero") == 0);
    CHECK(max_difference(output_of(results), output_of(expected)) < 1e-12);
    CHECK(max_difference(weights_of(results), weights_of(expected)) < 1e-12);
  }
}

TEST_CASE("MultiheadAttention: second derivatives of output and weights equal those of torch's C++ module") {
  torch::manual_seed(12);
  torch::nn::MultiheadAttention torchs(12, 3);
  MultiheadAttention ours(12, 3);
  torchs->to(torch::kDouble);
  ours->to(torch::kDouble);
  share_parameters(torchs, ours);
  const torch::Tensor query = normal({5, 2, 12}), key = normal({7, 2, 12}), ignored = padding(2, 7);
  const torch::Tensor direction = normal({5, 2, 12});
  const auto second = [&](auto& module, const Call& given) {
    const Call call = given.with_leaves();
    const torch::Tensor gradient =
        torch::autograd::grad({weighted_sum(call.run(module))}, {call.query}, {}, true, /*create_graph=*/true)[0];
    std::vector<torch::Tensor> inputs{call.query, module->in_proj_weight, module->in_proj_bias};
    if (!call.key.is_same(call.query)) inputs.push_back(call.key);
    return torch::autograd::grad({(gradient * direction).sum()}, inputs);
  };
  for (const bool need_weights : {false, true}) {
    for (const Call& shape : {Call{query, key, key, ignored}, Call{query, query, query}}) {
      CAPTURE(need_weights);
      Call call = shape;
      call.need_weights = need_weights;
      CHECK(ours->explain(call.query, call.key, call.value, call.key_padding_mask).backend != Backend::kReference);
      const auto expected = second(torchs, call), ours_second = second(ours, call);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        CHECK(expected[i].abs().max().item<double>() > 1e-3);
        CHECK(max_difference(ours_second[i], expected[i]) < 1e-12 * expected[i].abs().max().item<double>() + 1e-12);
      }
    }
  }
}

TEST_CASE("MultiheadAttention: with head_dim, num_heads need not divide embed_dim; inputs of any strides") {
  MultiheadAttention layer(MultiheadAttentionOptions(10, 4).head_dim(3).num_kv_heads(2).batch_first(true));
  layer->to(torch::kDouble);
  const torch::Tensor x = normal({10, 2, 7}).permute({1, 2, 0});  // (2, 7, 10)
  const Results results = layer(x, x, x);
  CHECK(output_of(results).sizes() == torch::IntArrayRef{2, 7, 10});
  const torch::Tensor copy = x.contiguous();
  CHECK(max_difference(output_of(layer(copy, copy, copy)), output_of(results)) < 1e-12);
  CHECK(max_difference(output_of(layer(copy[1], copy[1], copy[1])), output_of(results)[1]) < 1e-12);
}

TEST_CASE("MultiheadAttention: every parameter gets a gradient; reset_parameters() draws as the constructor does") {
  const auto options = [] { return MultiheadAttentionOptions(12, 4); };
  for (const MultiheadAttentionOptions& given :
       {options(), options().kdim(5).vdim(9).add_bias_kv(true).add_zero_attn(true).num_kv_heads(2).head_dim(5)}) {
    torch::manual_seed(13);
    MultiheadAttention layer(given);
    const auto tensor = [](std::int64_t length, std::int64_t width) { return torch::randn({length, 2, width}); };
    weighted_sum(layer(tensor(5, 12), tensor(7, given.kdim()), tensor(7, given.vdim()))).backward();
    std::map<std::string, torch::Tensor> initial;
    for (auto& parameter : layer->named_parameters()) {
      CAPTURE(parameter.key());
      REQUIRE(parameter->grad().defined());
      CHECK(parameter->grad().abs().sum().item<double>() > 0);
      initial[parameter.key()] = parameter->detach().clone();
      torch::nn::init::normal_(parameter.value());
    }
    layer->reset_parameters();
    for (const auto& parameter : layer->named_parameters()) {
      CAPTURE(parameter.key());
      const torch::Tensor& before = initial.at(parameter.key());
      const bool is_zero = before.eq(0).all().item<bool>();  // in_proj_bias is initialized with zeros
      CHECK(parameter->eq(0).all().item<bool>() == is_zero);
      // The new values have the same distribution and differ from the old ones.
      if (!is_zero) CHECK_FALSE(parameter->equal(before));
      CHECK(parameter->abs().mean().item<double>() ==
            doctest::Approx(before.abs().mean().item<double>()).epsilon(before.numel() < 60 ? 0.6 : 0.2));
    }
  }
}

TEST_CASE("MultiheadAttention: a layer prints its options, with the defaults and with all of them set") {
  const auto printed = [](const MultiheadAttentionOptions& options) {
    std::ostringstream stream;
    MultiheadAttention(options)->pretty_print(stream);
    return stream.str();
  };
  CHECK(printed(MultiheadAttentionOptions(12, 3)) ==
        "attend::MultiheadAttention(12, 3, num_kv_heads=3, head_dim=4, kdim=12, vdim=12, bias=true, dropout=0, "
        "add_bias_kv=false, add_zero_attn=false, batch_first=false, is_causal=false, window=Window{-1, -1}, "
        "scale=kInverseSqrt)");
  CHECK(printed(MultiheadAttentionOptions(12, 4)
                    .bias(false)
                    .dropout(0.1)
                    .add_bias_kv(true)
                    .add_zero_attn(true)
                    .kdim(5)
                    .vdim(9)
                    .batch_first(true)
                    .num_kv_heads(2)
                    .head_dim(8)
                    .is_causal(true)
                    .window({5, 0})
                    .scale(0.5)) ==
        "attend::MultiheadAttention(12, 4, num_kv_heads=2, head_dim=8, kdim=5, vdim=9, bias=false, dropout=0.1, "
        "add_bias_kv=true, add_zero_attn=true, batch_first=true, is_causal=true, window=Window{5, 0}, scale=0.5)");
}

// ---- Bad input ------------------------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: options that contradict each other are refused with the rule and the values") {
  const auto options = [](std::int64_t embed_dim, std::int64_t num_heads) {
    return MultiheadAttentionOptions(embed_dim, num_heads);
  };
  const std::pair<MultiheadAttentionOptions, std::string> cases[] = {
      {options(0, 1), "embed_dim (0) must be at least 1"},
      {options(8, 0), "num_heads (0) must be at least 1"},
      {options(8, 2).kdim(-1), "kdim (-1) must be at least 1"},
      {options(8, 2).vdim(0), "vdim (0) must be at least 1"},
      {options(8, 2).num_kv_heads(0), "num_kv_heads (0) must be at least 1"},
      {options(8, 4).num_kv_heads(3), "num_heads (4) must be divisible by num_kv_heads (3)"},
      {options(8, 2).head_dim(0), "head_dim (0) must be at least 1"},
      {options(10, 4), "embed_dim (10) must be divisible by num_heads (4), or set head_dim"},
      {options(8, 2).dropout(1.5), "dropout (1.5) must be a probability from 0 to 1"},
      {options(8, 2).dropout(std::numeric_limits<double>::quiet_NaN()), "dropout (nan) must be a probability"},
      {options(8, 2).window({-2, 0}),
       "both sides of window must be at least 0, or -1 for unlimited, got Window{-2, 0}"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.second);
    const std::string message = message_of<c10::ValueError>([&] { MultiheadAttention layer(c.first); });
    CAPTURE(message);
    CHECK(message.find("attend::MultiheadAttention: " + c.second) != std::string::npos);
  }
}

TEST_CASE("MultiheadAttention: tensors and masks that do not fit are refused with the rule and the values") {
  const auto x = [](torch::IntArrayRef sizes) { return torch::randn(sizes); };
  const auto ignored = [](torch::IntArrayRef sizes) { return torch::zeros(sizes, torch::kBool); };
  const torch::Tensor query = x({5, 2, 12}), key = x({7, 2, 6}), value = x({7, 2, 9});
  const torch::Tensor one_query = query.select(1, 0), one_key = key.select(1, 0), one_value = value.select(1, 0);
  const auto with_masks = [&](const torch::Tensor& key_padding_mask, const torch::Tensor& attn_mask) {
    return Call{query, key, value, key_padding_mask, attn_mask};
  };
  struct Case {
    Call call;
    std::string expected;
    bool batch_first = false;
  };
  const Case value_errors[] = {
      {{query, {}, value}, "key must be a tensor, got an undefined one"},
      {{x({12}), key, value},
       "query must be 3-d (length, N, width), or 2-d (length, width) without a batch, got 1-d [12]"},
      {{query.transpose(0, 1), key.transpose(0, 1), x({1, 2, 7, 9})},
       "value must be 3-d (N, length, width), or 2-d (length, width) without a batch, got 4-d [1, 2, 7, 9]",
       true},
      {{key, key, value}, "the width of query must be embed_dim (12), got [7, 2, 6]"},
      {{query, value, value}, "the width of key must be kdim (6), got [7, 2, 9]"},
      {{query, key, key}, "the width of value must be vdim (9), got [7, 2, 6]"},
      {{query.to(torch::kMeta), key, value}, "query (meta) must be on the device of the weights (cpu)"},
      {{query, one_key, value}, "key [7, 6] must have as many dimensions as query [5, 2, 12]"},
      {{query, key, x({8, 2, 9})}, "value [8, 2, 9] must have the batch size and length of key [7, 2, 6]"},
      {{query, x({7, 3, 6}), x({7, 3, 9})}, "key [7, 3, 6] must have the batch size of query [5, 2, 12]"},
      {{x({2, 5, 12}), x({3, 5, 6}), x({3, 5, 9})}, "key [3, 5, 6] must have the batch size of query [2, 5, 12]", true},

      {with_masks(ignored({2, 7}).to(torch::kMeta), {}),
       "key_padding_mask (meta) must be on the device of query (cpu)"},
      {with_masks({}, ignored({5, 7}).to(torch::kMeta)), "attn_mask (meta) must be on the device of query (cpu)"},
      {with_masks(ignored({7, 2}), {}), "key_padding_mask must be (N, S) = [2, 7], got [7, 2]"},
      {{one_query, one_key, one_value, ignored({1, 7})}, "key_padding_mask must be (S) = [7], got [1, 7]"},
      {with_masks({}, ignored({2, 5, 7})),
       "attn_mask must be (L, S) = [5, 7], where each size may be 1, or (N·H, L, S) = [6, 5, 7], got [2, 5, 7]"},
      {{one_query, one_key, one_value, {}, ignored({7, 5})},
       "attn_mask must be (L, S) = [5, 7], where each size may be 1, or (H, L, S) = [3, 5, 7], got [7, 5]"},
  };
  const Case type_errors[] = {
      {{query, key, value.to(torch::kDouble)}, "value (Double) must have the dtype of the weights (Float)"},
      {with_masks(torch::zeros({2, 7}, torch::kLong), {}),
       "key_padding_mask must be bool or uint8 (true = ignore) or floating-point (added), got Long"},
      {with_masks({}, torch::zeros({5, 7}, torch::kInt)),
       "attn_mask must be bool or uint8 (true = ignore) or floating-point (added), got Int"},
  };
  const auto check = [](auto type, const Case& c) {
    CAPTURE(c.expected);
    using Error = typename decltype(type)::type;
    MultiheadAttention layer(MultiheadAttentionOptions(12, 3).kdim(6).vdim(9).batch_first(c.batch_first));
    const std::string message = message_of<Error>([&] { c.call.run(layer); });
    CAPTURE(message);
    CHECK(message.find("attend::MultiheadAttention: " + c.expected) != std::string::npos);
    // explain() refuses the same calls.
    const Call& call = c.call;
    CHECK(message == message_of<Error>([&] {
            layer->explain(call.query, call.key, call.value, call.key_padding_mask, false, call.attn_mask);
          }));
  };
  for (const Case& c : value_errors) check(std::type_identity<c10::ValueError>(), c);
  for (const Case& c : type_errors) check(std::type_identity<c10::TypeError>(), c);
}
