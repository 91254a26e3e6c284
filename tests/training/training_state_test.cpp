// SPDX-License-Identifier: MIT
#include <attend/training/training_state.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include <memory>
#include <vector>

using attend::test::StateByHand;
using torch::optim::OptimizerParamGroup;
using torch::optim::SGDOptions;

TEST_CASE("TrainingState: the learning rate is read from the first group and set for all groups") {
  const torch::Tensor a = torch::ones({2}).requires_grad_(), b = torch::ones({3}).requires_grad_();
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<torch::Tensor>{a}, std::make_unique<SGDOptions>(0.5));
  groups.emplace_back(std::vector<torch::Tensor>{b}, std::make_unique<SGDOptions>(0.25));
  torch::optim::SGD optimizer(groups, SGDOptions(0.125));
  StateByHand fit;
  attend::TrainingState state{*fit.model, optimizer, fit.history};

  CHECK(state.learning_rate() == 0.5);
  state.set_learning_rate(2);
  CHECK(state.learning_rate() == 2);

  a.mutable_grad() = torch::ones({2});
  b.mutable_grad() = torch::ones({3});
  optimizer.step();
  CHECK(torch::equal(a, torch::full({2}, -1.0)));
  CHECK(torch::equal(b, torch::full({3}, -1.0)));
}

TEST_CASE("TrainingState::gradients(): it returns the defined gradients in the order of the parameters, writable") {
  const torch::Tensor a = torch::ones({2}).requires_grad_(), b = torch::ones({3}).requires_grad_(),
                      c = torch::ones({4}).requires_grad_();
  torch::optim::SGD optimizer({OptimizerParamGroup({a, b}), OptimizerParamGroup({c})}, SGDOptions(1.0));
  StateByHand fit;
  const attend::TrainingState state{*fit.model, optimizer, fit.history};
  CHECK(state.gradients().empty());

  a.mutable_grad() = torch::ones({2});
  c.mutable_grad() = torch::ones({4});
  const std::vector<torch::Tensor> gradients = state.gradients();
  REQUIRE(gradients.size() == 2);
  CHECK(gradients[0].is_same(a.grad()));
  CHECK(gradients[1].is_same(c.grad()));

  gradients[1].mul_(3);
  optimizer.step();
  CHECK(torch::equal(a, torch::zeros({2})));
  CHECK(torch::equal(b, torch::ones({3})));
  CHECK(torch::equal(c, torch::full({4}, -2.0)));
}

TEST_CASE("TrainingState::gradients(): a parameter that is listed twice counts once") {
  const torch::Tensor a = torch::ones({2}).requires_grad_(), b = torch::ones({3}).requires_grad_();
  torch::optim::SGD optimizer({OptimizerParamGroup({a, b, a}), OptimizerParamGroup({b})}, SGDOptions(1.0));
  StateByHand fit;
  const attend::TrainingState state{*fit.model, optimizer, fit.history};
  a.mutable_grad() = torch::ones({2});
  b.mutable_grad() = torch::ones({3});
  const std::vector<torch::Tensor> gradients = state.gradients();
  REQUIRE(gradients.size() == 2);
  CHECK(gradients[0].is_same(a.grad()));
  CHECK(gradients[1].is_same(b.grad()));
}
