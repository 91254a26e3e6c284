// SPDX-License-Identifier: MIT

// What every layer must do, whatever it computes.

#include <attend/layers/conv_stack.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/self_attention1d.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

using attend::test::max_difference;
using attend::test::message_of;

namespace {

struct SelfAttentionCase {
  static constexpr const char* kName = "attend::SelfAttention1d";
  static constexpr const char* kPrinted = "attend::SelfAttention1d(4, 6, 8, num_heads=2, scale=kInverseSqrt)";
  static constexpr std::int64_t kOutChannels = 6;
  static attend::SelfAttention1d make() {
    return attend::SelfAttention1d(attend::SelfAttention1dOptions(4, 6, 8).num_heads(2).scale(attend::kInverseSqrt));
  }
};

struct ConvStackCase {
  static constexpr const char* kName = "attend::ConvStack";
  static constexpr const char* kPrinted =
      "attend::ConvStack(4, 5, 6, depth=3, kernel_size=4, activation=SiLU, activation_after_last=true)";
  static constexpr std::int64_t kOutChannels = 6;
  static attend::ConvStack make() {
    return attend::ConvStack(attend::ConvStackOptions(4, 5, 6)
                                 .depth(3)
                                 .kernel_size(4)
                                 .activation(attend::kSiLU)
                                 .activation_after_last(true));
  }
};

struct MultiheadAttentionCase {
  static constexpr const char* kPrinted =
      "attend::MultiheadAttention(4, 2, num_kv_heads=1, head_dim=3, kdim=4, vdim=4, bias=true, dropout=0, "
      "add_bias_kv=true, add_zero_attn=true, batch_first=true, is_causal=true, window=Window{2, 0}, scale=0.5)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::MultiheadAttention make() {
    return attend::MultiheadAttention(attend::MultiheadAttentionOptions(4, 2)
                                          .num_kv_heads(1)
                                          .head_dim(3)
                                          .add_bias_kv(true)
                                          .add_zero_attn(true)
                                          .batch_first(true)
                                          .is_causal(true)
                                          .window({2, 0})
                                          .scale(0.5));
  }
};

/// What a layer makes of a signal (N, 4, L).
template <class Layer>
torch::Tensor run(Layer& layer, const torch::Tensor& x) {
  return layer.forward(x);
}

torch::Tensor run(attend::MultiheadAttentionImpl& layer, const torch::Tensor& x) {
  const torch::Tensor tokens = x.transpose(1, 2);
  return std::get<0>(layer.forward(tokens, tokens, tokens)).transpose(1, 2);
}

}  // namespace

// Layers from a signal (N, 4, L) to a signal; and all layers, of whose tensors run() makes signals.
#define SIGNAL_LAYERS SelfAttentionCase, ConvStackCase
#define EVERY_LAYER SIGNAL_LAYERS, MultiheadAttentionCase

TEST_CASE_TEMPLATE("shapes: any length from 1, batches from 0", Case, EVERY_LAYER) {
  auto layer = Case::make();
  for (const std::int64_t batch : {0, 1, 3})
    for (const std::int64_t length : {1, 2, 17})
      CHECK(run(*layer, torch::randn({batch, 4, length})).sizes() ==
            torch::IntArrayRef{batch, Case::kOutChannels, length});
}

TEST_CASE_TEMPLATE("a clone computes the same and shares nothing", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const auto clone = std::dynamic_pointer_cast<typename decltype(layer)::Impl>(layer->clone());
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  CHECK(run(*clone, x).equal(y));
  torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
  CHECK(run(*layer, x).equal(y));
  CHECK_FALSE(run(*clone, x).equal(y));
}

TEST_CASE_TEMPLATE("torch::save and torch::load restore it", Case, EVERY_LAYER) {
  auto saved = Case::make(), loaded = Case::make();
  std::stringstream stream;
  torch::save(saved, stream);
  torch::load(loaded, stream);
  const torch::Tensor x = torch::randn({2, 4, 9});
  CHECK(run(*loaded, x).equal(run(*saved, x)));
}

TEST_CASE_TEMPLATE("it follows .to(dtype)", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  layer->to(torch::kDouble);
  CHECK(max_difference(run(*layer, x.to(torch::kDouble)), y) < 1e-5);
  layer->to(torch::kBFloat16);
  CHECK((run(*layer, x.to(torch::kBFloat16)).scalar_type() == torch::kBFloat16));
  CHECK(max_difference(run(*layer, x.to(torch::kBFloat16)), y) < 0.05);
}

TEST_CASE_TEMPLATE("it runs in Sequential and AnyModule", Case, SIGNAL_LAYERS) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  torch::nn::Sequential sequential(layer);
  CHECK(sequential->forward(x).equal(layer(x)));
  torch::nn::AnyModule any(layer);
  CHECK(any.forward(x).equal(layer(x)));
}

TEST_CASE_TEMPLATE("it prints its options", Case, EVERY_LAYER) {
  std::ostringstream stream;
  Case::make()->pretty_print(stream);
  CHECK(stream.str() == Case::kPrinted);
}

TEST_CASE_TEMPLATE("two threads may use it at once", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  std::vector<torch::Tensor> results(2);
  std::vector<std::thread> threads;
  for (torch::Tensor& result : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = run(*layer, x);
    });
  for (std::thread& thread : threads) thread.join();
  for (const torch::Tensor& result : results) CHECK(max_difference(result, y) < 1e-6);
}

TEST_CASE_TEMPLATE("every parameter receives a gradient; reset_parameters draws new weights", Case, EVERY_LAYER) {
  auto layer = Case::make();
  run(*layer, torch::randn({2, 4, 9})).pow(2).sum().backward();
  for (const auto& parameter : layer->named_parameters()) {
    CAPTURE(parameter.key());
    REQUIRE(parameter->grad().defined());
    CHECK(parameter->grad().abs().sum().template item<double>() > 0);
  }
  const torch::Tensor before = layer->parameters()[0].detach().clone();
  layer->reset_parameters();
  CHECK_FALSE(layer->parameters()[0].equal(before));
}

TEST_CASE_TEMPLATE("it runs under autocast", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  const attend::test::Autocast autocast;
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    const torch::Tensor cast = run(*layer, x.to(dtype));
    CHECK((cast.scalar_type() == torch::kBFloat16));
    CHECK(max_difference(cast, y) < 0.05);
  }
  CHECK(message_of<c10::TypeError>([&] {
          run(*layer, x.to(torch::kDouble));
        }).find("must have the dtype of the weights") != std::string::npos);
}

TEST_CASE_TEMPLATE("signals that do not fit are refused with the rule and the values", Case, SIGNAL_LAYERS) {
  auto layer = Case::make();
  const std::string name = Case::kName;
  const auto check = [&](auto type, const torch::Tensor& x, const std::string& expected) {
    using Error = typename decltype(type)::type;
    const std::string message = message_of<Error>([&] { layer(x); });
    CAPTURE(message);
    CHECK(message.find(name + ": " + expected) != std::string::npos);
  };
  const std::type_identity<c10::ValueError> value_error;
  const std::type_identity<c10::TypeError> type_error;
  check(value_error, {}, "x must be a tensor (N, 4, L), got an undefined one");
  check(value_error, torch::randn({4, 9}), "x must be 3-d (N, 4, L), got 2-d [4, 9]");
  check(value_error, torch::randn({2, 3, 9}), "x must have 4 channels (N, 4, L), got [2, 3, 9]");
  check(value_error, torch::randn({2, 4, 0}), "x must have a length of at least 1, got [2, 4, 0]");
  check(value_error, torch::randn({2, 4, 9}).to(torch::kMeta), "x (meta) must be on the device of the weights (cpu)");
  check(type_error, torch::randn({2, 4, 9}, torch::kDouble), "x (Double) must have the dtype of the weights (Float)");
}
