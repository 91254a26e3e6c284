// SPDX-License-Identifier: MIT

// Tests attention() as a node of torch's autograd graph, on every backend.

#include <attend/attention/attention_node.h>

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"

#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::test::dense;
using attend::test::kBackendsWithOwnGradients;
using attend::test::kNamedBackends;
using attend::test::max_difference;
using attend::test::message_of;

namespace attention_node_test {
namespace {

torch::Tensor leaf(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble).requires_grad_(); }

torch::Tensor gradient_of(const torch::Tensor& scalar, const torch::Tensor& input, bool create_graph = false) {
  return torch::autograd::grad({scalar}, {input}, {}, /*retain_graph=*/std::nullopt, create_graph)[0];
}

}  // namespace

TEST_CASE("attention: one tensor as query, key and value has the right first, second and third derivatives") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const torch::Tensor x = leaf({1, 2, 4, 3});
    // A linear function of the second derivative does not amplify its rounding errors.
    const torch::Tensor weights = torch::randn_like(x);
    const auto derivatives = [&weights](const torch::Tensor& x, const torch::Tensor& output) {
      const torch::Tensor first = gradient_of(output.pow(2).sum(), x, /*create_graph=*/true);
      const torch::Tensor second = gradient_of(first.pow(2).sum(), x, /*create_graph=*/true);
      return std::vector<torch::Tensor>{first, second, gradient_of((second * weights).sum(), x)};
    };
    const auto ours = derivatives(x, attend::attention(x, x, x, AttentionOptions().backend(backend)));
    const auto theirs = derivatives(x, dense({x, x, x}).output);
    for (std::size_t order = 0; order < theirs.size(); ++order) {
      CAPTURE(order);
      const double largest = theirs[order].abs().max().item<double>();
      CHECK(max_difference(ours[order], theirs[order]) < 1e-12 * std::max(1.0, largest));
    }
    // The backward pass of the kernel.
    const torch::Tensor output = attend::attention(x, x, x, AttentionOptions().backend(backend));
    CHECK(max_difference(gradient_of(output.pow(2).sum(), x), theirs[0]) < 1e-12);
  }
}

TEST_CASE("attention: a tensor changed in place between forward and backward is an error, not a wrong gradient") {
  struct Case {
    std::string name;
    std::function<void(torch::Tensor*)> change;  // query, key, value, mask
    bool reference_needs_it = true;              // false: the backward pass of kReference does not read it
  };
  const Case cases[] = {
      {"query", [](torch::Tensor* tensors) { tensors[0].mul_(2.0); }},
      {"key", [](torch::Tensor* tensors) { tensors[1].mul_(2.0); }},
      {"value", [](torch::Tensor* tensors) { tensors[2].mul_(2.0); }},
      {"mask", [](torch::Tensor* tensors) { tensors[3].fill_(0.0); }, false},
  };
  for (const Case& c : cases) {
    for (const Backend backend : kNamedBackends) {
      for (const bool is_bool : {false, true}) {
        CAPTURE(c.name);
        CAPTURE(backend);
        CAPTURE(is_bool);
        const torch::Tensor inputs[] = {leaf({1, 1, 4, 8}), leaf({1, 1, 4, 8}), leaf({1, 1, 4, 8})};
        torch::Tensor mask = torch::randn({4, 4}, torch::kDouble);
        if (is_bool) mask = mask > -0.5;
        torch::Tensor tensors[] = {inputs[0].clone(), inputs[1].clone(), inputs[2].clone(), mask};
        const torch::Tensor output =
            attend::attention(tensors[0], tensors[1], tensors[2], AttentionOptions().attn_mask(mask).backend(backend));
        const torch::Tensor expected = torch::autograd::grad({output.sum()}, {inputs[0]}, {}, /*retain_graph=*/true)[0];
        {
          const torch::NoGradGuard no_grad;
          c.change(tensors);
        }
        const auto backward = [&] { return torch::autograd::grad({output.sum()}, {inputs[0]})[0]; };
        if (backend == Backend::kReference && !c.reference_needs_it)
          CHECK(max_difference(backward(), expected) < 1e-12);
        else
          CHECK(message_of<c10::Error>([&] { backward(); })
                    .find("one of the variables needed for gradient computation has been modified by an inplace "
                          "operation") != std::string::npos);
      }
    }
  }
}

TEST_CASE("query_offsets, key_offsets: a change in place between forward and backward is an error") {
  for (const bool is_query : {true, false}) {
    CAPTURE(is_query);
    const torch::Tensor x = leaf({1, 2, 6, 8});
    const torch::Tensor offsets[] = {torch::tensor({0, 2, 6}, torch::kInt), torch::tensor({0, 3, 6}, torch::kInt)};
    const torch::Tensor output =
        attend::attention(x, x, x, AttentionOptions().query_offsets(offsets[0]).key_offsets(offsets[1]));
    torch::autograd::grad({output.sum()}, {x}, {}, /*retain_graph=*/true);
    offsets[is_query ? 0 : 1].select(0, 2).fill_(1000);
    CHECK(message_of<c10::Error>([&] { gradient_of(output.sum(), x); }).find("modified by an inplace operation") !=
          std::string::npos);
  }
}

TEST_CASE("attention: after an in-place change of the output the gradient is right, or backward throws") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const torch::Tensor x = leaf({1, 2, 4, 8});
    const auto doubled = [&] {
      return attend::attention(x, x, x, AttentionOptions().backend(backend)).mul_(2.0).sum();
    };
    const torch::Tensor expected = gradient_of(2.0 * dense({x, x, x}).output.sum(), x);
    if (backend == Backend::kReference)
      CHECK(max_difference(gradient_of(doubled(), x), expected) < 1e-12);
    else
      CHECK(message_of<c10::Error>([&] { gradient_of(doubled(), x); }).find("modified by an inplace operation") !=
            std::string::npos);
  }
}

TEST_CASE("attention_with_lse: an in-place change of the log-sum-exp before backward is an error") {
  for (const Backend backend : kBackendsWithOwnGradients) {
    CAPTURE(backend);
    const torch::Tensor x = leaf({1, 2, 4, 8});
    const AttentionResult result = attend::attention_with_lse(x, x, x, AttentionOptions().backend(backend));
    const torch::Tensor loss = result.output.sum() + result.log_sum_exp.mul_(2.0).sum();
    CHECK(message_of<c10::Error>([&] { gradient_of(loss, x); }).find("modified by an inplace operation") !=
          std::string::npos);
  }
}

TEST_CASE("attention: forward-mode differentiation is refused") {
  torch::manual_seed(1);
  const torch::Tensor x = torch::randn({1, 1, 3, 4});
  const std::shared_ptr<torch::autograd::ForwardADLevel> level =
      torch::autograd::ForwardADLevel::get_by_idx(torch::autograd::ForwardADLevel::get_next_idx());
  const torch::Tensor with_tangent = at::_make_dual(x, torch::ones_like(x), 0);
  CHECK(message_of<c10::NotImplementedError>([&] { attend::attention(with_tangent, x, x); }) ==
        "attend::attention: fused kernels have no forward-mode derivative; set .backend(kReference)");
  const torch::Tensor y =
      attend::attention(with_tangent, x, x, attend::AttentionOptions().backend(attend::Backend::kReference));
  CHECK(y._fw_grad(0).defined());
  torch::autograd::ForwardADLevel::release_idx(0);
}

TEST_CASE("attention: a second backward pass gives the same with retain_graph, and torch's error without") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const torch::Tensor x = leaf({1, 2, 4, 8});
    // sum() saves no tensors, so the error comes from attention().
    const torch::Tensor loss = attend::attention(x, x, x, AttentionOptions().backend(backend)).sum();
    const auto backward = [&](bool retain_graph) { return torch::autograd::grad({loss}, {x}, {}, retain_graph)[0]; };
    const torch::Tensor first = backward(true);
    CHECK(backward(false).equal(first));
    CHECK(message_of<c10::Error>([&] { backward(false); }).find("backward through the graph a second time") !=
          std::string::npos);
  }
}

TEST_CASE("attention: any of query, key and value may need a gradient, and the others get none") {
  for (const Backend backend : kNamedBackends) {
    for (int needs = 0; needs < 8; ++needs) {
      CAPTURE(backend);
      CAPTURE(needs);
      torch::manual_seed(needs);
      std::vector<torch::Tensor> ours, theirs;
      for (int i = 0; i < 3; ++i) {
        const torch::Tensor tensor = torch::randn({1, 2, 4, 8}, torch::kDouble);
        for (auto* inputs : {&ours, &theirs}) inputs->push_back(tensor.clone().requires_grad_((needs >> i & 1) != 0));
      }
      const torch::Tensor output = attend::attention(ours[0], ours[1], ours[2], AttentionOptions().backend(backend));
      CHECK(output.requires_grad() == (needs != 0));
      if (needs == 0) continue;
      output.pow(2).sum().backward(/*gradient=*/{}, /*retain_graph=*/true);
      dense({theirs[0], theirs[1], theirs[2]}).output.pow(2).sum().backward();
      for (int i = 0; i < 3; ++i) {
        CAPTURE(i);
        REQUIRE(ours[i].grad().defined() == ((needs >> i & 1) != 0));
        if (ours[i].grad().defined()) CHECK(max_difference(ours[i].grad(), theirs[i].grad()) < 1e-12);
      }
      // The same with the differentiable backward pass.
      for (int i = 0; i < 3; ++i) {
        if (!ours[i].requires_grad()) continue;
        CAPTURE(i);
        CHECK(max_difference(gradient_of(output.pow(2).sum(), ours[i], /*create_graph=*/true), theirs[i].grad()) <
              1e-12);
      }
    }
  }
}

TEST_CASE("attention: without gradient mode and in inference mode nothing is saved, and the result is the same") {
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
      for (const std::int64_t length : {4, 100, 130}) {
        CAPTURE(dtype);
        CAPTURE(length);
        const torch::Tensor x = leaf({1, 2, length, 16}).detach().to(dtype).requires_grad_();
        const AttentionOptions options = AttentionOptions().backend(backend);
        const AttentionResult with = attend::attention_with_lse(x, x, x, options);
        const auto check_the_same = [&] {
          const AttentionResult without = attend::attention_with_lse(x, x, x, options);
          CHECK_FALSE(without.output.requires_grad());
          CHECK_FALSE(without.log_sum_exp.requires_grad());
          CHECK(without.output.equal(with.output));
          CHECK(without.log_sum_exp.equal(with.log_sum_exp));
        };
        {
          const torch::NoGradGuard no_grad;
          check_the_same();
        }
        const c10::InferenceMode inference_mode;
        check_the_same();
      }
    }
  }
}

TEST_CASE("attention: the backward pass within an autocast scope gives the same gradients as outside") {
  for (const Backend backend : kBackendsWithOwnGradients) {
    for (const bool create_graph : {false, true}) {
      CAPTURE(backend);
      CAPTURE(create_graph);
      const torch::Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_();
      const torch::Tensor loss = attend::attention(x, x, x, AttentionOptions().backend(backend)).sum();
      const auto gradient = [&] {
        return torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true, create_graph)[0].detach();
      };
      const torch::Tensor expected = gradient();
      const attend::test::Autocast autocast;
      CHECK(gradient().equal(expected));
    }
  }
}

TEST_CASE("attention: a discarded autograd graph frees its saved tensors") {
  torch::Tensor query = leaf({1, 2, 4, 8}).clone();
  const auto uses = query.use_count();
  for (const Backend backend : kNamedBackends) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions().backend(backend);
    attend::attention_with_lse(query, query, query, options);
    const auto& unused = attend::attention_with_lse(query, query, query, options).log_sum_exp;
    CHECK(unused.defined());
  }
  CHECK(query.use_count() == uses);
}

}  // namespace attention_node_test
