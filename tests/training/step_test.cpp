// SPDX-License-Identifier: MIT
#include <attend/training/step.h>

#include <attend/training/trainer.h>

#include "support/autocast.h"
#include "support/errors.h"
#include "training/support.h"

#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/loss.h>
#include <torch/optim/sgd.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::message_of;
using attend::test::Samples;
using torch::optim::SGD;
using torch::optim::SGDOptions;

namespace {

const auto kMeanSquare = [](const torch::Tensor& outputs, const torch::Tensor& targets) {
  return (outputs - targets).square().mean();
};

/// A module without a holder.
struct Doubler : torch::nn::Module {
  explicit Doubler(torch::Device device = torch::kCPU) {
    factor = register_parameter("factor", torch::full({1}, 2.0, torch::device(device).dtype(torch::kDouble)));
  }
  torch::Tensor forward(const torch::Tensor& inputs) { return factor * inputs; }
  torch::Tensor factor;
};

}  // namespace

TEST_CASE("TrainingStep: a step equals a hand-written loop: zero, forward, loss, backward, update") {
  const Samples data = linear_samples(8);
  const auto options = SGDOptions(0.1).momentum(0.9);  // with momentum, a missing or doubled step has a later effect

  torch::nn::Linear by_hand = linear_model();
  SGD optimizer_by_hand(by_hand->parameters(), options);
  torch::nn::Linear model = linear_model();
  SGD optimizer(model->parameters(), options);
  attend::TrainingStep step(model, kMeanSquare, optimizer);

  for (int i = 0; i < 5; ++i) {
    optimizer_by_hand.zero_grad();
    const torch::Tensor expected = kMeanSquare(by_hand->forward(data.x), data.y);
    expected.backward();
    optimizer_by_hand.step();

    const torch::Tensor loss = step(data.x, data.y);
    CHECK(torch::equal(loss, expected));
    CHECK(torch::equal(model->weight, by_hand->weight));
    CHECK(torch::equal(model->bias, by_hand->bias));
  }
  CHECK_FALSE(torch::equal(model->weight, linear_model()->weight));
}

TEST_CASE("TrainingStep: the two halves of a step equal the whole step; the first half changes no weights") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model(), in_halves = linear_model();
  SGD optimizer(model->parameters(), SGDOptions(0.1)), optimizer_in_halves(in_halves->parameters(), SGDOptions(0.1));
  attend::TrainingStep step(model, kMeanSquare, optimizer), halves(in_halves, kMeanSquare, optimizer_in_halves);

  const torch::Tensor loss = halves.backward(data.x, data.y);
  CHECK(torch::equal(in_halves->weight, linear_model()->weight));
  CHECK(torch::equal(in_halves->bias, linear_model()->bias));
  halves.update();
  CHECK(torch::equal(step(data.x, data.y), loss));
  CHECK(torch::equal(in_halves->weight, model->weight));
  CHECK(torch::equal(in_halves->bias, model->bias));
}

TEST_CASE("TrainingStep: gradients are those of the last batch alone") {
  const Samples first = linear_samples(8, 1), second = linear_samples(8, 2);
  torch::nn::Linear model = linear_model();
  SGD optimizer(model->parameters(), SGDOptions(0.1));
  attend::TrainingStep step(model, kMeanSquare, optimizer);
  step.backward(first.x, first.y);
  step.backward(second.x, second.y);
  const torch::Tensor difference = model->forward(second.x) - second.y;  // (8, 1)
  const torch::Tensor expected = 2 * (difference * second.x).mean(0, /*keepdim=*/true);
  CHECK(torch::allclose(model->weight.grad(), expected, 0, 1e-12));
}

TEST_CASE("TrainingStep: accumulated gradients are those of the weighted sum; the returned loss is the batch's own") {
  const Samples first = linear_samples(8, 1), second = linear_samples(4, 2);
  for (const torch::ScalarType dtype : {torch::kDouble, torch::kFloat}) {
    torch::nn::Linear model = linear_model();
    model->to(dtype);
    SGD optimizer(model->parameters(), SGDOptions(0.1));
    attend::TrainingStep step(model, kMeanSquare, optimizer);
    const auto mean_square = [&](const Samples& data) {
      return kMeanSquare(model->forward(data.x.to(dtype)), data.y.to(dtype));
    };
    const torch::Tensor expected =
        torch::autograd::grad({0.75 * mean_square(first) + 0.25 * mean_square(second)}, {model->weight})[0];

    step.backward(second.x.to(dtype), second.y.to(dtype));
    step.zero_gradients();
    for (const auto& [data, weight] : {std::pair(first, 0.75), std::pair(second, 0.25)}) {
      // The weight may have another dtype than the loss.
      const torch::Tensor loss =
          step.accumulate(data.x.to(dtype), data.y.to(dtype), torch::full({}, weight, torch::kDouble));
      CHECK(torch::equal(loss, mean_square(data)));
      CHECK_FALSE(loss.requires_grad());
    }
    CHECK(torch::allclose(model->weight.grad(), expected, 0, dtype == torch::kDouble ? 1e-12 : 1e-5));
    CHECK(torch::equal(model->weight, linear_model()->weight.to(dtype)));
    step.zero_gradients();
    CHECK_FALSE(model->weight.grad().defined());
  }
}

namespace {

/// The settings of autocast on the CPU.
struct AutocastState {
  bool is_enabled = at::autocast::is_autocast_enabled(at::kCPU);
  at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kCPU);
  bool is_caching = at::autocast::is_autocast_cache_enabled();
  bool operator==(const AutocastState&) const = default;

  void set() const {
    at::autocast::set_autocast_enabled(at::kCPU, is_enabled);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
    at::autocast::set_autocast_cache_enabled(is_caching);
  }
};

}  // namespace

TEST_CASE("TrainingStep: forward and loss run under its autocast; the caller's is restored, also after an exception") {
  const Samples data = linear_samples(8);
  const AutocastState before;
  for (const bool is_enabled : {false, true}) {
    for (const bool throws : {false, true}) {
      AutocastState callers;
      callers.is_enabled = is_enabled;
      callers.dtype = at::kHalf;
      callers.is_caching = !is_enabled;
      callers.set();
      AutocastState inside;
      torch::nn::Linear model = linear_model();
      SGD optimizer(model->parameters(), SGDOptions(0.1));
      const auto loss = [&](const torch::Tensor& outputs, const torch::Tensor& targets) {
        inside = AutocastState();
        if (throws) throw std::runtime_error("no loss");
        return kMeanSquare(outputs, targets);
      };
      attend::TrainingStep step(model, loss, optimizer, torch::kBFloat16);
      if (throws)
        CHECK(message_of<std::runtime_error>([&] { step(data.x, data.y); }) == "no loss");
      else
        step(data.x, data.y);
      const bool is_restored = AutocastState() == callers;
      before.set();
      CHECK(is_restored);
      CHECK((inside == AutocastState{true, at::kBFloat16, true}));
    }
  }
}

TEST_CASE("TrainingStep: changed weights are cast again under autocast, also within autocast of the caller") {
  const torch::Tensor x = torch::ones({2, 3}), y = torch::zeros({2, 1});
  torch::nn::Linear model = linear_model();
  model->to(torch::kFloat);
  SGD optimizer(model->parameters(), SGDOptions(0.1));
  attend::TrainingStep step(model, kMeanSquare, optimizer, torch::kBFloat16);
  const attend::test::Autocast callers;
  model->forward(x);  // the caller's autocast now caches a cast copy of the weights
  torch::nn::init::zeros_(model->weight);
  torch::nn::init::constant_(model->bias, 2);
  CHECK(step(x, y).item<float>() == 4);
}

TEST_CASE("TrainingStep: the returned loss is a 0-d tensor without an autograd graph") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model();
  SGD optimizer(model->parameters(), SGDOptions(0.1));
  attend::TrainingStep step(model, kMeanSquare, optimizer);
  for (const torch::Tensor& loss : {step.backward(data.x, data.y), step(data.x, data.y)}) {
    CHECK(loss.dim() == 0);
    CHECK_FALSE(loss.requires_grad());
    CHECK(loss.grad_fn() == nullptr);
  }
}

TEST_CASE("TrainingStep: the model may be a holder, a Sequential or a shared_ptr; the loss a function or a module") {
  const torch::Tensor x = torch::ones({4, 1}, torch::kDouble), y = torch::zeros({4, 1}, torch::kDouble);
  // factor = 2, so d(mean (factor · 1)²) = 4, and a step of rate 0.25 goes to 1.
  const auto after_a_step = [&](auto model, auto loss, const torch::Tensor& factor) {
    SGD optimizer({factor}, SGDOptions(0.25));
    attend::TrainingStep step(model, loss, optimizer);
    CHECK(step(x, y).template item<double>() == 4);
    CHECK(factor.item<double>() == 1);
  };

  for (const bool with_module : {false, true}) {
    CAPTURE(with_module);
    const auto with_loss = [&](auto model, const torch::Tensor& factor) {
      if (with_module)
        after_a_step(model, torch::nn::MSELoss(), factor);
      else
        after_a_step(model, kMeanSquare, factor);
    };
    const auto shared = std::make_shared<Doubler>();
    with_loss(shared, shared->factor);

    const auto inside = std::make_shared<Doubler>();
    with_loss(torch::nn::Sequential(inside, torch::nn::Identity()), inside->factor);

    torch::nn::Linear holder(torch::nn::LinearOptions(1, 1).bias(false));
    holder->to(torch::kDouble);
    torch::nn::init::constant_(holder->weight, 2);
    with_loss(holder, holder->weight);
  }
}

TEST_CASE("TrainingStep: a loss that is not 0-d is refused, in training and in validation") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model();
  const auto vector_loss = [](const torch::Tensor& outputs, const torch::Tensor& targets) {
    return (outputs - targets).square().mean().reshape({1});
  };
  const std::string message = "attend::TrainingStep: the loss must be a 0-d tensor, got [1]";
  SGD optimizer(model->parameters(), SGDOptions(0.1));
  attend::TrainingStep step(model, vector_loss, optimizer);
  CHECK(message_of<c10::ValueError>([&] { step(data.x, data.y); }) == message);
  CHECK(message_of<c10::ValueError>([&] { attend::Trainer(model, {}, vector_loss).evaluate(data); }) == message);
}

TEST_CASE("TrainingStep: a loss without a gradient is refused with the reason") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model();
  SGD optimizer(model->parameters(), SGDOptions(0.1));
  const auto check = [&](const auto& loss, const std::string& expected) {
    attend::TrainingStep step(model, loss, optimizer);
    const torch::Tensor weight = torch::ones({}, torch::kDouble);
    const std::string message = "attend::TrainingStep: " + expected;
    CHECK(message_of<c10::ValueError>([&] { step(data.x, data.y); }) == message);
    CHECK(message_of<c10::ValueError>([&] { step.accumulate(data.x, data.y, weight); }) == message);
  };
  {
    const c10::NoGradGuard no_grad;
    check(kMeanSquare, "no gradients are recorded under NoGradGuard; train outside of its scope");
  }
  {
    const c10::InferenceMode inference_mode;
    check(kMeanSquare, "no gradients are recorded under InferenceMode; train outside of its scope");
  }
  check(
      [](const torch::Tensor& outputs, const torch::Tensor& targets) { return kMeanSquare(outputs.detach(), targets); },
      "the loss must depend on a parameter that requires a gradient; a tensor between them was detached or computed "
      "without gradients");
  for (torch::Tensor& parameter : model->parameters()) parameter.set_requires_grad(false);
  check(kMeanSquare, "all parameters are frozen; call requires_grad_() on the parameters to train");
}

TEST_CASE("TrainingStep: a step reads no number from the device, so it runs on the device meta") {
  const auto meta = torch::device(torch::kMeta).dtype(torch::kDouble);
  const auto model = std::make_shared<Doubler>(torch::kMeta);
  SGD optimizer(model->parameters(), SGDOptions(0.1).momentum(0.9));
  attend::TrainingStep step(model, kMeanSquare, optimizer);  // at::mse_loss has no meta kernel of its gradient
  for (int i = 0; i < 2; ++i) {
    const torch::Tensor loss = step(torch::empty({8, 1}, meta), torch::empty({8, 1}, meta));
    CHECK(loss.is_meta());
    CHECK_THROWS_AS(loss.item<double>(), c10::Error);
  }
}
