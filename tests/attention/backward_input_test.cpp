// SPDX-License-Identifier: MIT

// Tests backward passes with unusual tensors: output gradients without memory or with the negative bit, and inputs that
// set_data() has replaced since the forward pass.

#include <attend/flex_attention.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/self_attention1d.h>

#include "support/backends.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::message_of;

namespace {

struct DifferentiatedCall {
  std::string name;
  std::function<torch::Tensor(const torch::Tensor&)> of;  // x (2, 2, 20, 16)
};

std::vector<DifferentiatedCall> calls() {
  std::vector<DifferentiatedCall> calls;
  for (const Backend backend : attend::test::kNamedBackends)
    calls.push_back({c10::str("attention ", backend), [backend](const torch::Tensor& x) {
                       return attend::attention(x, x, x, AttentionOptions().backend(backend));
                     }});
  for (const Backend backend : attend::test::kNamedBackendsWithAllOptions)
    calls.push_back({c10::str("flex_attention ", backend), [backend](const torch::Tensor& x) {
                       return attend::flex_attention(x, x, x, attend::Softcap{3.0f}, attend::Causal{},
                                                     AttentionOptions().backend(backend));
                     }});
  attend::SelfAttention1d attention(16, 16, 16);
  calls.push_back({"SelfAttention1d",
                   [attention](const torch::Tensor& x) mutable { return attention(x.flatten(0, 1).transpose(1, 2)); }});
  attend::ConvStack convolutions(16, 16, 16);
  calls.push_back({"ConvStack", [convolutions](const torch::Tensor& x) mutable {
                     return convolutions(x.flatten(0, 1).transpose(1, 2));
                   }});
  return calls;
}

}  // namespace

TEST_CASE("attention: the output gradient may be a zero tensor without memory or have torch's negative bit") {
  torch::manual_seed(1);
  for (const DifferentiatedCall& call : calls()) {
    CAPTURE(call.name);
    const torch::Tensor x = torch::randn({2, 2, 20, 16}).requires_grad_();
    const torch::Tensor y = call.of(x);
    CHECK(torch::autograd::grad({torch::sgn(y).sum()}, {x}, {}, /*retain_graph=*/true)[0].eq(0.0).all().item<bool>());

    const torch::Tensor gradient = torch::randn_like(y);
    const torch::Tensor expected = torch::autograd::grad({y}, {x}, {gradient}, /*retain_graph=*/true)[0];
    CHECK(torch::autograd::grad({y}, {x}, {torch::_neg_view(-gradient)})[0].equal(expected));
  }
}

TEST_CASE("attention: create_graph with an L1 loss, whose second derivative is a zero tensor without memory") {
  const auto penalty = [](const torch::Tensor& y, const torch::Tensor& x, const torch::Tensor& sign) {
    const torch::Tensor loss = sign.defined() ? (y * sign).sum() : y.abs().sum();
    const torch::Tensor gradient = torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({gradient.square().sum()}, {x}, {}, false, false, /*allow_unused=*/true)[0];
  };
  torch::manual_seed(2);
  for (const DifferentiatedCall& call : calls()) {
    CAPTURE(call.name);
    const torch::Tensor x = torch::randn({2, 2, 20, 16}).requires_grad_();
    const torch::Tensor result = penalty(call.of(x), x, {});
    const torch::Tensor y = call.of(x), expected = penalty(y, x, y.detach().sign());  // |y| = y · sign y
    CHECK(result.allclose(expected, 1e-3, 1e-3));
  }
}

TEST_CASE("attention: set_data() with other sizes or another dtype before backward is an error") {
  for (const Backend backend : attend::test::kBackendsWithOwnGradients) {
    CAPTURE(backend);
    for (int replaced = 0; replaced < 3; ++replaced) {
      CAPTURE(replaced);
      torch::Tensor tensors[3];
      const auto message = [&](const torch::Tensor& data) {
        for (torch::Tensor& tensor : tensors) tensor = torch::randn({1, 2, 30, 16}).requires_grad_();
        const torch::Tensor y =
            attend::attention(tensors[0], tensors[1], tensors[2], AttentionOptions().backend(backend));
        tensors[replaced].set_data(data);
        return message_of<c10::Error>([&] { y.sum().backward(); });
      };
      const std::string begin =
          "attend::attention: the backward pass needs a tensor that was Float [1, 2, 30, 16] in the forward pass; "
          "set_data() has changed it to ";
      CHECK(message(torch::randn({1, 2, 300, 16})) == begin + "Float [1, 2, 300, 16]");
      CHECK(message(torch::randn({1, 2, 3, 16})) == begin + "Float [1, 2, 3, 16]");
      CHECK(message(torch::randn({1, 2, 30, 16}, torch::kDouble)) == begin + "Double [1, 2, 30, 16]");
    }
  }
}
