// SPDX-License-Identifier: MIT

// Tests what MultiheadAttention promises besides: weights, dropout, gradients, backends, printing, errors.

#include <attend/layers/multihead_attention.h>

#include "layers/multihead_attention_support.h"
#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/operator_log.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/any.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::Backend;
using attend::MultiheadAttention;
using attend::MultiheadAttentionOptions;
using attend::test::added;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::OperatorLog;
using attend::test::output_of;
using attend::test::padding;
using attend::test::share_parameters;
using attend::test::weighted_sum;
using attend::test::weights_of;

namespace multihead_attention_test {
namespace {

using Call = attend::test::MultiheadCall;
using Results = attend::test::MultiheadResults;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

}  // namespace

// ---- Weights, dropout, gradients ------------------------------------------------------------------------------------

TEST_CASE("MultiheadAttention: need_weights does not change the output, which still comes from the fused kernel") {
  MultiheadAttention layer(MultiheadAttentionOptions(64, 4).batch_first(true));
  const torch::Tensor x = torch::randn({2, 100, 64}), ignored = padding(2, 100);
  const auto output = [&](bool need_weights) { return output_of(layer(x, x, x, ignored, need_weights)); };
  for (const Backend backend : attend::test::and_auto(attend::test::kBackendsWithOwnGradients)) {
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
    for (const Backend other : attend::test::kNamedBackends) {
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
          for (const Backend backend : attend::test::kAllBackendsWithAllOptions) {
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
  for (const Backend backend : attend::test::kNamedBackends) CHECK(seen[backend] > 25);
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
        }).find("is_causal on the CPU for L = 30 and S = 20") != std::string::npos);
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

}  // namespace multihead_attention_test
