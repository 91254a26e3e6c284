// SPDX-License-Identifier: MIT
#include <attend/positions/learned.h>

#include "support/errors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

using attend::learned_positions;
using attend::LearnedPositions;
using attend::LearnedPositionsOptions;
using attend::test::message_of;

TEST_CASE("LearnedPositions: it uses the first positions of the table, and only these get gradients") {
  LearnedPositions layer(LearnedPositionsOptions(3, 10));
  CHECK(learned_positions(layer->weight, 4).equal(layer->weight.slice(1, 0, 4)));
  const torch::Tensor x = torch::randn({2, 3, 4});
  const torch::Tensor y = layer(x);
  CHECK(y.equal(x + layer->weight.slice(1, 0, 4)));
  y.sum().backward();
  CHECK(layer->weight.grad().equal(torch::cat({torch::full({3, 4}, 2.0), torch::zeros({3, 6})}, 1)));
}

TEST_CASE("LearnedPositions: the table is initialized as normal with standard deviation 0.02") {
  torch::manual_seed(1);
  const torch::Tensor weight = LearnedPositions(100, 1000)->weight.detach();
  CHECK(weight.sizes() == torch::IntArrayRef{100, 1000});
  CHECK(std::abs(weight.mean().item<double>()) < 5 * 0.02 / std::sqrt(1e5));
  CHECK(weight.std().item<double>() == doctest::Approx(0.02).epsilon(0.02));
}

TEST_CASE("LearnedPositions: with batch_first the weight is that of torch.nn.Embedding") {
  LearnedPositions layer(LearnedPositionsOptions(3, 10).batch_first(true));
  CHECK(layer->weight.sizes() == torch::IntArrayRef{10, 3});
  const torch::Tensor x = torch::randn({2, 4, 3});
  CHECK(layer(x).equal(x + torch::embedding(layer->weight, torch::arange(4))));
  CHECK(message_of<c10::ValueError>([&] {
          layer(torch::randn({2, 11, 3}));
        }) == "attend::LearnedPositions: x (length 11) must be no longer than max_length (10)");
}

TEST_CASE("LearnedPositions: lengths beyond the table and options out of range are refused") {
  LearnedPositions layer(3, 10);
  const auto check = [](auto&& action, const std::string& expected) {
    CHECK(message_of<c10::ValueError>(action) == expected);
  };
  check(
      [&] {
        layer(torch::randn({2, 3, 11}));
      },
      "attend::LearnedPositions: x (length 11) must be no longer than max_length (10)");
  check([&] { learned_positions(layer->weight, 11); },
        "attend::learned_positions: length (11) must be at most the max_length (10) of the table");
  check([&] { learned_positions(layer->weight, 0); }, "attend::learned_positions: length (0) must be at least 1");
  check([&] { learned_positions(torch::zeros({3}), 1); },
        "attend::learned_positions: table must be 2-d (num_channels, max_length), got 1-d [3]");
  check([] { learned_positions({}, 1); },
        "attend::learned_positions: table must be a tensor (num_channels, max_length), got an undefined one");
  check([] { LearnedPositions(0, 10); }, "attend::LearnedPositions: num_channels (0) must be at least 1");
  check([] { LearnedPositions(3, -1); }, "attend::LearnedPositions: max_length (-1) must be at least 1");
  CHECK(message_of<c10::TypeError>([&] {
          layer(torch::randn({2, 3, 4}, torch::kDouble));
        }) ==
        "attend::LearnedPositions: x (Double) must have the dtype of the weights (Float); convert one of them "
        "with .to(dtype)");
}
