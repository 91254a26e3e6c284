// SPDX-License-Identifier: MIT
#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::test::causal;
using attend::test::check_as_accurate_as;
using attend::test::dense;
using attend::test::everywhere;
using attend::test::kAllBackends;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;
using attend::test::same;

namespace {

/// The result of the function, or std::nullopt if the backend cannot run the call.
template <class Function>
auto if_it_can(const Function& function) -> std::optional<decltype(function())> {
  try {
    return function();
  } catch (const c10::NotImplementedError&) {
    return std::nullopt;
  }
}

/// One case of make_reference.py: its arguments and PyTorch's results.
struct ReferenceCase {
  std::map<std::string, torch::Tensor> data;
  std::string name;
  std::vector<std::pair<std::string, torch::Tensor>> leaves = {};

  bool has(const std::string& tensor) const { return data.count(name + "/" + tensor) > 0; }
  const torch::Tensor& get(const std::string& tensor) const { return data.at(name + "/" + tensor); }

  /// A copy, which is a leaf if PyTorch has a gradient for it. Undefined if the case has no such argument.
  torch::Tensor argument(const std::string& tensor) {
    if (!has(tensor)) return {};
    torch::Tensor copy = get(tensor).clone();
    if (has(tensor + "_gradient")) leaves.emplace_back(tensor, copy.requires_grad_());
    return copy;
  }

  void check_gradients(const std::vector<torch::Tensor>& outputs, const std::vector<torch::Tensor>& output_gradients,
                       const std::string& suffix) const {
    std::vector<torch::Tensor> inputs;
    for (const auto& leaf : leaves) inputs.push_back(leaf.second);
    const auto gradients = torch::autograd::grad(outputs, inputs, output_gradients);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      CAPTURE(leaves[i].first);
      CHECK(max_difference(gradients[i], get(leaves[i].first + suffix)) < 1e-12);
    }
  }
};

}  // namespace

TEST_CASE("attention: float64 results and gradients equal PyTorch's for options alone and combined, on each backend") {
  const std::map<std::string, torch::Tensor> data = reference_data("attention");
  enum SdpaCan { kNothing, kOutput, kBoth };  // attention() only, or attention_with_lse() too
  struct Case {
    std::string name;
    SdpaCan sdpa_can;
    AttentionOptions options = {};
  };
  const AttentionOptions causal = AttentionOptions().is_causal(true);
  const AttentionOptions everything = AttentionOptions().is_causal(true).window({4, 1}).scale(0.7).softcap(1.5);
  const Case cases[] = {
      {"plain", kBoth},
      {"unscaled", kBoth, AttentionOptions().scale(1.0)},
      {"lengths", kBoth},
      {"value_dim", kNothing},
      {"grouped", kBoth},
      {"causal", kBoth, causal},
      {"bool_mask", kOutput},
      {"bool_mask_per_head", kOutput},
      {"bool_mask_per_batch", kOutput},
      {"float_mask", kOutput},
      {"learned_mask", kNothing},
      {"grouped_mask", kOutput},
      {"causal_mask", kOutput, causal},
      {"causal_padding", kOutput, causal},
      {"causal_float_mask", kOutput, causal},
      {"lower_right_1_6", kBoth, causal},
      {"lower_right_3_6", kBoth, causal},
      {"lower_right_6_3", kNothing, causal},
      {"lower_right_6_6", kBoth, causal},
      {"window", kNothing, AttentionOptions().window({2, 1})},
      {"window_diagonal", kNothing, AttentionOptions().window({0, 0})},
      {"window_left", kNothing, AttentionOptions().window({3, -1})},
      {"window_right", kNothing, AttentionOptions().window({-1, 2})},
      {"window_causal", kNothing, AttentionOptions().window({3, 5}).is_causal(true)},
      {"window_all", kBoth, AttentionOptions().window({8, 4})},
      {"softcap", kNothing, AttentionOptions().softcap(0.8)},
      {"alibi", kNothing},
      {"alibi_per_batch", kNothing},
      {"alibi_float32", kNothing},
      {"learned_alibi", kNothing},
      {"learned_alibi_per_batch", kNothing},
      {"packed", kNothing},
      {"packed_causal", kNothing, causal},
      {"packed_window", kNothing, AttentionOptions().window({2, 1})},
      {"packed_alibi", kNothing},
      {"everything", kNothing, everything},
      {"everything_masked", kNothing, everything},
      {"everything_packed", kNothing, everything},
  };
  for (const Case& c : cases) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(c.name);
      CAPTURE(backend);
      ReferenceCase reference{data, c.name};
      const torch::Tensor query = reference.argument("query"), key = reference.argument("key"),
                          value = reference.argument("value");
      const AttentionOptions options = AttentionOptions(c.options)
                                           .attn_mask(reference.argument("attn_mask"))
                                           .alibi_slopes(reference.argument("alibi_slopes"))
                                           .query_offsets(reference.argument("query_offsets"))
                                           .key_offsets(reference.argument("key_offsets"))
                                           .backend(backend);
      const auto output = if_it_can([&] { return attend::attention(query, key, value, options); });
      CHECK(output.has_value() == (backend != Backend::kSdpa || c.sdpa_can != kNothing));
      if (output) {
        CHECK(max_difference(*output, reference.get("output")) < 1e-12);
        reference.check_gradients({*output}, {reference.get("output_gradient")}, "_gradient");
      }
      if (!reference.has("log_sum_exp")) continue;
      const auto both = if_it_can([&] { return attend::attention_with_lse(query, key, value, options); });
      CHECK(both.has_value() == (backend != Backend::kSdpa || c.sdpa_can == kBoth));
      if (!both) continue;
      CHECK(max_difference(both->output, reference.get("output")) < 1e-12);
      CHECK(max_difference(both->log_sum_exp, reference.get("log_sum_exp")) < 1e-12);
      reference.check_gradients({both->output, both->log_sum_exp},
                                {reference.get("output_gradient"), reference.get("log_sum_exp_gradient")},
                                "_gradient_of_both");
    }
  }
}

TEST_CASE("attention: float32, bfloat16 and float16 are as accurate as the dense formula, forward and backward") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(dtype);
      CAPTURE(backend);
      torch::manual_seed(1);
      const auto exact_leaf = [] { return torch::randn({2, 3, 33, 16}, torch::kDouble); };
      std::vector<torch::Tensor> rounded, exact, plain, ours;
      for (int i = 0; i < 3; ++i) {
        rounded.push_back(exact_leaf().to(dtype));
        exact.push_back(rounded.back().to(torch::kDouble).requires_grad_());
        plain.push_back(rounded.back().clone().requires_grad_());
        ours.push_back(rounded.back().clone().requires_grad_());
      }
      const torch::Tensor exact_output = dense(exact, same, everywhere, 0.25).output;
      const torch::Tensor plain_output = dense(plain, same, everywhere, 0.25).output;
      const torch::Tensor our_output =
          attend::attention(ours[0], ours[1], ours[2], AttentionOptions().backend(backend));
      check_as_accurate_as(plain_output, our_output, exact_output);
      const torch::Tensor gradient = torch::randn({2, 3, 33, 16}, torch::kDouble).to(dtype);
      exact_output.backward(gradient.to(torch::kDouble));
      plain_output.backward(gradient);
      our_output.backward(gradient);
      for (int i = 0; i < 3; ++i) check_as_accurate_as(plain[i].grad(), ours[i].grad(), exact[i].grad());
    }
  }
}

TEST_CASE("scale: zero and negative values give the dense formula's result, with and without is_causal") {
  const torch::Tensor x = torch::randn({1, 2, 5, 8}, torch::kDouble);
  for (const double scale : {-1.0, 0.0}) {
    for (const bool is_causal : {false, true}) {
      CAPTURE(scale);
      CAPTURE(is_causal);
      const torch::Tensor expected = dense({x, x, x}, same, is_causal ? causal : everywhere, scale).output;
      const AttentionOptions options = AttentionOptions().scale(scale).is_causal(is_causal);
      CHECK(max_difference(attend::attention(x, x, x, options), expected) < 1e-12);
    }
  }
}

TEST_CASE("autocast: query, key and value are cast on every backend; float64 and a float attn_mask are not cast") {
  const torch::Tensor query = torch::randn({1, 2, 6, 8}), key = torch::randn({1, 2, 6, 8}).to(torch::kBFloat16);
  const torch::Tensor value = torch::randn({1, 2, 6, 8}), mask = torch::randn({6, 6});
  const auto half = [](const torch::Tensor& tensor) { return tensor.to(torch::kBFloat16); };
  for (const Backend backend : kAllBackends) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions().backend(backend);
    const torch::Tensor expected =
        attend::attention(half(query), key, half(value), AttentionOptions(options).attn_mask(mask));
    const AttentionResult expected_both = attend::attention_with_lse(half(query), key, half(value), options);
    const torch::Tensor wide = query.to(torch::kDouble);
    const torch::Tensor expected_wide = attend::attention(wide, wide, wide, options);
    const attend::test::Autocast autocast;
    CHECK(attend::attention(query, key, value, AttentionOptions(options).attn_mask(mask)).equal(expected));
    CHECK(attend::attention_with_lse(query, key, value, options).log_sum_exp.equal(expected_both.log_sum_exp));
    CHECK(attend::attention(wide, wide, wide, options).equal(expected_wide));
  }
}

TEST_CASE("autocast: alibi_slopes stay float32 for a float32 query that is cast") {
  const torch::Tensor x = torch::randn({1, 2, 6, 8}), slopes = torch::rand({2});
  const torch::Tensor half = x.to(torch::kBFloat16);
  const AttentionOptions options = AttentionOptions().alibi_slopes(slopes);
  const torch::Tensor expected = attend::attention(half, half, half, options);
  const attend::test::Autocast autocast;
  CHECK(attend::attention(x, x, x, options).equal(expected));
}

TEST_CASE("attention: transposed, sliced, expanded and permuted arguments give the result of contiguous ones") {
  const torch::Tensor base = torch::randn({2, 3, 8, 10}, torch::kDouble);
  const std::map<std::string, torch::Tensor> views{
      {"channels first", base.transpose(2, 3)},  // (2, 3, 10, 8)
      {"sliced", torch::randn({2, 3, 20, 16}, torch::kDouble).slice(2, 0, 20, 2).slice(3, 0, 16, 2)},
      {"expanded", torch::randn({1, 1, 10, 8}, torch::kDouble).expand({2, 3, 10, 8})},
      {"heads last", torch::randn({2, 10, 3, 8}, torch::kDouble).transpose(1, 2)},
      {"one channel", torch::randn({2, 3, 10, 4}, torch::kDouble).slice(3, 0, 1)},
  };
  for (const auto& entry : views) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(entry.first);
      const torch::Tensor& view = entry.second;
      CAPTURE(backend);
      const AttentionOptions options = AttentionOptions().backend(backend);
      const torch::Tensor copy = view.contiguous();
      CHECK(max_difference(attend::attention(view, view, view, options), attend::attention(copy, copy, copy, options)) <
            1e-12);
    }
  }
}

TEST_CASE("attn_mask: an expanded mask has a gradient for every entry; an expanded bool mask equals its copy") {
  const torch::Tensor x = torch::randn({2, 3, 4, 8}, torch::kDouble);
  const torch::Tensor learned = torch::randn({4, 4}, torch::kDouble).expand({2, 3, 4, 4}).requires_grad_();
  const torch::Tensor copy = learned.detach().contiguous().requires_grad_();
  const auto gradient = [&](const torch::Tensor& mask) {
    const torch::Tensor output = attend::attention(x, x, x, AttentionOptions().attn_mask(mask));
    return torch::autograd::grad({output.pow(3).sum()}, {mask})[0];
  };
  CHECK(max_difference(gradient(learned), gradient(copy)) < 1e-12);

  const torch::Tensor expanded = (torch::rand({2, 1, 1, 4}) < 0.7).expand({2, 3, 4, 4});
  CHECK(attend::attention(x, x, x, AttentionOptions().attn_mask(expanded))
            .equal(attend::attention(x, x, x, AttentionOptions().attn_mask(expanded.contiguous()))));
}

TEST_CASE("attention_weights: rows sum to one or to zero, and their product with the values equals attention()") {
  const torch::Tensor query = torch::randn({2, 4, 5, 8}, torch::kDouble),
                      key = torch::randn({2, 2, 6, 8}, torch::kDouble);
  const torch::Tensor value = torch::randn({2, 2, 6, 3}, torch::kDouble);
  torch::Tensor mask = torch::rand({5, 6}) < 0.6;
  mask[3] = false;
  mask[0][0] = true;
  const AttentionOptions masked = AttentionOptions().attn_mask(mask).scale(0.3);
  for (const AttentionOptions& options :
       {masked, AttentionOptions(masked).is_causal(true), AttentionOptions(masked).window({9, 1}),
        AttentionOptions(masked).softcap(0.5), AttentionOptions(masked).alibi_slopes(torch::rand({2, 4}))}) {
    const torch::Tensor weights = attend::attention_weights(query, key, options);
    CHECK(weights.sizes() == torch::IntArrayRef{2, 4, 5, 6});
    const torch::Tensor sums = weights.sum(-1);
    CHECK(sums.select(2, 3).eq(0).all().item<bool>());
    CHECK((sums.select(2, 0) - 1).abs().max().item<double>() < 1e-12);
    CHECK(weights.masked_select(~mask).eq(0).all().item<bool>());
    const torch::Tensor product = weights.matmul(value.repeat_interleave(2, 1));
    CHECK(max_difference(product, attend::attention(query, key, value, options)) < 1e-12);
  }
}

TEST_CASE("kAuto: results equal those of the backend that explain() names, to the bit") {
  std::set<Backend> taken;
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const std::int64_t length : {40, 3, 0}) {
      for (const std::int64_t value_dim : {8, 5}) {
        CAPTURE(dtype);
        CAPTURE(length);
        CAPTURE(value_dim);
        const torch::Tensor x = torch::randn({2, 4, length, 8}).to(dtype).requires_grad_(),
                            value = x.slice(3, 0, value_dim);
        const Backend backend = attend::explain(x, x, value).backend;
        CHECK(
            attend::attention(x, x, value).equal(attend::attention(x, x, value, AttentionOptions().backend(backend))));
        taken.insert(backend);
      }
    }
  }
  CHECK(taken == std::set<Backend>{Backend::kReference, Backend::kCpu, Backend::kSdpa});
}

TEST_CASE("attention: a backend requested by name runs or throws with the reason") {
  const torch::Tensor x = torch::randn({1, 1, 4, 8}), narrow = x.slice(3, 0, 3);
  const AttentionOptions options = AttentionOptions().backend(Backend::kSdpa);
  const auto throws_the_reason = [](const auto& call) {
    const std::string message = message_of<c10::NotImplementedError>(call);
    CHECK(message.find("attend::attention: the requested backend cannot run. "
                       "kSdpa needs the same width for query and value; query has 8 and value has 3.") !=
          std::string::npos);
  };
  throws_the_reason([&] { attend::attention(x, x, narrow, options); });
  throws_the_reason([&] { attend::attention_with_lse(x, x, narrow, options); });
  throws_the_reason([&] { attend::explain(x, x, narrow, options); });
  CHECK(attend::attention(x, x, narrow, AttentionOptions().backend(Backend::kCpu)).sizes() == narrow.sizes());
}

TEST_CASE("attention: an unknown value of Backend is refused") {
  const torch::Tensor x = torch::randn({1, 1, 4, 8});
  const AttentionOptions options = AttentionOptions().backend(static_cast<Backend>(42));
  CHECK(message_of<c10::ValueError>([&] {
          attend::attention(x, x, x, options);
        }).find("attend::attention: unknown backend Backend(42)") != std::string::npos);
}
