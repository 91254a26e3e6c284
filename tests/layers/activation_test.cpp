// SPDX-License-Identifier: MIT
#include <attend/layers/activation.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/activation.h>

#include <functional>
#include <sstream>

using attend::Activation;
using attend::test::max_difference;
using attend::test::message_of;

TEST_CASE("Activation: the named activations equal torch's") {
  namespace F = torch::nn::functional;
  const torch::Tensor x = torch::linspace(-4, 4, 101, torch::kDouble);
  struct Case {
    Activation activation;
    torch::Tensor expected;
    std::string name;
  };
  const Case cases[] = {
      {torch::kReLU, F::relu(x), "ReLU"},
      {torch::kGELU, F::gelu(x), "GELU"},
      {attend::kGELUTanh, F::gelu(x, F::GELUFuncOptions().approximate("tanh")), "GELUTanh"},
      {attend::kSiLU, F::silu(x), "SiLU"},
      {attend::kReLUSquared, F::relu(x) * F::relu(x), "ReLUSquared"},
      {torch::kTanh, torch::tanh(x), "Tanh"},
      {[](const torch::Tensor& t) { return t * t; }, x * x, "a function"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(c.activation(x).equal(c.expected));
    std::ostringstream stream;
    stream << c.activation;
    CHECK(stream.str() == c.name);
  }
}

TEST_CASE("Activation: an empty std::function is refused") {
  const std::function<torch::Tensor(const torch::Tensor&)> empty;
  CHECK(message_of<c10::ValueError>([&] {
          Activation activation(empty);
        }).find("attend::Activation: the function must not be empty") != std::string::npos);
}

TEST_CASE("Activation: a module without parameters is accepted; one with parameters is refused") {
  const Activation leaky = torch::nn::LeakyReLU(torch::nn::LeakyReLUOptions().negative_slope(0.5));
  CHECK(leaky(torch::full({1}, -2.0)).item<double>() == -1.0);
  const std::string message = message_of<c10::ValueError>([] { Activation activation(torch::nn::PReLU{}); });
  CHECK(message.find("attend::Activation: the module (torch::nn::PReLU") != std::string::npos);
}
