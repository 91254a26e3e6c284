// SPDX-License-Identifier: MIT
#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::check_as_accurate_as;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;

namespace {

constexpr Backend kAllBackends[] = {Backend::kAuto, Backend::kReference, Backend::kSdpa};

/// A call, and what the given backend makes of it; nothing if the backend says that it cannot.
struct Call {
  torch::Tensor query, key, value;
  AttentionOptions options = {};

  std::optional<torch::Tensor> run(Backend backend) const {
    try {
      return attend::attention(query, key, value, AttentionOptions(options).backend(backend));
    } catch (const c10::NotImplementedError&) {
      return std::nullopt;
    }
  }
};

/// The dense formula in the dtype of its arguments, as anyone would write it.
torch::Tensor dense(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value, double scale) {
  return at::softmax(at::matmul(query, key.transpose(2, 3)) * scale, -1).matmul(value);
}

}  // namespace

TEST_CASE("results and gradients equal PyTorch's in float64, on every backend that can") {
  const std::map<std::string, torch::Tensor> data = reference_data("attention");
  struct Case {
    std::string name;
    bool sdpa_can;
    AttentionOptions options = {};
  };
  const Case cases[] = {
      {"plain", true},
      {"unscaled", true, AttentionOptions().scale(1.0)},
      {"lengths", true},
      {"value_width", false},
      {"grouped", true},
      {"causal", true, AttentionOptions().is_causal(true)},
      {"bool_mask", true},
      {"bool_mask_per_head", true},
      {"bool_mask_per_batch", true},
      {"float_mask", true},
      {"learned_mask", false},
      {"grouped_mask", true},
      {"lower_right_1_6", true, AttentionOptions().is_causal(true)},
      {"lower_right_3_6", false, AttentionOptions().is_causal(true)},
      {"lower_right_6_3", false, AttentionOptions().is_causal(true)},
      {"lower_right_6_6", true, AttentionOptions().is_causal(true)},
  };
  for (const Case& c : cases) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(c.name);
      CAPTURE(backend);
      const auto tensor = [&](const std::string& name) { return data.at(c.name + "/" + name); };
      Call call{tensor("query").clone().requires_grad_(), tensor("key").clone().requires_grad_(),
                tensor("value").clone().requires_grad_(), c.options};
      std::vector<std::pair<std::string, torch::Tensor>> leaves{
          {"query", call.query}, {"key", call.key}, {"value", call.value}};
      if (data.count(c.name + "/attn_mask") > 0) {
        torch::Tensor mask = tensor("attn_mask").clone();
        if (data.count(c.name + "/attn_mask_gradient") > 0) leaves.emplace_back("attn_mask", mask.requires_grad_());
        call.options.attn_mask(mask);
      }
      const std::optional<torch::Tensor> output = call.run(backend);
      CHECK(output.has_value() == (backend != Backend::kSdpa || c.sdpa_can));
      if (!output) continue;
      CHECK(max_difference(*output, tensor("output")) < 1e-12);
      output->backward(tensor("output_gradient"));
      for (const auto& leaf : leaves) {
        CAPTURE(leaf.first);
        CHECK(max_difference(leaf.second.grad(), tensor(leaf.first + "_gradient")) < 1e-12);
      }
    }
  }
}

TEST_CASE("float32, bfloat16 and float16 are as accurate as the dense formula, forward and backward") {
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
      const torch::Tensor exact_output = dense(exact[0], exact[1], exact[2], 0.25);
      const torch::Tensor plain_output = dense(plain[0], plain[1], plain[2], 0.25);
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

TEST_CASE("a row that may attend to nothing gives zeros and zero gradients, on every backend") {
  for (const Backend backend : kAllBackends) {
    for (const bool is_float : {false, true}) {
      CAPTURE(backend);
      CAPTURE(is_float);
      torch::Tensor query = torch::randn({1, 2, 4, 8}).requires_grad_();
      torch::Tensor key = torch::randn({1, 2, 5, 8}).requires_grad_();
      torch::Tensor value = torch::randn({1, 2, 5, 8}).requires_grad_();
      torch::Tensor mask = torch::ones({4, 5}, torch::kBool);
      mask[1] = false;
      if (is_float) mask = torch::zeros({4, 5}).masked_fill(~mask, -std::numeric_limits<float>::infinity());
      const torch::Tensor output =
          attend::attention(query, key, value, AttentionOptions().attn_mask(mask).backend(backend));
      CHECK(output.select(2, 1).eq(0).all().item<bool>());
      CHECK(output.select(2, 0).ne(0).all().item<bool>());
      output.pow(2).sum().backward();
      CHECK(query.grad().select(2, 1).eq(0).all().item<bool>());

      // The other rows' gradients are those of a call without the empty row.
      const torch::Tensor others = torch::tensor({0, 2, 3});
      std::vector<torch::Tensor> leaves;
      for (const torch::Tensor& leaf : {query, key, value}) leaves.push_back(leaf.detach().requires_grad_());
      attend::attention(leaves[0].index_select(2, others), leaves[1], leaves[2], AttentionOptions().backend(backend))
          .pow(2)
          .sum()
          .backward();
      CHECK(max_difference(query.grad(), leaves[0].grad()) < 1e-5);
      CHECK(max_difference(key.grad(), leaves[1].grad()) < 1e-5);
      CHECK(max_difference(value.grad(), leaves[2].grad()) < 1e-5);
    }
  }
}

TEST_CASE("a scale that is zero or negative, with and without is_causal") {
  const torch::Tensor x = torch::randn({1, 2, 5, 8}, torch::kDouble);
  for (const double scale : {-1.0, 0.0}) {
    for (const bool is_causal : {false, true}) {
      CAPTURE(scale);
      CAPTURE(is_causal);
      torch::Tensor scores = scale * x.matmul(x.transpose(2, 3));
      if (is_causal) scores = scores.masked_fill(torch::ones({5, 5}, torch::kBool).triu(1), -1e300);
      const AttentionOptions options = AttentionOptions().scale(scale).is_causal(is_causal);
      CHECK(max_difference(attend::attention(x, x, x, options), scores.softmax(-1).matmul(x)) < 1e-12);
    }
  }
}

TEST_CASE("autocast casts the arguments, on every backend alike; float64 stays") {
  const torch::Tensor query = torch::randn({1, 2, 6, 8}), key = torch::randn({1, 2, 6, 8}).to(torch::kBFloat16);
  const torch::Tensor value = torch::randn({1, 2, 6, 8}), mask = torch::randn({6, 6});
  const auto half = [](const torch::Tensor& tensor) { return tensor.to(torch::kBFloat16); };
  for (const Backend backend : kAllBackends) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions().backend(backend);
    const torch::Tensor expected =
        attend::attention(half(query), key, half(value), AttentionOptions(options).attn_mask(half(mask)));
    const torch::Tensor wide = query.to(torch::kDouble);
    const torch::Tensor expected_wide = attend::attention(wide, wide, wide, options);
    const attend::test::Autocast autocast;
    CHECK(attend::attention(query, key, value, AttentionOptions(options).attn_mask(mask)).equal(expected));
    CHECK(attend::attention(wide, wide, wide, options).equal(expected_wide));
  }
}

TEST_CASE("a mask and is_causal go together") {
  const torch::Tensor query = torch::randn({2, 2, 6, 4}, torch::kDouble),
                      key = torch::randn({2, 2, 6, 4}, torch::kDouble);
  const torch::Tensor value = torch::randn({2, 2, 6, 4}, torch::kDouble);
  const torch::Tensor mask = torch::rand({6, 6}) < 0.7;
  const torch::Tensor both = attend::attention(query, key, value, AttentionOptions().is_causal(true).attn_mask(mask));
  const torch::Tensor merged = attend::attention(query, key, value, AttentionOptions().attn_mask(mask.tril()));
  CHECK(max_difference(both, merged) < 1e-12);
}

TEST_CASE("empty and single sizes") {
  struct Sizes {
    std::int64_t batch, length, keys;
  };
  for (const Sizes& n : {Sizes{0, 3, 3}, Sizes{2, 0, 3}, Sizes{2, 3, 0}, Sizes{1, 1, 1}}) {
    CAPTURE(n.batch);
    CAPTURE(n.length);
    CAPTURE(n.keys);
    torch::Tensor query = torch::randn({n.batch, 2, n.length, 4}).requires_grad_();
    torch::Tensor key = torch::randn({n.batch, 2, n.keys, 4}).requires_grad_();
    torch::Tensor value = torch::randn({n.batch, 2, n.keys, 4}).requires_grad_();
    const torch::Tensor output = attend::attention(query, key, value, AttentionOptions().is_causal(true));
    CHECK(output.sizes() == torch::IntArrayRef{n.batch, 2, n.length, 4});
    CHECK(max_difference(output, n.keys == 1 ? value : torch::zeros_like(output)) == 0);
    output.sum().backward();
    CHECK(max_difference(query.grad(), torch::zeros_like(query)) == 0);
  }
}

TEST_CASE("any strides: transposed, sliced, expanded and permuted arguments give the result of contiguous ones") {
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

TEST_CASE("gradients equal finite differences, and the reference can be differentiated twice") {
  torch::manual_seed(2);
  const torch::Tensor mask = torch::randn({2, 3, 4}, torch::kDouble);
  const auto loss = [&](const torch::Tensor& packed) {  // a scalar function of everything
    const auto parts = packed.split({12, 24, 24});
    const AttentionOptions options = AttentionOptions().attn_mask(mask).is_causal(true).backend(Backend::kReference);
    return attend::attention(parts[0].view({1, 2, 3, 2}), parts[1].view({1, 2, 4, 3}).slice(3, 0, 2),
                             parts[2].view({1, 2, 4, 3}), options)
        .pow(3)
        .sum();
  };
  const torch::Tensor at = torch::randn({60}, torch::kDouble);
  const auto gradient = [&](const torch::Tensor& point, bool create_graph) {
    return torch::autograd::grad({loss(point)}, {point}, {}, /*retain_graph=*/std::nullopt, create_graph)[0];
  };
  torch::Tensor point = at.clone().requires_grad_();
  const torch::Tensor first = gradient(point, true);
  const torch::Tensor direction = torch::randn({60}, torch::kDouble);
  const torch::Tensor second = torch::autograd::grad({(first * direction).sum()}, {point})[0];

  constexpr double kStep = 1e-5;
  const torch::Tensor ahead = (at + kStep * direction).requires_grad_(),
                      behind = (at - kStep * direction).requires_grad_();
  const double along = (first.detach() * direction).sum().item<double>();
  CHECK((loss(ahead) - loss(behind)).item<double>() / (2 * kStep) == doctest::Approx(along).epsilon(1e-7));
  CHECK(max_difference(second, (gradient(ahead, false) - gradient(behind, false)) / (2 * kStep)) < 1e-6);
}

TEST_CASE("attention_weights: rows sum to one or to nothing, and times the values they give attention()") {
  const torch::Tensor query = torch::randn({2, 4, 5, 8}, torch::kDouble),
                      key = torch::randn({2, 2, 6, 8}, torch::kDouble);
  const torch::Tensor value = torch::randn({2, 2, 6, 3}, torch::kDouble);
  torch::Tensor mask = torch::rand({5, 6}) < 0.6;
  mask[3] = false;
  mask[0][0] = true;
  for (const bool is_causal : {false, true}) {
    const AttentionOptions options = AttentionOptions().attn_mask(mask).is_causal(is_causal).scale(0.3);
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

TEST_CASE("explain: which backend, why not a faster one, and what is copied") {
  const auto x = [](at::IntArrayRef sizes) { return torch::randn(sizes); };
  const torch::Tensor plain = x({2, 4, 6, 8});
  struct Case {
    torch::Tensor query, key, value;
    AttentionOptions options;
    Backend backend;
    std::string reason, copies;
  };
  const Case cases[] = {
      {plain, plain, plain, {}, Backend::kSdpa, "", ""},
      {plain, plain, plain, AttentionOptions().backend(Backend::kReference), Backend::kReference, "", ""},
      {x({2, 4, 8, 6}).transpose(2, 3),
       plain,
       x({2, 4, 8, 6}).transpose(2, 3),
       {},
       Backend::kSdpa,
       "",
       "kSdpa copies what is not contiguous along its last dimension: query, value"},
      {plain,
       plain,
       x({2, 4, 6, 3}),
       {},
       Backend::kReference,
       "kSdpa: the value width (3) differs from the query width (8)",
       ""},
      {x({2, 4, 5, 8}), plain, plain, AttentionOptions().is_causal(true), Backend::kReference,
       "kSdpa: for unequal lengths (L 5, S 6) ATen counts the causal diagonal from the first key, not from the last",
       ""},
      {plain, plain, plain, AttentionOptions().is_causal(true).attn_mask(torch::ones({6, 6}, torch::kBool)),
       Backend::kReference, "kSdpa: ATen's kernels take attn_mask or is_causal, not both", ""},
      {plain, plain, plain, AttentionOptions().attn_mask(torch::zeros({6, 6}).requires_grad_()), Backend::kReference,
       "kSdpa: ATen's kernels give no gradient for attn_mask", ""},
      {x({2, 4, 0, 8}),
       plain,
       plain,
       {},
       Backend::kReference,
       "kSdpa: there is nothing to compute for an empty batch, query or key",
       ""},
  };
  for (const Case& c : cases) {
    CAPTURE(c.reason);
    const attend::Explanation explanation = attend::explain(c.query, c.key, c.value, c.options);
    CHECK(explanation.backend == c.backend);
    CHECK(explanation.why_not_faster == c.reason);
    CHECK(explanation.copies == c.copies);
  }
}

TEST_CASE("kAuto computes what explain() says, to the bit") {
  const torch::Tensor x = torch::randn({2, 4, 40, 8});
  const torch::Tensor narrow = x.slice(3, 0, 5);
  for (const torch::Tensor& value : {x, narrow}) {
    const Backend backend = attend::explain(x, x, value).backend;
    CHECK(attend::attention(x, x, value).equal(attend::attention(x, x, value, AttentionOptions().backend(backend))));
  }
}

TEST_CASE("a backend asked for by name runs or throws with the reason") {
  const torch::Tensor x = torch::randn({1, 1, 4, 8});
  const std::string message = message_of<c10::NotImplementedError>(
      [&] { attend::attention(x, x, x.slice(3, 0, 3), AttentionOptions().backend(Backend::kSdpa)); });
  CHECK(message.find("attend::attention: cannot use the backend asked for. "
                     "kSdpa: the value width (3) differs from the query width (8)") != std::string::npos);
}

TEST_CASE("wrong arguments are refused with the rule and the values") {
  const auto x = [](at::IntArrayRef sizes) { return torch::randn(sizes); };
  const torch::Tensor good = x({2, 4, 6, 8});
  const auto check = [](auto type, const std::string& expected, const torch::Tensor& query, const torch::Tensor& key,
                        const torch::Tensor& value, const AttentionOptions& options = {}) {
    CAPTURE(expected);
    using Error = typename decltype(type)::type;
    const std::string message = message_of<Error>([&] { attend::attention(query, key, value, options); });
    CAPTURE(message);
    CHECK(message.find("attend::attention: " + expected) != std::string::npos);
  };
  const std::type_identity<c10::ValueError> value_error;
  const std::type_identity<c10::TypeError> type_error;
  const auto mask = [](const torch::Tensor& m) { return AttentionOptions().attn_mask(m); };
  check(value_error, "query must be a tensor (N, H, L, D), got an undefined one", {}, good, good);
  check(value_error, "query must be 4-d (N, H, L, D), got 3-d [2, 6, 8]", x({2, 6, 8}), good, good);
  check(value_error, "key must be 4-d (N, G, S, D), got 2-d", good, x({6, 8}), good);
  check(value_error, "value must be 4-d (N, G, S, Dv), got 5-d", good, good, x({1, 2, 4, 6, 8}));
  check(type_error, "query must be float64, float32, bfloat16 or float16, got Long", good.to(torch::kLong), good, good);
  check(type_error, "key (Double) must have the dtype of query (Float)", good, good.to(torch::kDouble), good);
  check(type_error, "value (BFloat16) must have the dtype of query (Float)", good, good, good.to(torch::kBFloat16));
  check(value_error, "key (meta) must be on the device of query (cpu)", good, good.to(torch::kMeta), good);
  check(value_error, "value (meta) must be on the device of query (cpu)", good, good, good.to(torch::kMeta));
  check(value_error, "key [3, 4, 6, 8] must have the batch size of query [2, 4, 6, 8]", good, x({3, 4, 6, 8}), good);
  check(value_error, "key [2, 4, 6, 7] must have the width of query [2, 4, 6, 8]", good, x({2, 4, 6, 7}), good);
  check(value_error, "the width of query must be at least 1", x({2, 4, 6, 0}), x({2, 4, 6, 0}), good);
  check(value_error, "the heads of query (4) must be a multiple of the heads of key (3)", good, x({2, 3, 6, 8}),
        x({2, 3, 6, 8}));
  check(value_error, "the heads of query (4) must be a multiple of the heads of key (0)", good, x({2, 0, 6, 8}),
        x({2, 0, 6, 8}));
  check(value_error, "value [2, 4, 7, 8] must have the batch size, heads and length of key [2, 4, 6, 8]", good, good,
        x({2, 4, 7, 8}));
  check(value_error, "scale must be finite, got nan", good, good, good,
        AttentionOptions().scale(std::numeric_limits<double>::quiet_NaN()));
  check(value_error, "attn_mask must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got 1-d [6]", good, good, good,
        mask(x({6})));
  check(value_error, "attn_mask [5, 6] must broadcast to (N, H, L, S) = [2, 4, 6, 6]", good, good, good,
        mask(x({5, 6})));
  check(type_error, "attn_mask must be bool (true = attend) or have the dtype of query (Float), got Int", good, good,
        good, mask(torch::ones({6, 6}, torch::kInt)));
  check(value_error, "attn_mask (meta) must be on the device of query (cpu)", good, good, good,
        mask(x({6, 6}).to(torch::kMeta)));
  check(value_error, "there is no Backend(42)", good, good, good, AttentionOptions().backend(static_cast<Backend>(42)));
}
