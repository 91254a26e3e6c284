// SPDX-License-Identifier: MIT

// Tests attention_with_lse(). Its results and gradients for each option are compared with PyTorch's in
// tests/attention_test.cpp, and with finite differences in tests/attention/gradients_test.cpp.

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::test::causal;
using attend::test::check_as_accurate_as;
using attend::test::everywhere;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::kNamedBackends;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::same;

namespace log_sum_exp_test {
namespace {

/// Random float64 query, key and value with two batch entries and two query heads.
std::vector<torch::Tensor> inputs(std::int64_t length, std::int64_t keys, std::int64_t kv_heads = 2) {
  std::vector<torch::Tensor> tensors;
  tensors.push_back(torch::randn({2, 2, length, 8}, torch::kDouble).requires_grad_());
  for (int i = 0; i < 2; ++i) tensors.push_back(torch::randn({2, kv_heads, keys, 8}, torch::kDouble).requires_grad_());
  return tensors;
}

AttentionResult with_lse(const std::vector<torch::Tensor>& in, const AttentionOptions& options) {
  return attend::attention_with_lse(in[0], in[1], in[2], options);
}

/// The dense formula with torch::logsumexp.
AttentionResult formula(const std::vector<torch::Tensor>& in, double scale, bool is_causal = false) {
  return attend::test::dense(in, same, is_causal ? causal : everywhere, scale);
}

}  // namespace

TEST_CASE("attention_with_lse: the log-sum-exp is float32 (float64 for float64), as accurate as torch::logsumexp") {
  const std::vector<torch::Tensor> drawn = inputs(33, 65);
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : kNamedBackends) {
      CAPTURE(dtype);
      CAPTURE(backend);
      std::vector<torch::Tensor> rounded, exact;
      for (const torch::Tensor& tensor : drawn) {
        rounded.push_back(tensor.detach().to(dtype));
        exact.push_back(rounded.back().to(torch::kDouble));
      }
      const AttentionResult result = with_lse(rounded, AttentionOptions().scale(0.5).backend(backend));
      const torch::Tensor expected = formula(exact, 0.5).log_sum_exp;
      CHECK(result.log_sum_exp.sizes() == torch::IntArrayRef{2, 2, 33});
      CHECK((result.output.scalar_type() == dtype));
      if (dtype == torch::kDouble) {
        CHECK((result.log_sum_exp.scalar_type() == torch::kDouble));
        CHECK(max_difference(result.log_sum_exp, expected) < 1e-12);
      } else {
        check_as_accurate_as(formula(rounded, 0.5).log_sum_exp.to(torch::kFloat), result.log_sum_exp, expected);
      }
    }
  }
}

TEST_CASE("attention_with_lse: the output equals that of attention() to the bit") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const std::vector<torch::Tensor> in = inputs(9, 9, 1);
    const AttentionOptions options = AttentionOptions().is_causal(true).backend(backend);
    CHECK(with_lse(in, options).output.equal(attend::attention(in[0], in[1], in[2], options)));
  }
}

TEST_CASE("attention_with_lse: gradients are right whether the output, the log-sum-exp, or both are used") {
  struct Case {
    std::string name;
    std::vector<torch::Tensor> in;
    double scale;
    bool is_causal = false;
  };
  for (const Case& c :
       {Case{"plain", inputs(5, 7), 0.4}, Case{"causal", inputs(6, 6), 1.0, true},
        Case{"grouped", inputs(5, 7, 1), 0.4}, Case{"grouped and causal", inputs(6, 6, 1), 1.5, true}}) {
    for (const Backend backend : kNamedBackends) {
      for (const auto& uses : {std::pair{true, false}, std::pair{false, true}, std::pair{true, true}}) {
        for (const bool create_graph : {false, true}) {
          CAPTURE(c.name);
          CAPTURE(backend);
          CAPTURE(uses.first);
          CAPTURE(uses.second);
          CAPTURE(create_graph);
          const auto gradients = [&](const AttentionResult& result) {
            torch::Tensor loss = torch::zeros({}, torch::kDouble);
            if (uses.first) loss = loss + result.output.pow(2).sum();
            if (uses.second) loss = loss + result.log_sum_exp.pow(3).sum();
            return torch::autograd::grad({loss}, c.in, {}, /*retain_graph=*/std::nullopt, create_graph,
                                         /*allow_unused=*/true);
          };
          const auto expected = gradients(formula(c.in, c.scale, c.is_causal));
          const auto ours =
              gradients(with_lse(c.in, AttentionOptions().scale(c.scale).is_causal(c.is_causal).backend(backend)));
          for (int i = 0; i < 3; ++i) {
            CAPTURE(i);
            const auto defined = [&](const torch::Tensor& t) { return t.defined() ? t : torch::zeros_like(c.in[i]); };
            const double largest = defined(expected[i]).abs().max().item<double>();
            CHECK(max_difference(defined(ours[i]), defined(expected[i])) < 1e-12 * std::max(1.0, largest));
          }
        }
      }
    }
  }
}

TEST_CASE("attention_with_lse: in lower precision its gradients are as accurate as those of the dense formula") {
  const std::vector<torch::Tensor> drawn = inputs(33, 33);
  const torch::Tensor weight = torch::randn({2, 2, 33}).to(torch::kBFloat16);
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : kNamedBackends) {
      CAPTURE(dtype);
      CAPTURE(backend);
      const auto gradients = [&](at::ScalarType computed_in, const auto& compute) {
        std::vector<torch::Tensor> in;
        for (const torch::Tensor& tensor : drawn)
          in.push_back(tensor.detach().to(dtype).to(computed_in).requires_grad_());
        const torch::Tensor log_sum_exp = compute(in).log_sum_exp;
        return torch::autograd::grad({log_sum_exp}, {in[0], in[1]}, {weight.to(log_sum_exp.scalar_type())});
      };
      const auto dense = [](const auto& in) { return formula(in, 0.5); };
      const auto exact = gradients(torch::kDouble, dense), plain = gradients(dtype, dense);
      const auto ours = gradients(
          dtype, [&](const auto& in) { return with_lse(in, AttentionOptions().scale(0.5).backend(backend)); });
      for (int i = 0; i < 2; ++i) {
        CAPTURE(i);
        check_as_accurate_as(plain[i], ours[i], exact[i]);
      }
    }
  }
}

TEST_CASE("attention_with_lse: queries that overlap in memory (unfold, expand) get the gradients of their copies") {
  const torch::Tensor signal = torch::randn({1, 1, 40}, torch::kDouble);
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const auto gradients = [&](const torch::Tensor& query) {
      const torch::Tensor key = query.detach().clone().requires_grad_();
      const AttentionResult result = with_lse({query, key, key}, AttentionOptions().backend(backend));
      return torch::autograd::grad({result.output.sum() + result.log_sum_exp.pow(2).sum()}, {key})[0];
    };
    const torch::Tensor windows = signal.unfold(2, 32, 1);  // (1, 1, 9, 32), stride 1 in both dimensions
    CHECK(max_difference(gradients(windows), gradients(windows.contiguous())) < 1e-12);
    const torch::Tensor one_row = signal.slice(2, 0, 32).unsqueeze(2).expand({1, 1, 9, 32});
    CHECK(max_difference(gradients(one_row), gradients(one_row.contiguous())) < 1e-12);
  }
}

TEST_CASE("attention_with_lse: explain(with_lse) names its backend and the reason against kSdpa") {
  const torch::Tensor x = torch::randn({1, 2, 4, 8}, torch::kDouble).requires_grad_();
  const AttentionOptions masked = AttentionOptions().attn_mask(torch::ones({4, 4}, torch::kBool));
  CHECK(attend::explain(x, x, x, {}, /*with_lse=*/true).backend == Backend::kSdpa);
  CHECK(attend::explain(x, x, x, masked).backend == Backend::kSdpa);
  const attend::Explanation explanation = attend::explain(x, x, x, masked, /*with_lse=*/true);
  CHECK(explanation.backend == Backend::kCpu);
  CHECK(explanation.why_not_faster == "");
  const AttentionOptions by_name = AttentionOptions(masked).backend(Backend::kSdpa);
  CHECK(attend::explain(x, x, x, by_name).backend == Backend::kSdpa);
  CHECK(message_of<c10::NotImplementedError>([&] {
          attend::explain(x, x, x, by_name, /*with_lse=*/true);
        }).find("kSdpa returns no log-sum-exp with attn_mask") != std::string::npos);
}

TEST_CASE("attention_with_lse: two halves of the keys, merged by log-sum-exp, equal the whole, with gradients") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const std::vector<torch::Tensor> in = inputs(5, 9);
    const torch::Tensor &q = in[0], &k = in[1], &v = in[2];
    const AttentionOptions options = AttentionOptions().backend(backend);
    const auto [y1, lse1] = attend::attention_with_lse(q, k.slice(2, 0, 4), v.slice(2, 0, 4), options);
    const auto [y2, lse2] = attend::attention_with_lse(q, k.slice(2, 4), v.slice(2, 4), options);
    const torch::Tensor share = torch::sigmoid(lse1 - lse2).unsqueeze(3);  // (N, H, L, 1)
    const torch::Tensor y = share * y1 + (1 - share) * y2;
    const AttentionResult whole = with_lse(in, options);
    CHECK(max_difference(y, whole.output) < 1e-12);
    CHECK(max_difference(torch::logaddexp(lse1, lse2), whole.log_sum_exp) < 1e-12);
    const auto merged_gradients = torch::autograd::grad({y.pow(2).sum()}, in);
    const auto whole_gradients = torch::autograd::grad({whole.output.pow(2).sum()}, in);
    for (int i = 0; i < 3; ++i) CHECK(max_difference(merged_gradients[i], whole_gradients[i]) < 1e-12);
  }
}

TEST_CASE("attention_with_lse: a half in which a query may attend to nothing adds nothing to the merged result") {
  const std::vector<torch::Tensor> in = inputs(3, 6);
  const torch::Tensor &q = in[0], &k = in[1], &v = in[2];
  const torch::Tensor mask = torch::tensor({true, true, true, false, false, false}).view({1, 6});
  for (const Backend backend : kAllBackendsWithAllOptions) {
    CAPTURE(backend);
    const auto half = [&](std::int64_t from, std::int64_t to) {
      return attend::attention_with_lse(q, k.slice(2, from, to), v.slice(2, from, to),
                                        AttentionOptions().attn_mask(mask.slice(1, from, to)).backend(backend));
    };
    const AttentionResult seen = half(0, 3), unseen = half(3, 6);
    const torch::Tensor share = torch::sigmoid(seen.log_sum_exp - unseen.log_sum_exp).unsqueeze(3);
    const torch::Tensor y = share * seen.output + (1 - share) * unseen.output;
    CHECK(max_difference(y, seen.output) == 0.0);
    const auto merged = torch::autograd::grad({y.sum()}, in, {}, /*retain_graph=*/true);
    const auto alone = torch::autograd::grad({seen.output.sum()}, in);
    for (int i = 0; i < 3; ++i) CHECK(max_difference(merged[i], alone[i]) < 1e-12);
  }
}

TEST_CASE("attention_with_lse: with attn_mask every backend is right, except kSdpa, which refuses") {
  const std::vector<torch::Tensor> in = inputs(4, 4);
  const AttentionOptions masked = AttentionOptions().attn_mask(torch::ones({4, 4}, torch::kBool).tril());
  CHECK(message_of<c10::NotImplementedError>([&] {
          with_lse(in, AttentionOptions(masked).backend(Backend::kSdpa));
        }).find("kSdpa returns no log-sum-exp with attn_mask") != std::string::npos);
  CHECK_NOTHROW(attend::attention(in[0], in[1], in[2], AttentionOptions(masked).backend(Backend::kSdpa)));
  const AttentionResult expected = formula(in, 1.0 / std::sqrt(8.0), /*is_causal=*/true);
  for (const Backend backend : kAllBackendsWithAllOptions) {
    CAPTURE(backend);
    const AttentionResult ours = with_lse(in, AttentionOptions(masked).backend(backend));
    CHECK(max_difference(ours.log_sum_exp, expected.log_sum_exp) < 1e-12);
  }
}

}  // namespace log_sum_exp_test
