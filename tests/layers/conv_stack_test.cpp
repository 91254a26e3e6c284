// SPDX-License-Identifier: MIT
#include <attend/layers/conv_stack.h>

#include "support/accuracy.h"
#include "support/errors.h"
#include "support/layers.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>

#include <map>
#include <string>

using attend::ConvStack;
using attend::ConvStackOptions;
using attend::test::check_gradients;
using attend::test::copy_parameters;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;

TEST_CASE("ConvStack: it loads a state dict of Python's nn.Sequential; results and gradients equal Python's") {
  const std::map<std::string, torch::Tensor> data = reference_data("conv_stack");
  const std::map<std::string, attend::Activation> activations{{"relu", torch::kReLU},
                                                              {"gelu", torch::kGELU},
                                                              {"gelu_tanh", attend::kGELUTanh},
                                                              {"silu", attend::kSiLU},
                                                              {"tanh", torch::kTanh}};
  for (const auto& [name, activation] : activations) {
    for (const int kernel_size : {1, 4, 5}) {
      const std::string prefix = name + "_" + std::to_string(kernel_size) + "/";
      CAPTURE(prefix);
      ConvStack stack(ConvStackOptions(2, 6, 3).depth(3).kernel_size(kernel_size).activation(activation));
      stack->to(torch::kDouble);
      copy_parameters(data, prefix, *stack);
      torch::Tensor x = data.at(prefix + "x").clone().requires_grad_();
      const torch::Tensor y = stack(x);
      CHECK(max_difference(y, data.at(prefix + "output")) < 1e-12);
      y.backward(data.at(prefix + "output_gradient"));
      CHECK(max_difference(x.grad(), data.at(prefix + "x_gradient")) < 1e-12);
      check_gradients(data, prefix, *stack);
    }
  }
}

TEST_CASE("ConvStack: the convolution net of the experiment has 62,337 parameters, initialized as torch's Conv1d") {
  torch::manual_seed(3);
  ConvStack stack(
      ConvStackOptions(1, 64, 1).depth(5).kernel_size(5).activation(torch::kReLU).backend(attend::Backend::kReference));
  torch::manual_seed(3);
  torch::nn::Sequential sequential;
  const int channels[] = {1, 64, 64, 64, 64, 1};
  for (int i = 0; i < 5; ++i) {
    if (i > 0) sequential->push_back(torch::nn::ReLU());
    sequential->push_back(
        torch::nn::Conv1d(torch::nn::Conv1dOptions(channels[i], channels[i + 1], 5).padding(torch::kSame)));
  }
  std::int64_t count = 0;
  const auto expected = sequential->named_parameters();
  for (const auto& parameter : stack->named_parameters()) {
    count += parameter->numel();
    CHECK(parameter.value().equal(expected[parameter.key()]));
  }
  CHECK(count == 62'337);
  const torch::Tensor x = torch::randn({2, 1, 100});
  CHECK(stack(x).equal(sequential->forward(x)));
}

TEST_CASE("ConvStack: depth(1) is one convolution; activation_after_last adds an activation at the end") {
  ConvStack one(ConvStackOptions(2, 99, 3).depth(1));
  CHECK(one->parameters()[0].sizes() == torch::IntArrayRef{3, 2, 5});
  const torch::Tensor x = torch::randn({2, 2, 9});
  ConvStack rectified(ConvStackOptions(2, 4, 3).depth(2).activation_after_last(true));
  ConvStack plain(ConvStackOptions(2, 4, 3).depth(2));
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < 4; ++i) plain->parameters()[i].copy_(rectified->parameters()[i]);
  CHECK(rectified(x).equal(plain(x).relu()));
}

TEST_CASE("ConvStack: invalid options and signals are refused with the rule and the value") {
  const std::pair<ConvStackOptions, std::string> cases[] = {
      {ConvStackOptions(0, 4, 1), "attend::ConvStack: in_channels (0) must be at least 1"},
      {ConvStackOptions(1, -4, 1), "attend::ConvStack: hidden_channels (-4) must be at least 1"},
      {ConvStackOptions(1, 4, 0), "attend::ConvStack: out_channels (0) must be at least 1"},
      {ConvStackOptions(1, 4, 1).depth(0), "attend::ConvStack: depth (0) must be at least 1"},
      {ConvStackOptions(1, 4, 1).kernel_size(0), "attend::ConvStack: kernel_size (0) must be at least 1"},
  };
  for (const auto& c : cases)
    CHECK(message_of<c10::ValueError>([&] { ConvStack stack(c.first); }).find(c.second) != std::string::npos);
}
