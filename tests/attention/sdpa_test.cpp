// SPDX-License-Identifier: MIT
#include <attend/attention/backends.h>
#include <attend/attention/detail/calls_impl.h>
#include <attend/attention/sdpa.h>

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <ATen/Context.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

using attend::AttentionOptions;
using attend::Backend;
using attend::detail::attention_problem;
using attend::detail::Problem;
using attend::test::max_difference;
using attend::test::message_of;

namespace sdpa_test {
namespace {

const attend::detail::Sdpa& sdpa = attend::detail::kSdpaBackend;

/// ATen without its fused kernels, until the end of the scope.
struct WithoutFlash {
  WithoutFlash() { at::globalContext().setSDPUseFlash(false); }
  ~WithoutFlash() { at::globalContext().setSDPUseFlash(true); }
};

torch::Tensor x(at::IntArrayRef sizes) { return torch::randn(sizes); }

Problem with_lse(Problem problem) {
  problem.needs_log_sum_exp = true;
  return problem;
}

AttentionOptions by_name(const AttentionOptions& options = {}) {
  return AttentionOptions(options).backend(Backend::kSdpa);
}

/// The reason why a call with kSdpa requested by name is refused.
std::string why_not(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                    const AttentionOptions& options = {}) {
  const std::string asked_for = "attend::attention: the requested backend cannot run. ";
  const std::string message =
      message_of<c10::NotImplementedError>([&] { attend::explain(query, key, value, by_name(options)); });
  CHECK(message.substr(0, asked_for.size()) == asked_for);
  return message.size() < asked_for.size() ? "" : message.substr(asked_for.size());
}

}  // namespace

TEST_CASE("kSdpa: calls that ATen's kernels cannot compute exactly are refused with the reason") {
  const torch::Tensor plain = x({2, 4, 6, 8}), longer = x({2, 4, 7, 8}), one = x({1, 4, 6, 8}), more = x({2, 4, 33, 8});
  const torch::Tensor offsets = torch::tensor({0, 2, 6}, torch::kInt);
  struct Case {
    torch::Tensor query, key, value;
    AttentionOptions options;
    std::string reason;
  };
  const auto of_plain = [&](const AttentionOptions& options, const std::string& reason) {
    return Case{plain, plain, plain, options, reason};
  };
  const auto of_empty = [&](at::IntArrayRef query, at::IntArrayRef key) {
    return Case{x(query), x(key), x(key), {}, "kSdpa needs at least one batch entry, one query and one key."};
  };
  const std::string unequal_lengths = ", because ATen counts the diagonal from the first key, not from the last.";
  const Case cases[] = {
      of_empty({0, 4, 6, 8}, {0, 4, 6, 8}),
      of_empty({2, 4, 0, 8}, {2, 4, 6, 8}),
      of_empty({2, 4, 6, 8}, {2, 4, 0, 8}),
      {plain,
       plain,
       x({2, 4, 6, 3}),
       {},
       "kSdpa needs the same width for query and value; query has 8 and value has 3."},
      {one, one, one, AttentionOptions().query_offsets(offsets).key_offsets(offsets),
       "kSdpa does not support query_offsets and key_offsets on the CPU."},
      of_plain(AttentionOptions().window({2, -1}), "kSdpa supports a window on the CPU only as an (L, S) attn_mask."),
      of_plain(AttentionOptions().window({-1, 1}), "kSdpa supports a window on the CPU only as an (L, S) attn_mask."),
      of_plain(AttentionOptions().window({2, 0}).is_causal(true),
               "kSdpa supports a window on the CPU only as an (L, S) attn_mask."),
      of_plain(AttentionOptions().softcap(1.0), "kSdpa does not support softcap."),
      of_plain(AttentionOptions().alibi_slopes(torch::ones({4})),
               "kSdpa supports ALiBi only as an (H, L, S) attn_mask."),
      of_plain(AttentionOptions().dropout(0.1), "kSdpa does not support dropout on the CPU."),
      of_plain(AttentionOptions().attn_mask(torch::zeros({6, 6}).requires_grad_()),
               "kSdpa computes no gradient for attn_mask on the CPU."),
      {more, x({2, 4, 34, 8}), x({2, 4, 34, 8}), AttentionOptions().is_causal(true),
       "kSdpa does not support is_causal on the CPU for L = 33 and S = 34" + unequal_lengths},
      {longer, plain, plain, AttentionOptions().is_causal(true),
       "kSdpa does not support is_causal on the CPU for L = 7 and S = 6" + unequal_lengths},
      of_plain(AttentionOptions().scale(0.0), "kSdpa needs a positive scale; this one is 0."),
      of_plain(AttentionOptions().scale(-0.5), "kSdpa needs a positive scale; this one is -0.5."),
  };
  for (const Case& c : cases) {
    CAPTURE(c.reason);
    CHECK(why_not(c.query, c.key, c.value, c.options) == c.reason);
    CHECK(attend::explain(c.query, c.key, c.value, c.options).backend != Backend::kSdpa);
  }
}

TEST_CASE("kSdpa: explain() gives no reason against ATen's kernels if they can compute the call") {
  const torch::Tensor plain = x({2, 4, 6, 8}), grouped = x({2, 2, 6, 8}), single = x({2, 4, 1, 8});
  const torch::Tensor mask = torch::ones({6, 6}, torch::kBool);
  struct Case {
    torch::Tensor query, key;
    AttentionOptions options = {};
    std::string copies = "";
  };
  const std::string makes_mask = "It converts the bool attn_mask to a float mask.";
  const Case cases[] = {
      {plain, plain},
      {plain, grouped},
      {plain, x({2, 4, 9, 8})},
      {plain, plain, AttentionOptions().is_causal(true)},
      {plain, plain, AttentionOptions().window({-1, 0})},
      {single, plain, AttentionOptions().is_causal(true)},
      {plain, x({2, 4, 9, 8}), AttentionOptions().is_causal(true), "It makes an (L, S) mask for is_causal."},
      {plain, plain, AttentionOptions().window({5, 5}).dropout(0.0).softcap(0.0)},
      {plain, plain, AttentionOptions().attn_mask(mask), makes_mask},
      {plain, plain, AttentionOptions().attn_mask(x({2, 1, 6, 6}))},
      {plain, plain, AttentionOptions().attn_mask(mask).is_causal(true), makes_mask},
      {plain, plain, AttentionOptions().attn_mask(x({4, 1, 6})).is_causal(true).scale(2.0)},
      {plain.to(torch::kDouble), plain.to(torch::kDouble)},
      {plain.to(torch::kBFloat16), plain.to(torch::kBFloat16)},
      {plain.to(torch::kHalf), plain.to(torch::kHalf)},
  };
  for (const Case& c : cases) {
    CAPTURE(&c - cases);
    const attend::Explanation explanation = attend::explain(c.query, c.key, c.key, by_name(c.options));
    CHECK(explanation.backend == Backend::kSdpa);
    CHECK(explanation.why_not_faster == "");
    CHECK(explanation.copies == c.copies);
    CHECK(explanation.how == "kSdpa runs ATen's fused kernels.");
  }
  const torch::NoGradGuard no_grad;  // no gradient of the mask can be requested
  const AttentionOptions learned = by_name().attn_mask(torch::zeros({6, 6}).requires_grad_());
  CHECK(attend::explain(plain, plain, plain, learned).backend == Backend::kSdpa);
  CHECK_NOTHROW(attend::attention(plain, plain, plain, learned));
}

TEST_CASE("kSdpa: can_run() refuses calls for which ATen would use its math path") {
  const torch::Tensor y = x({1, 2, 8, 16});
  CHECK(sdpa.can_run(attention_problem(y, y, y, {})));
  const WithoutFlash without_flash;
  CHECK(why_not(y, y, y) == "kSdpa cannot run, because ATen has no fused kernel for this call (cpu, Float, width 16).");
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const torch::Tensor typed = y.to(dtype);
    CHECK(attend::explain(typed, typed, typed).backend == Backend::kCpu);
  }
}

TEST_CASE("kSdpa: can_run() gives the reason for a log-sum-exp with attn_mask and for other devices") {
  const torch::Tensor y = x({1, 2, 8, 16}), meta = y.to(torch::kMeta);
  const AttentionOptions causal = AttentionOptions().is_causal(true);
  const AttentionOptions masked = AttentionOptions().attn_mask(torch::ones({8, 8}, torch::kBool));
  const AttentionOptions masked_on_meta =
      AttentionOptions().attn_mask(torch::ones({8, 8}, torch::kBool).to(torch::kMeta));
  const std::string other_device = "kSdpa supports these options on the CPU and on CUDA only; the tensors are on meta.";
  const std::pair<Problem, std::string> cases[] = {
      {with_lse(attention_problem(y, y, y, causal)), ""},
      {with_lse(attention_problem(y, y, y, masked)),
       "kSdpa returns no log-sum-exp with attn_mask, because ATen's is wrong for a query that may attend to nothing."},
      {with_lse(attention_problem(meta, meta, meta, {})), other_device},
      {attention_problem(meta, meta, meta, AttentionOptions(masked_on_meta).is_causal(true)), other_device},
      {attention_problem(meta, meta, meta, {}),
       "kSdpa cannot run, because ATen has no fused kernel for this call (meta, Float, width 16)."},
  };
  for (const auto& problem_and_reason : cases) {
    CAPTURE(problem_and_reason.second);
    std::string reason;
    CHECK(sdpa.can_run(problem_and_reason.first, &reason) == problem_and_reason.second.empty());
    CHECK(reason == problem_and_reason.second);
  }
}

TEST_CASE("kSdpa: a channels-first view is copied, explain() reports the copy, and the fused kernel runs") {
  const torch::Tensor view = x({1, 2, 16, 8}).transpose(2, 3), copy = view.contiguous();  // (1, 2, 8, 16)
  const torch::Tensor mask = x({8, 8}), mask_view = mask.transpose(0, 1);
  const auto copies = [&](const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                          const torch::Tensor& attn_mask) {
    return attend::explain(query, key, value, by_name().attn_mask(attn_mask)).copies;
  };
  const std::string copies_of = "It copies the inputs whose strides ATen cannot read: ";
  CHECK(copies(copy, copy, copy, mask) == "");
  CHECK(copies(view, view, view, {}) == copies_of + "query, key, value.");
  CHECK(copies(copy, view, copy, mask) == copies_of + "key.");
  CHECK(copies(view, copy, copy, mask_view) == copies_of + "query, attn_mask.");
  CHECK(copies(view, copy, copy, mask_view > 0) ==
        copies_of + "query, attn_mask. It converts the bool attn_mask to a float mask.");
  const auto output = [](const torch::Tensor& tensor, const torch::Tensor& attn_mask) {
    return sdpa.run(attention_problem(tensor, tensor, tensor, AttentionOptions().attn_mask(attn_mask))).output;
  };
  CHECK(output(view, mask_view).equal(output(copy, mask_view.contiguous())));
}

TEST_CASE("kSdpa: the backward pass in half precision is computed in float32, and explain() reports it") {
  const auto copies = [](at::ScalarType dtype, bool needs_gradient) {
    const torch::Tensor query = torch::randn({2, 4, 6, 8}).to(dtype).requires_grad_(needs_gradient);
    return attend::explain(query, query, query, by_name()).copies;
  };
  const std::string converts = "It converts all inputs to float32 for the backward pass.";
  CHECK(copies(torch::kHalf, true) == converts);
  CHECK(copies(torch::kBFloat16, true) == converts);
  CHECK(copies(torch::kHalf, false) == "");
  CHECK(copies(torch::kFloat, true) == "");
}

TEST_CASE("kSdpa: is_causal with a single query needs no mask") {
  const torch::Tensor query = x({1, 2, 1, 16}), keys = x({1, 2, 8, 16});
  const auto causal = attention_problem(query, keys, keys, AttentionOptions().is_causal(true));
  CHECK(sdpa.can_run(causal));
  CHECK(sdpa.run(causal).output.equal(sdpa.run(attention_problem(query, keys, keys, {})).output));
}

TEST_CASE("kSdpa: is_causal with fewer queries than keys uses a mask, with and without an attn_mask of the caller") {
  for (const std::int64_t queries : {2, 5, 8}) {
    CAPTURE(queries);
    const torch::Tensor query = x({2, 4, queries, 8}).to(torch::kDouble), keys = x({2, 2, 11, 8}).to(torch::kDouble);
    torch::Tensor infinite = x({queries, 11}).to(torch::kDouble);
    infinite.select(1, 10).slice(0, 0, queries - 1).fill_(std::numeric_limits<double>::infinity());  // masked
    const torch::Tensor masks[] = {{}, x({queries, 11}).to(torch::kDouble), x({2, 1, 1, 11}) > -1.0, infinite};
    for (const torch::Tensor& mask : masks) {
      const AttentionOptions options = AttentionOptions().is_causal(true).attn_mask(mask);
      const auto problem = attention_problem(query, keys, keys, options);
      CHECK(sdpa.can_run(problem));
      CHECK(max_difference(sdpa.run(problem).output, attend::detail::Reference().run(problem).output) < 1e-12);
    }
  }
}

TEST_CASE("kSdpa: on the CPU second derivatives equal the reference") {
  const auto second = [](Backend backend) {
    torch::manual_seed(1);
    const torch::Tensor y = torch::randn({1, 2, 4, 8}, torch::kDouble).requires_grad_();
    const torch::Tensor output = attend::attention(y, y, y, AttentionOptions().is_causal(true).backend(backend));
    const auto gradient = torch::autograd::grad({output.pow(2).sum()}, {y}, {}, std::nullopt, /*create_graph=*/true)[0];
    return torch::autograd::grad({gradient.pow(2).sum()}, {y})[0];
  };
  CHECK(second(Backend::kReference).abs().max().item<double>() > 1.0);
  CHECK(max_difference(second(Backend::kSdpa), second(Backend::kReference)) < 1e-11);
}

TEST_CASE("kSdpa: NaN is handled as in kReference, where ATen alone would return zeros or ignore the mask") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  torch::Tensor bad = x({1, 1, 4, 8});
  const torch::Tensor good = bad.clone();
  bad[0][0][1][0] = nan;
  torch::Tensor mask = torch::ones({4, 4}, torch::kBool);
  mask.select(1, 1).fill_(false);

  const torch::Tensor of_bad_key =
      sdpa.run(attention_problem(good, bad, good, AttentionOptions().attn_mask(mask))).output;
  CHECK(max_difference(of_bad_key, attend::attention(good, good, good, AttentionOptions().attn_mask(mask))) < 1e-6);

  const torch::Tensor of_bad_query = sdpa.run(attention_problem(bad, good, good, {})).output;
  CHECK(of_bad_query.select(2, 1).isnan().all().item<bool>());
  CHECK(max_difference(of_bad_query, attend::detail::Reference().run(attention_problem(bad, good, good, {})).output) <
        1e-6);
}

}  // namespace sdpa_test
