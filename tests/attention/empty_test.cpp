// SPDX-License-Identifier: MIT

// Tests calls without work: empty sizes, and queries that may attend to nothing.

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/backends.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::test::kAllBackends;
using attend::test::max_difference;

namespace empty_test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Sizes {
  std::int64_t batch, length, keys;
};

bool is_all(const torch::Tensor& tensor, double value) { return tensor.eq(value).all().item<bool>(); }

bool is_finite(const torch::Tensor& tensor) { return tensor.isfinite().all().item<bool>(); }

/// Query, key, value and the other tensors of the call that need a gradient.
std::vector<torch::Tensor> leaves_of(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                                     const AttentionOptions& options) {
  std::vector<torch::Tensor> leaves{query, key, value};
  for (torch::Tensor& leaf : leaves) leaf.requires_grad_();
  for (const torch::Tensor& learned : {options.attn_mask(), options.alibi_slopes()})
    if (learned.defined() && learned.requires_grad()) leaves.push_back(learned);
  return leaves;
}

/// std::nullopt if the backend cannot run the call.
std::optional<AttentionResult> run(const std::vector<torch::Tensor>& leaves, const AttentionOptions& options,
                                   bool with_lse) {
  try {
    if (with_lse) return attend::attention_with_lse(leaves[0], leaves[1], leaves[2], options);
    return AttentionResult{attend::attention(leaves[0], leaves[1], leaves[2], options), {}};
  } catch (const c10::NotImplementedError&) {
    return std::nullopt;
  }
}

torch::Tensor offsets(std::vector<std::int32_t> values) { return torch::tensor(values, torch::kInt); }

}  // namespace

TEST_CASE("attention: batches and lengths of 0 and 1 with every option give the right shapes, zeros and no NaN") {
  struct Case {
    std::string name;
    std::function<AttentionOptions(const Sizes&)> options;
    bool is_packed = false;
  };
  const auto options = [] { return AttentionOptions(); };
  const auto packed = [](const Sizes& n) {
    return AttentionOptions()
        .query_offsets(offsets({0, static_cast<std::int32_t>(n.length)}))
        .key_offsets(offsets({0, static_cast<std::int32_t>(n.keys)}));
  };
  const Case cases[] = {
      {"plain", [&](const Sizes&) { return options(); }},
      {"causal", [&](const Sizes&) { return options().is_causal(true); }},
      {"window",
       [&](const Sizes&) {
         return options().window({1, 0});
       }},
      {"bool mask",
       [&](const Sizes& n) {
         return options().attn_mask(torch::ones({n.length, n.keys}, torch::kBool));
       }},
      {"padding",
       [&](const Sizes& n) {
         return options().attn_mask(torch::ones({n.batch, 1, 1, n.keys}, torch::kBool));
       }},
      {"learned mask",
       [&](const Sizes& n) {
         return options().attn_mask(torch::zeros({2, n.length, n.keys}).requires_grad_());
       }},
      {"softcap", [&](const Sizes&) { return options().softcap(2.0); }},
      {"learned ALiBi",
       [&](const Sizes& n) {
         return options().alibi_slopes(torch::ones({n.batch, 2}).requires_grad_());
       }},
      {"dropout", [&](const Sizes&) { return options().dropout(0.5); }},
      {"packed", packed, true},
      {"everything",
       [&](const Sizes& n) {
         return packed(n)
             .is_causal(true)
             .window({1, -1})
             .attn_mask(torch::zeros({2, n.length, n.keys}).requires_grad_())
             .softcap(2.0)
             .alibi_slopes(torch::ones({2}).requires_grad_())
             .dropout(0.5);
       },
       true},
  };
  const Sizes sizes[] = {{0, 3, 3}, {0, 0, 0}, {2, 0, 3}, {2, 3, 0}, {2, 0, 0}, {2, 1, 1}, {1, 1, 4},
                         {1, 4, 1}, {1, 1, 0}, {1, 0, 1}, {1, 3, 0}, {1, 0, 0}, {1, 1, 1}};
  for (const Case& c : cases) {
    for (const Sizes& n : sizes) {
      for (const bool with_lse : {false, true}) {
        for (const Backend backend : kAllBackends) {
          if (c.is_packed && n.batch != 1) continue;
          CAPTURE(c.name);
          CAPTURE(n.batch);
          CAPTURE(n.length);
          CAPTURE(n.keys);
          CAPTURE(with_lse);
          CAPTURE(backend);
          const AttentionOptions all = c.options(n).backend(backend);
          const torch::Tensor query = torch::randn({n.batch, 2, n.length, 4}),
                              key = torch::randn({n.batch, 1, n.keys, 4}), value = torch::randn_like(key);
          const std::vector<torch::Tensor> leaves = leaves_of(query, key, value, all);
          const std::optional<AttentionResult> given = run(leaves, all, with_lse);
          const bool is_empty = n.batch == 0 || n.length == 0 || n.keys == 0;
          if (backend == Backend::kCpu) CHECK(given.has_value() == !is_empty);
          if (backend == Backend::kAuto || backend == Backend::kReference) CHECK(given.has_value());
          if (!given) continue;
          const AttentionResult& result = *given;
          CHECK(result.output.sizes() == torch::IntArrayRef{n.batch, 2, n.length, 4});
          CHECK(is_finite(result.output));
          torch::Tensor loss = result.output.pow(2).sum();
          if (n.keys == 0) CHECK(is_all(result.output, 0.0));
          if (n.keys == 1 && n.length == 1 && all.dropout() == 0.0)
            CHECK(max_difference(result.output, leaves[2].expand_as(result.output)) == 0.0);
          if (with_lse) {
            CHECK(result.log_sum_exp.sizes() == torch::IntArrayRef{n.batch, 2, n.length});
            if (n.keys == 0) CHECK(is_all(result.log_sum_exp, -kInfinity));
            loss = loss + result.log_sum_exp.exp().sum();  // exp, as its gradient at −∞ is finite
          }
          const auto gradients = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/std::nullopt,
                                                       /*create_graph=*/false, /*allow_unused=*/true);
          for (std::size_t i = 0; i < leaves.size(); ++i) {
            CAPTURE(i);
            if (!gradients[i].defined()) continue;
            CHECK(gradients[i].sizes() == leaves[i].sizes());
            CHECK(is_finite(gradients[i]));
            if (n.keys == 0 || n.length == 0) CHECK(is_all(gradients[i], 0.0));
          }
        }
      }
    }
  }
}

TEST_CASE("attention_with_lse: query_offsets of a packed batch without sequences give an empty result") {
  const torch::Tensor x = torch::randn({1, 2, 0, 4}).requires_grad_();
  const AttentionResult result =
      attend::attention_with_lse(x, x, x, AttentionOptions().query_offsets(offsets({0})).key_offsets(offsets({0})));
  CHECK(result.output.sizes() == x.sizes());
  CHECK(result.log_sum_exp.sizes() == torch::IntArrayRef{1, 2, 0});
  CHECK(torch::autograd::grad({result.output.sum()}, {x})[0].sizes() == x.sizes());
}

TEST_CASE("attention: queries that may attend to nothing give zeros and zero gradients, with every kind of mask") {
  // Two batch entries, five queries, four keys. In the last batch entry, the queries `empty` may attend to nothing.
  struct Case {
    std::string name;
    std::vector<std::int64_t> empty;
    bool sdpa_can;
    std::function<AttentionOptions(at::ScalarType)> options;
    std::int64_t batch = 2;
  };
  torch::Tensor rows = torch::rand({5, 4}) < 0.7;
  rows.select(0, 1).fill_(false);
  rows.select(0, 4).fill_(false);
  for (const int row : {0, 2, 3}) rows[row][row] = true;
  torch::Tensor padding = torch::ones({2, 1, 1, 4}, torch::kBool);
  padding[1] = false;
  const auto options = [] { return AttentionOptions(); };
  const auto added = [](const torch::Tensor& mask, at::ScalarType dtype) {
    return torch::zeros(mask.sizes(), dtype).masked_fill(~mask, -kInfinity);
  };
  const std::vector<std::int64_t> all{0, 1, 2, 3, 4};
  const Case cases[] = {
      {"bool mask", {1, 4}, true, [&](at::ScalarType) { return options().attn_mask(rows); }},
      {"float mask", {1, 4}, true, [&](at::ScalarType dtype) { return options().attn_mask(added(rows, dtype)); }},
      {"learned mask",
       {1, 4},
       false,
       [&](at::ScalarType dtype) { return options().attn_mask(added(rows, dtype).requires_grad_()); }},
      {"padding", all, true, [&](at::ScalarType) { return options().attn_mask(padding); }},
      {"float padding", all, true, [&](at::ScalarType dtype) { return options().attn_mask(added(padding, dtype)); }},
      {"causal", {0}, false, [&](at::ScalarType) { return options().is_causal(true); }},
      {"window",
       {0},
       false,
       [&](at::ScalarType) {
         return options().window({0, 0});
       }},
      {"softcap", {1, 4}, false, [&](at::ScalarType) { return options().attn_mask(rows).softcap(1.0); }},
      {"ALiBi",
       {1, 4},
       false,
       [&](at::ScalarType) { return options().attn_mask(rows).alibi_slopes(torch::ones({2}).requires_grad_()); }},
      {"dropout", {1, 4}, false, [&](at::ScalarType) { return options().attn_mask(rows).dropout(0.3); }},
      {"packed",
       {2, 3},
       false,
       [&](at::ScalarType) {
         return options().query_offsets(offsets({0, 2, 4, 5})).key_offsets(offsets({0, 2, 2, 4}));
       },
       1},
      {"packed, causal",
       {0, 1},
       false,
       [&](at::ScalarType) {
         return options().query_offsets(offsets({0, 4, 5})).key_offsets(offsets({0, 2, 4})).is_causal(true);
       },
       1},
  };
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Case& c : cases) {
      for (const Backend backend : attend::test::kNamedBackends) {
        for (const bool with_lse : {false, true}) {
          CAPTURE(dtype);
          CAPTURE(c.name);
          CAPTURE(backend);
          CAPTURE(with_lse);
          const AttentionOptions all_options = c.options(dtype).backend(backend);
          const auto drawn = [&](std::int64_t length) { return torch::randn({c.batch, 2, length, 8}).to(dtype); };
          const std::vector<torch::Tensor> leaves = leaves_of(drawn(5), drawn(4), drawn(4), all_options);
          const std::optional<AttentionResult> given = run(leaves, all_options, with_lse);
          CHECK(given.has_value() == (backend != Backend::kSdpa || (c.sdpa_can && !with_lse)));
          if (!given) continue;
          const AttentionResult& result = *given;

          const torch::Tensor empty = torch::tensor(c.empty);
          torch::Tensor is_full = torch::ones({5}, torch::kBool);
          is_full.index_fill_(0, empty, false);
          const torch::Tensor full = is_full.nonzero().squeeze(1);
          const auto last = [&](const torch::Tensor& tensor, const torch::Tensor& queries) {
            return tensor.select(0, c.batch - 1).index_select(1, queries);
          };
          CHECK(is_finite(result.output));
          CHECK(is_all(last(result.output, empty), 0.0));
          if (all_options.dropout() == 0.0) CHECK(last(result.output, full).ne(0).any(-1).all().item<bool>());
          torch::Tensor loss = result.output.to(torch::kDouble).sum();
          if (with_lse) {
            CHECK(is_all(last(result.log_sum_exp, empty), -kInfinity));
            CHECK(is_finite(last(result.log_sum_exp, full)));
            loss = loss + result.log_sum_exp.masked_fill(result.log_sum_exp.isneginf(), 0.0).sum();
          }
          loss.backward();
          for (const torch::Tensor& leaf : leaves) CHECK(is_finite(leaf.grad()));
          CHECK(is_all(last(leaves[0].grad(), empty), 0.0));
          if (full.numel() == 0) {
            CHECK(is_all(leaves[1].grad()[c.batch - 1], 0.0));
            CHECK(is_all(leaves[2].grad()[c.batch - 1], 0.0));
          }
        }
      }
    }
  }
}

TEST_CASE("attention: a query that may attend to nothing does not change the results and gradients of other queries") {
  for (const Backend backend : kAllBackends) {
    for (const bool is_float : {false, true}) {
      CAPTURE(backend);
      CAPTURE(is_float);
      const auto drawn = [](std::int64_t length) { return torch::randn({1, 2, length, 8}, torch::kDouble); };
      const std::vector<torch::Tensor> with{drawn(4).requires_grad_(), drawn(5).requires_grad_(),
                                            drawn(5).requires_grad_()};
      torch::Tensor mask = torch::ones({4, 5}, torch::kBool);
      mask[1] = false;
      if (is_float) mask = torch::zeros({4, 5}, torch::kDouble).masked_fill(~mask, -kInfinity);
      const torch::Tensor others = torch::tensor({0, 2, 3});
      const torch::Tensor output =
          attend::attention(with[0], with[1], with[2], AttentionOptions().attn_mask(mask).backend(backend));
      const torch::Tensor without =
          attend::attention(with[0].index_select(2, others), with[1], with[2], AttentionOptions().backend(backend));
      CHECK(max_difference(output.index_select(2, others), without) < 1e-12);
      const auto gradients = torch::autograd::grad({output.pow(2).sum()}, with);
      const auto expected = torch::autograd::grad({without.pow(2).sum()}, with);
      for (int i = 0; i < 3; ++i) CHECK(max_difference(gradients[i], expected[i]) < 1e-12);
    }
  }
}

}  // namespace empty_test
