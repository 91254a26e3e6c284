// SPDX-License-Identifier: MIT

// Tests backend objects that are passed to the option backend or to a BackendGuard.

#include <attend/attention/attention_backend.h>
#include <attend/attention/attention_node.h>
#include <attend/attention/variant.h>

#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/layers/multihead_attention.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace {

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::BackendChoice;
using attend::detail::AttentionTensors;
using attend::detail::KernelResult;
using attend::detail::Problem;
using attend::test::max_difference;
using attend::test::message_of;

/// A backend object as a header of a new device would make it: it scales the scores of one type of score_mod, with a
/// backward pass written by hand.
struct Times {
  double factor = 1.0;
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate) const {
    return T(factor) * score;
  }
};

class HandWritten final : public attend::detail::KernelBackend {
 public:
  Backend name() const override { return Backend::kGiven; }

  bool can_run(const Problem& problem, std::string* reason) const override {
    using attend::detail::refused;
    if (problem.attn_mask.defined()) return refused(reason, "HandWritten supports no attn_mask.");
    if (problem.variant != nullptr && times(problem) == nullptr)
      return refused(reason, "HandWritten was made for another score_mod.");
    return true;
  }
  std::string copies(const Problem&) const override { return ""; }
  std::string how(const Problem&) const override { return "HandWritten runs two products."; }

  Problem readable(const Problem& problem) const override { return problem; }

  KernelResult forward(const Problem& problem, bool with_backward) const override {
    ++forward_passes;
    KernelResult result;
    const torch::Tensor weights = torch::softmax(scale(problem) * problem.query.matmul(problem.key.mT()), -1);
    result.output = weights.matmul(problem.value);
    if (with_backward) result.saved = weights;
    return result;
  }

  AttentionTensors backward(const Problem& problem, const KernelResult& result,
                            const AttentionResult& gradients) const override {
    ++backward_passes;
    const torch::Tensor &weights = result.saved, by_weight = gradients.output.matmul(problem.value.mT());
    const torch::Tensor by_score = scale(problem) * weights * (by_weight - (by_weight * weights).sum(-1, true));
    AttentionTensors results;
    results.query = by_score.matmul(problem.key);
    results.key = by_score.mT().matmul(problem.query);
    results.value = weights.mT().matmul(gradients.output);
    return results;
  }

  mutable int forward_passes = 0, backward_passes = 0;

 private:
  static const attend::detail::TypedVariant<Times, attend::EveryKey>* times(const Problem& problem) {
    return dynamic_cast<const attend::detail::TypedVariant<Times, attend::EveryKey>*>(problem.variant.get());
  }
  static double scale(const Problem& problem) {
    return problem.scale * (problem.variant == nullptr ? 1.0 : times(problem)->score_mod().factor);
  }
};

BackendChoice choice_of(const std::shared_ptr<const attend::detail::AttentionBackend>& object) { return object; }

torch::Tensor leaf() { return torch::randn({2, 3, 5, 4}, torch::kDouble).requires_grad_(); }

torch::Tensor dense_formula(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                            double factor = 1.0) {
  return torch::softmax(factor / std::sqrt(4.0) * query.matmul(key.mT()), -1).matmul(value);
}

}  // namespace

TEST_CASE("AttentionOptions::backend(object): its passes compute output and gradients, and the graph keeps it alive") {
  const torch::Tensor q = leaf(), k = leaf(), v = leaf();
  auto object = std::make_shared<const HandWritten>();
  const HandWritten& seen = *object;
  const std::weak_ptr<const HandWritten> watched = object;
  torch::Tensor y = attend::attention(q, k, v, AttentionOptions().backend(choice_of(object)));
  CHECK(seen.forward_passes == 1);
  object.reset();
  CHECK_FALSE(watched.expired());
  const torch::Tensor weights = torch::randn_like(y), expected = dense_formula(q, k, v);
  const auto gradients = torch::autograd::grad({y}, {q, k, v}, {weights}, /*retain_graph=*/true);
  CHECK(seen.backward_passes == 1);
  CHECK(max_difference(y, expected) < 1e-12);
  const auto theirs = torch::autograd::grad({expected}, {q, k, v}, {weights});
  for (std::size_t i = 0; i < 3; ++i) CHECK(max_difference(gradients[i], theirs[i]) < 1e-12);

  y.reset();
  CHECK(watched.expired());
}

TEST_CASE(
    "AttentionOptions::backend(object): nobody waits for a GPU to look for reads outside of a score_mod's tensor") {
  Problem problem;
  problem.variant_tensors = {torch::zeros({1})};
  const torch::Tensor elsewhere = torch::empty({1, 1, 1, 1}, torch::kMeta);  // reading it throws, as no number is there
  CHECK_THROWS(attend::detail::check_reads(problem, Backend::kReference, elsewhere));
  CHECK_NOTHROW(attend::detail::check_reads(problem, Backend::kGiven, elsewhere));
}

TEST_CASE("AttentionOptions::backend(object): second derivatives, and an error after a change in place") {
  const torch::Tensor q = leaf(), k = leaf(), v = leaf();
  const auto options = AttentionOptions().backend(choice_of(std::make_shared<HandWritten>()));
  const auto second = [&](const torch::Tensor& y) {
    const torch::Tensor first = torch::autograd::grad({y.pow(2).sum()}, {q}, {}, /*retain_graph=*/true, true)[0];
    return torch::autograd::grad({first.pow(2).sum()}, {k})[0];
  };
  CHECK(max_difference(second(attend::attention(q, k, v, options)), second(dense_formula(q, k, v))) < 1e-10);

  const torch::Tensor changed = k.clone(), y = attend::attention(q, changed, v, options);
  changed.mul_(2);
  CHECK(message_of<c10::Error>([&] { y.sum().backward(); }).find("modified by an inplace operation") !=
        std::string::npos);
}

TEST_CASE("AttentionOptions::backend(object): a call that it cannot run throws its reason, and explain() names it") {
  const torch::Tensor x = torch::randn({1, 2, 5, 4});
  const auto options = AttentionOptions().backend(choice_of(std::make_shared<HandWritten>()));
  const std::string refused = "attend::attention: the requested backend cannot run. HandWritten supports no attn_mask.";
  CHECK(message_of<c10::NotImplementedError>([&] {
          attend::attention(x, x, x, AttentionOptions(options).attn_mask(torch::ones({5, 5}, torch::kBool)));
        }) == refused);
  const attend::Explanation plan = attend::explain(x, x, x, options);
  CHECK(plan.backend == Backend::kGiven);
  CHECK(plan.text() == "HandWritten runs two products.");
  for (const BackendChoice& none : {BackendChoice(Backend::kGiven), choice_of(nullptr)})
    CHECK(message_of<c10::ValueError>([&] { attend::attention(x, x, x, AttentionOptions().backend(none)); }) ==
          "attend::attention: unknown backend kGiven");
}

TEST_CASE("AttentionOptions::backend(object): it overrides a BackendGuard, and layers pass it on") {
  const auto object = std::make_shared<const HandWritten>();
  const attend::BackendGuard guard(Backend::kCpu);
  const torch::Tensor x = torch::randn({1, 2, 5, 4});
  attend::attention(x, x, x, AttentionOptions().backend(choice_of(object)));
  CHECK(object->forward_passes == 1);
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(8, 2).backend(choice_of(object)));
  const torch::Tensor tokens = torch::randn({5, 1, 8});
  CHECK(std::get<0>(layer(tokens, tokens, tokens)).sizes() == tokens.sizes());
  CHECK(object->forward_passes == 2);
  CHECK(layer->explain(tokens, tokens, tokens).backend == Backend::kGiven);
}

TEST_CASE("BackendGuard: an object computes the calls of its scope, and the graph keeps it alive after the scope") {
  const torch::Tensor q = leaf(), k = leaf(), v = leaf();
  auto object = std::make_shared<const HandWritten>();
  const HandWritten& seen = *object;
  const std::weak_ptr<const HandWritten> watched = object;
  torch::Tensor y;
  {
    const attend::BackendGuard guard(choice_of(object));
    object.reset();
    CHECK(attend::BackendGuard::current() == Backend::kGiven);
    CHECK(attend::BackendGuard::current_object() == watched.lock());
    y = attend::attention(q, k, v);
    CHECK(seen.forward_passes == 1);
    CHECK(attend::explain(q, k, v).backend == Backend::kGiven);
    attend::attention(q, k, v, AttentionOptions().backend(Backend::kReference));  // the option overrides the guard
    {
      const attend::BackendGuard inner(Backend::kAuto);
      CHECK(attend::BackendGuard::current_object() == nullptr);
      attend::attention(q, k, v);
    }
    CHECK(seen.forward_passes == 1);
    attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(8, 2));
    const torch::Tensor tokens = torch::randn({5, 1, 8});
    layer(tokens, tokens, tokens);
    CHECK(seen.forward_passes == 2);
    CHECK(max_difference(attend::flex_attention(q, k, v, Times{3.0}), dense_formula(q, k, v, 3.0)) < 1e-12);
    CHECK(message_of<c10::NotImplementedError>([&] {
            attend::attention(q, k, v, AttentionOptions().attn_mask(torch::ones({5, 5}, torch::kBool)));
          }) == "attend::attention: the requested backend cannot run. HandWritten supports no attn_mask.");
  }
  CHECK(attend::BackendGuard::current() == Backend::kAuto);
  const torch::Tensor weights = torch::randn_like(y), expected = dense_formula(q, k, v);
  const auto gradients = torch::autograd::grad({y}, {q, k, v}, {weights}, /*retain_graph=*/true);
  CHECK(seen.backward_passes == 1);
  const auto theirs = torch::autograd::grad({expected}, {q, k, v}, {weights});
  for (std::size_t i = 0; i < 3; ++i) CHECK(max_difference(gradients[i], theirs[i]) < 1e-12);
  y.reset();
  CHECK(watched.expired());
}

TEST_CASE("flex_attention: a backend object knows the type of a score_mod, reads its members, and refuses another") {
  const torch::Tensor q = leaf(), k = leaf(), v = leaf();
  const auto object = std::make_shared<const HandWritten>();
  const auto options = AttentionOptions().backend(choice_of(object));
  CHECK(max_difference(attend::flex_attention(q, k, v, Times{3.0}, attend::EveryKey{}, options),
                       dense_formula(q, k, v, 3.0)) < 1e-12);
  CHECK(object->forward_passes == 1);
  CHECK(message_of<c10::NotImplementedError>([&] {
          attend::flex_attention(q, k, v, attend::Softcap{30}, attend::EveryKey{}, options);
        }).find("HandWritten was made for another score_mod.") != std::string::npos);
}
