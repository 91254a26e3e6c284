// SPDX-License-Identifier: MIT
#include <attend/data/standardize.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>

#include <cmath>
#include <limits>
#include <memory>
#include <sstream>
#include <string>

using attend::Standardize;
using attend::StandardizeOptions;
using attend::test::max_difference;
using attend::test::message_of;

TEST_CASE("Standardize: data get mean 0 and standard deviation 1, and inverse() restores them") {
  torch::manual_seed(1);
  const torch::Tensor data = torch::randn({50, 3, 20}) * 4 + 7;
  Standardize standardize(data);
  const torch::Tensor y = standardize(data);
  CHECK(std::abs(y.mean().item<double>()) < 1e-5);
  CHECK(y.std().item<double>() == doctest::Approx(1).epsilon(1e-5));
  CHECK(max_difference(standardize->inverse(y), data) < 1e-5);
  // by hand: mean 2, deviation √(2 / 1)
  Standardize two(torch::tensor({1.0, 3.0}));
  CHECK(max_difference(two(torch::tensor({1.0f, 3.0f})), torch::tensor({-std::sqrt(0.5), std::sqrt(0.5)})) < 1e-6);
}

TEST_CASE("Standardize: without data it is the identity until a mean and deviation are loaded") {
  const torch::Tensor x = torch::randn({2, 1, 5});
  Standardize standardize;
  CHECK(standardize(x).equal(x));
  CHECK(standardize->parameters().empty());  // nothing to train
}

TEST_CASE("Standardize: it is saved, loaded and cloned with a model") {
  torch::nn::Sequential saved(Standardize(StandardizeOptions().mean(3.5).deviation(2)), torch::nn::Linear(4, 2));
  torch::nn::Sequential loaded(Standardize(), torch::nn::Linear(4, 2));
  std::stringstream stream;
  torch::save(saved, stream);
  torch::load(loaded, stream);
  const torch::Tensor x = torch::randn({3, 4});
  CHECK(loaded->forward(x).equal(saved->forward(x)));
  CHECK(loaded->named_buffers()["0.mean"].item<double>() == 3.5);
  const auto clone = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(loaded->clone());
  CHECK(clone->forward(x).equal(saved->forward(x)));
  std::ostringstream printed;
  loaded->children()[0]->pretty_print(printed);
  CHECK(printed.str() == "attend::Standardize(mean=3.5, deviation=2)");
}

TEST_CASE("Standardize: the output has the dtype of the input") {
  Standardize standardize(StandardizeOptions().mean(1).deviation(2));
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16})
    CHECK((standardize(torch::ones({3}, dtype)).scalar_type() == dtype));
}

TEST_CASE("Standardize: sparse tensors and tensors on another device are refused; CPU buffers serve every device") {
  const torch::Tensor x = torch::ones({3}), on_meta = x.to(torch::kMeta);
  Standardize standardize;
  CHECK(standardize(on_meta).is_meta());
  CHECK(message_of<c10::TypeError>([&] { standardize(x.to_sparse()); }) ==
        "attend::Standardize: x must be dense, got the layout Sparse; convert it with .to_dense()");
  CHECK(message_of<c10::ValueError>([&] { standardize->inverse({}); }) ==
        "attend::Standardize: y must be a tensor, got an undefined one");
  standardize->mean = standardize->mean.to(torch::kMeta);
  standardize->deviation = standardize->deviation.to(torch::kMeta);
  CHECK(standardize(on_meta).is_meta());
  const std::string expected = " (cpu) must be on the device of the weights (meta); move one of them with .to(device)";
  CHECK(message_of<c10::ValueError>([&] { standardize(x); }) == "attend::Standardize: x" + expected);
  CHECK(message_of<c10::ValueError>([&] { standardize->inverse(x); }) == "attend::Standardize: y" + expected);
}

TEST_CASE("Standardize: data and options out of range are refused with the rule and the value") {
  const auto check = [](auto&& action, const std::string& expected) {
    CHECK(message_of<c10::ValueError>(action) == "attend::Standardize: " + expected);
  };
  check([] { Standardize standardize(torch::Tensor{}); }, "data (0 elements) must have at least 2 elements");
  check([] { Standardize standardize(torch::ones({1})); }, "data (1 elements) must have at least 2 elements");
  check([] { Standardize standardize(torch::ones({4})); }, "deviation (0) must be above 0 and finite in float32");
  check([] { Standardize standardize(torch::full({4}, NAN)); }, "mean (nan) must be finite in float32");
  check([] { Standardize standardize(StandardizeOptions().deviation(-1)); },
        "deviation (-1) must be above 0 and finite in float32");
  check([] { Standardize standardize(StandardizeOptions().deviation(1e-50)); },
        "deviation (1e-50) must be above 0 and finite in float32");
  check([] { Standardize standardize(StandardizeOptions().mean(std::numeric_limits<double>::infinity())); },
        "mean (inf) must be finite in float32");
}
