// SPDX-License-Identifier: MIT

// Tests the masks of MultiheadAttention: padding, dtypes, queries that may attend to nothing.

#include <attend/layers/multihead_attention.h>

#include "layers/multihead_attention_support.h"
#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/any.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

using attend::Backend;
using attend::MultiheadAttention;
using attend::MultiheadAttentionOptions;
using attend::test::added;
using attend::test::check_as_accurate_as;
using attend::test::max_difference;
using attend::test::output_of;
using attend::test::padding;
using attend::test::share_parameters;
using attend::test::weights_of;

namespace multihead_attention_masks_test {
namespace {

using Call = attend::test::MultiheadCall;
using Results = attend::test::MultiheadResults;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

}  // namespace

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
      for (const Backend backend : attend::test::kAllBackends) {
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

}  // namespace multihead_attention_masks_test
