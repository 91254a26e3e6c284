// SPDX-License-Identifier: MIT
#include <attend/attention/sdpa.h>

#include <attend/attention/reference.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <ATen/Context.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <limits>

using attend::AttentionOptions;
using attend::detail::attention_problem;
using attend::detail::Sdpa;

namespace {

/// ATen without its fused kernels, until the end of the scope.
struct WithoutFlash {
  WithoutFlash() { at::globalContext().setSDPUseFlash(false); }
  ~WithoutFlash() { at::globalContext().setSDPUseFlash(true); }
};

}  // namespace

TEST_CASE("where ATen would take its math path, the backend says that it cannot") {
  const torch::Tensor x = torch::randn({1, 2, 8, 16});
  CHECK_FALSE(Sdpa::why_not(attention_problem(x, x, x, {})).has_value());
  const WithoutFlash without_flash;
  const std::optional<std::string> reason = Sdpa::why_not(attention_problem(x, x, x, {}));
  REQUIRE(reason.has_value());
  CHECK(*reason == "kSdpa: ATen has no fused kernel for this call (cpu, Float, width 16)");
}

TEST_CASE("a channels-first view is copied and reaches the fused kernel") {
  const torch::Tensor view = torch::randn({1, 2, 16, 8}).transpose(2, 3);  // (1, 2, 8, 16)
  const auto problem = attention_problem(view, view, view, {});
  CHECK_FALSE(Sdpa::why_not(problem).has_value());
  CHECK(Sdpa::copies(problem) == "kSdpa copies what is not contiguous along its last dimension: query, key, value");
  const torch::Tensor copy = view.contiguous();
  CHECK(Sdpa::run(problem).equal(Sdpa::run(attention_problem(copy, copy, copy, {}))));
}

TEST_CASE("a single query is causal without a mask") {
  const torch::Tensor query = torch::randn({1, 2, 1, 16}), keys = torch::randn({1, 2, 8, 16});
  const auto causal = attention_problem(query, keys, keys, AttentionOptions().is_causal(true));
  CHECK_FALSE(Sdpa::why_not(causal).has_value());
  CHECK(Sdpa::run(causal).equal(Sdpa::run(attention_problem(query, keys, keys, {}))));
}

TEST_CASE("what stays ATen's: no second derivative, and zeros for a query that holds NaN") {
  torch::Tensor x = torch::randn({1, 1, 4, 8}).requires_grad_();
  const torch::Tensor y = Sdpa::run(attention_problem(x, x, x, {}));
  const torch::Tensor gradient = torch::autograd::grad({y.sum()}, {x}, {}, std::nullopt, /*create_graph=*/true)[0];
  CHECK(attend::test::message_of<c10::Error>([&] { gradient.pow(2).sum().backward(); }).find("is not implemented") !=
        std::string::npos);

  torch::Tensor query = x.detach().clone();
  query[0][0][1][0] = std::numeric_limits<float>::quiet_NaN();
  CHECK(Sdpa::run(attention_problem(query, x, x, {})).select(2, 1).eq(0).all().item<bool>());
  CHECK(attend::detail::Reference::run(attention_problem(query, x, x, {})).select(2, 1).isnan().all().item<bool>());
}
