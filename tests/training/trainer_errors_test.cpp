// SPDX-License-Identifier: MIT

// Tests what Trainer refuses, and its state after an exception.

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"
#include "training/trainer_support.h"

#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::TrainingState;
using attend::test::Hooks;
using attend::test::InBatches;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::message_of;
using attend::test::normal;
using attend::test::OfUnknownSize;
using attend::test::OneByOne;
using attend::test::Recorder;
using attend::test::Samples;
using torch::data::Example;

namespace trainer_errors_test {
namespace {

struct OutOfPatience : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

TEST_CASE("Trainer: exceptions of callbacks, losses and datasets reach the caller; the history keeps its records") {
  const Samples data = linear_samples(8);
  struct ThrowsLater : InBatches {
    using InBatches::InBatches;
    Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
      if (++batches == 4) throw OutOfPatience("no more");
      return InBatches::get_batch(indices);
    }
    int batches = 0;
  };
  int losses = 0;
  const auto loss = [&](const torch::Tensor& outputs, const torch::Tensor& targets) {
    if (++losses == 4) throw OutOfPatience("no more");
    return (outputs - targets).square().mean();
  };
  const auto never = [](const torch::Tensor& outputs, const torch::Tensor& targets) {
    return (outputs - targets).square().mean();
  };
  const TrainerOptions options = TrainerOptions().epochs(3).batch_size(4);
  const auto throws = [](TrainingState& state) {
    if (state.epoch == 1 && state.batch == 1) throw OutOfPatience("no more");
  };

  const auto recorded = [&](auto loss, auto&& train_set, auto&&... callbacks) {
    torch::nn::Linear model = linear_model();
    Trainer trainer(model, options, loss);
    CHECK(message_of<OutOfPatience>([&] { trainer.fit(train_set, callbacks...); }) == "no more");
    CHECK_FALSE(torch::equal(model->weight, linear_model()->weight));
    return trainer.history().epochs().size();
  };
  CHECK(recorded(loss, data) == 1);
  CHECK(recorded(never, ThrowsLater(data)) == 1);
  CHECK(recorded(never, data, Hooks{.before_step = throws}) == 1);
  CHECK(recorded(never, data, Hooks{.batch_end = throws}) == 1);
  CHECK(recorded(never, data, Hooks{.epoch_end = [](TrainingState& state) {
                   if (state.epoch == 1) throw OutOfPatience("no more");
                 }}) == 2);
}

TEST_CASE("Trainer: a fit after an exception continues with the unfinished epoch") {
  OneByOne data(linear_samples(8));
  Trainer trainer(linear_model(), TrainerOptions().epochs(2).batch_size(4));
  message_of<OutOfPatience>([&] {
    trainer.fit(data, Hooks{.batch_end = [](TrainingState& state) {
                  if (state.epoch == 1) throw OutOfPatience("no more");
                }});
  });
  std::vector<std::int64_t> epochs;
  trainer.fit(data, Hooks{.epoch_begin = [&](TrainingState& state) { epochs.push_back(state.epoch); }});
  CHECK(epochs == std::vector<std::int64_t>{1, 2});
}

TEST_CASE("Trainer: a missing device is refused, and the model is not moved") {
  torch::nn::Linear model = linear_model();
  const std::string message =
      message_of<c10::ValueError>([&] { Trainer(model, TrainerOptions().device(torch::Device(torch::kCUDA, 99))); });
  CHECK(message.find("attend::Trainer: device (cuda:99) does not exist: this machine has ") == 0);
  CHECK(model->weight.is_cpu());
}

namespace {

/// A model on "meta", a device without data that every machine has.
struct OnMeta : torch::nn::Module {
  OnMeta() {
    weight = register_parameter("weight", torch::empty({3, 1}, torch::device(torch::kMeta).dtype(torch::kDouble)));
  }
  torch::Tensor forward(const torch::Tensor& inputs) { return inputs.matmul(weight); }
  torch::Tensor weight;
};

}  // namespace

TEST_CASE("Trainer: the device is that of the model unless one is named; data are moved there") {
  const auto model = std::make_shared<OnMeta>();
  torch::Device outputs_on(torch::kCPU), targets_on(torch::kCPU);
  Trainer trainer(model, {}, [&](const torch::Tensor& outputs, const torch::Tensor& targets) -> torch::Tensor {
    outputs_on = outputs.device();
    targets_on = targets.device();
    throw OutOfPatience("a loss on meta cannot be read");
  });
  const auto goes_to_meta = [&](auto&& data) {
    outputs_on = targets_on = torch::kCPU;
    message_of<OutOfPatience>([&] { trainer.fit(data); });
    CHECK(outputs_on.is_meta());
    CHECK(targets_on.is_meta());
  };
  goes_to_meta(OneByOne(linear_samples(4)));
  goes_to_meta(InBatches(linear_samples(4)));

  // The model is moved to a named device. torch refuses to move this model.
  CHECK_THROWS_AS(Trainer(model, TrainerOptions().device(torch::kCPU)), c10::NotImplementedError);
}

TEST_CASE("Trainer: the order of an epoch is moved to the device of the tensors once; datasets get it on the CPU") {
  const Samples data = linear_samples(8);
  OneByOne dataset(data);
  const torch::Tensor order = torch::arange(8);
  CHECK(attend::detail::Batches("the tensors", data, torch::kMeta, 4).prepared(order).is_meta());
  CHECK(attend::detail::Batches("the dataset", dataset, torch::kMeta, 4).prepared(order).is_cpu());

  attend::detail::Batches batches("the tensors", data, torch::kCPU, 4);
  static int moves = 0;
  const auto count_moves = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
    if (std::string(function.name()) == "aten::to") ++moves;
    return nullptr;
  };
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(count_moves));
  const torch::Tensor prepared = batches.prepared(order);
  CHECK(moves == 1);
  batches.gather(prepared.slice(0, 0, 4));
  CHECK(moves == 1);
  at::removeCallback(handle);
}

namespace {

/// A model whose backward pass reads the inputs, and which keeps its inputs.
struct KeepsInputs : torch::nn::Module {
  KeepsInputs() { weight = register_parameter("weight", attend::test::normal({3, 1}, 1)); }
  torch::Tensor forward(const torch::Tensor& inputs) {
    if (is_training()) kept.push_back(inputs);
    return inputs.square().matmul(weight).sin() + (inputs * weight.t()).sum(1, /*keepdim=*/true);
  }
  torch::Tensor weight;
  std::vector<torch::Tensor> kept;
};

}  // namespace

TEST_CASE("Trainer: batches share memory, which does not change results") {
  const Samples data = linear_samples(22), validation = linear_samples(7, 3);
  for (const std::int64_t accumulation_steps : {1, 3}) {
    CAPTURE(accumulation_steps);
    const auto trained = [&](auto&& train_set, auto&& validation_set) {
      const auto model = std::make_shared<KeepsInputs>();
      Trainer trainer(model, TrainerOptions().epochs(3).batch_size(4).accumulation_steps(accumulation_steps));
      const attend::History history = trainer.fit(train_set, validation_set);
      return std::tuple(model, history.train_loss(), history.validation_loss());
    };
    const auto [model, train_loss, validation_loss] = trained(data, validation);
    const auto [other, other_train_loss, other_validation_loss] = trained(OneByOne(data), OneByOne(validation));
    CHECK(torch::equal(model->weight, other->weight));
    CHECK(train_loss == other_train_loss);
    CHECK(validation_loss == other_validation_loss);
    REQUIRE(model->kept.size() == 18);
    for (const torch::Tensor& inputs : model->kept) CHECK(inputs.data_ptr() == model->kept[0].data_ptr());
  }
}

TEST_CASE("Trainer: training tensors that require a gradient get none") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model(), expected = linear_model();
  const Samples needing{data.x.clone().requires_grad_(), data.y};
  Trainer(model, TrainerOptions().batch_size(4)).fit(needing);
  Trainer(expected, TrainerOptions().batch_size(4)).fit(data);
  CHECK(torch::equal(model->weight, expected->weight));
  CHECK_FALSE(needing.x.grad().defined());
}

TEST_CASE("Trainer: a model without parameters is refused") {
  CHECK(message_of<c10::ValueError>([] { Trainer(torch::nn::Sequential(torch::nn::Dropout(0.5))); }) ==
        "attend::Trainer: the model has no parameters to train");
}

TEST_CASE("Trainer: a fit under NoGradGuard or InferenceMode is refused before the first hook; evaluate() is not") {
  const Samples data = linear_samples(8);
  Trainer trainer(linear_model(), TrainerOptions().epochs(1).batch_size(4));
  Recorder recorder;
  const auto message = [&] { return message_of<c10::ValueError>([&] { trainer.fit(data, recorder); }); };
  {
    const c10::NoGradGuard no_grad;
    CHECK(message() == "attend::Trainer: no gradients are recorded under NoGradGuard; train outside of its scope");
    CHECK(std::isfinite(trainer.evaluate(data)));
  }
  {
    const c10::InferenceMode inference_mode;
    CHECK(message() == "attend::Trainer: no gradients are recorded under InferenceMode; train outside of its scope");
    CHECK(std::isfinite(trainer.evaluate(data)));
  }
  CHECK(recorder.calls.empty());
  CHECK(trainer.fit(data, recorder).epochs().size() == 1);
}

TEST_CASE("Trainer: a model whose parameters are all frozen is refused, unless on_fit_begin unfreezes one") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model();
  for (torch::Tensor& parameter : model->parameters()) parameter.set_requires_grad(false);
  Trainer trainer(model, TrainerOptions().epochs(1).batch_size(4));
  const std::string expected = ": all parameters are frozen; call requires_grad_() on the parameters to train";
  CHECK(message_of<c10::ValueError>([&] { trainer.fit(data); }) == "attend::Trainer" + expected);
  CHECK(std::isfinite(trainer.evaluate(data)));
  Hooks unfreezes{[](TrainingState& state) { state.model.parameters()[0].set_requires_grad(true); }};
  const torch::Tensor before = model->weight.detach().clone();
  trainer.fit(data, unfreezes);
  CHECK_FALSE(model->weight.equal(before));

  Hooks freezes;
  freezes.batch_end = [](TrainingState& state) { state.model.parameters()[0].set_requires_grad(false); };
  CHECK(message_of<c10::ValueError>([&] { trainer.fit(data, freezes); }) == "attend::TrainingStep" + expected);
}

TEST_CASE("Trainer: parameters that were made under InferenceMode are refused") {
  const torch::nn::Linear model = [] {
    const c10::InferenceMode inference_mode;
    return torch::nn::Linear(3, 1);
  }();
  CHECK(message_of<c10::ValueError>([&] { Trainer trainer(model); }) ==
        "attend::Trainer: the model's parameters were made under InferenceMode and cannot be trained; make the model "
        "outside of its scope");
}

TEST_CASE("Trainer: for inputs of another dtype than the parameters, the error names both, in fit() and evaluate()") {
  Samples data = linear_samples(8);
  data.x = data.x.to(torch::kFloat);
  Trainer trainer(linear_model(), TrainerOptions().epochs(1).batch_size(4));
  const std::string expected =
      "attend::TrainingStep: the inputs are Float on cpu, and the parameters are Double on cpu; convert one of them "
      "with .to()";
  CHECK(message_of<c10::Error>([&] { trainer.fit(data); }).find(expected) != std::string::npos);
  CHECK(message_of<c10::Error>([&] { trainer.evaluate(data); }).find(expected) != std::string::npos);

  // An error of a model with inputs of the right dtype is not changed.
  data = linear_samples(8);
  data.x = data.x.slice(1, 0, 2);
  CHECK(message_of<c10::Error>([&] { trainer.fit(data); }).find("attend::TrainingStep") == std::string::npos);

  struct CastsImpl : torch::nn::Module {
    CastsImpl() { register_module("linear", linear); }
    torch::Tensor forward(const torch::Tensor& x) { return linear(x.to(torch::kDouble)); }
    torch::nn::Linear linear = linear_model();
  };
  Samples narrow = linear_samples(8);
  narrow.x = narrow.x.to(torch::kFloat);
  CHECK_NOTHROW(Trainer(std::make_shared<CastsImpl>(), TrainerOptions().epochs(1).batch_size(4)).fit(narrow));
}

TEST_CASE("Trainer: unusable data are refused before the first hook; the message names the set") {
  const Samples good = linear_samples(4), empty = linear_samples(0);
  const Samples uneven{normal({4, 3}, 1), normal({3, 1}, 2)};
  const Samples scalar{torch::ones({}), torch::ones({})}, undefined{};
  Trainer trainer(linear_model());
  Recorder recorder;
  const auto refused = [&](auto&&... sets) {
    return message_of<c10::ValueError>([&] { trainer.fit(sets..., recorder); });
  };
  CHECK(refused(empty) == "attend::Trainer: the training set must not be empty");
  CHECK(refused(OneByOne(empty)) == "attend::Trainer: the training set must not be empty");
  CHECK(refused(good, empty) == "attend::Trainer: the validation set must not be empty");
  CHECK(refused(uneven) == "attend::Trainer: the training set must have as many targets (3) as inputs (4)");
  CHECK(refused(good, uneven) == "attend::Trainer: the validation set must have as many targets (3) as inputs (4)");
  CHECK(refused(OfUnknownSize()) == "attend::Trainer: the training set must have a known size()");
  CHECK(refused(good, OfUnknownSize()) == "attend::Trainer: the validation set must have a known size()");
  for (const Samples& samples : {scalar, undefined})
    CHECK(refused(samples) ==
          "attend::Trainer: the training set must have inputs() and targets() with samples as the first dimension");
  CHECK(recorder.calls.empty());
  CHECK(message_of<c10::ValueError>([&] { trainer.evaluate(empty); }) ==
        "attend::Trainer: the data set must not be empty");
}

TEST_CASE("MeanSquaredError: it equals torch's mse_loss and refuses to broadcast") {
  const torch::Tensor a = normal({4, 3}, 1), b = normal({4, 3}, 2);
  CHECK(torch::equal(attend::MeanSquaredError()(a, b), torch::nn::functional::mse_loss(a, b)));
  CHECK(message_of<c10::ValueError>([&] { attend::MeanSquaredError()(a, normal({4}, 1)); }) ==
        "attend::MeanSquaredError: outputs [4, 3] must have the sizes of targets [4]");
  CHECK(message_of<c10::ValueError>([&] {
          Trainer(linear_model()).fit(Samples{normal({4, 3}, 1), normal({4}, 2)});
        }) == "attend::MeanSquaredError: outputs [4, 1] must have the sizes of targets [4]");
}

}  // namespace trainer_errors_test
