// SPDX-License-Identifier: MIT
#include <attend/training/step_capture.h>

#include <attend/training/trainer.h>

#include "support/autocast.h"
#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/serialize.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::TrainingState;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::message_of;
using attend::test::normal;
using attend::test::Samples;

namespace step_capture_test {
namespace {

/// A StepCapture for the CPU. Nothing runs while it captures. A replay runs the body on the recorded gradients, even if
/// the parameters have other gradients by then.
class FakeCapture : public attend::StepCapture {
 public:
  std::string name() const override { return "recording"; }
  std::optional<std::string> why_not(c10::Device) const override { return reason; }
  std::shared_ptr<void> enter(c10::Device) override { return std::make_shared<int>(0); }
  Recording capture(const std::function<void()>& body) override {
    ++captures;
    own.clear();
    if (captures == fails_at) {
      for (const torch::Tensor& p : parameters) p.mutable_grad() = torch::full_like(p, NAN);  // of a freed pool
      return {{}, "no luck"};
    }
    return {[this, body] {
              ++replays;
              const std::vector<torch::Tensor> host = gradients();
              if (!own.empty()) set(own);
              body();
              const std::vector<torch::Tensor> made = gradients();
              if (own.empty()) {
                own = made;
                return;
              }
              for (std::size_t i = 0; i < own.size(); ++i) {
                if (own[i].defined()) own[i].copy_(made[i]);
              }
              set(host);
            },
            {}};
  }

  std::vector<torch::Tensor> gradients() const {
    std::vector<torch::Tensor> result;
    for (const torch::Tensor& parameter : parameters) result.push_back(parameter.grad());
    return result;
  }
  void set(const std::vector<torch::Tensor>& gradients) const {
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = gradients[i];
  }

  std::vector<torch::Tensor> parameters, own;
  int captures = 0, replays = 0, fails_at = 0;
  std::optional<std::string> reason = std::nullopt;
};

struct Result {
  std::vector<double> losses;
  std::vector<torch::Tensor> parameters;
  std::string explanation;
};

struct Look {
  std::vector<torch::Tensor> losses = {};
  void on_batch_end(TrainingState& state) { losses.push_back(state.loss); }
};

struct LookAtEnds {
  std::vector<torch::Tensor> losses = {};
  void on_epoch_end(TrainingState& state) { losses.push_back(state.loss); }
};

/// Makes a change before the second epoch.
struct Change {
  std::function<void(torch::nn::Module&)> change;
  void on_epoch_begin(TrainingState& state) {
    if (state.epoch == 1) change(state.model);
  }
};

struct Stop {
  std::int64_t at;
  bool on_batch_end(TrainingState& state) { return state.epoch == 1 && state.batch == at; }
};

struct Clip {
  void on_before_step(TrainingState& state) {
    for (torch::Tensor& gradient : state.gradients()) gradient.clamp_(-0.5, 0.5);
  }
};

struct Replace {
  void on_before_step(TrainingState& state) {
    if (state.batch % 2 == 0) return;
    for (const torch::Tensor& p : state.model.parameters()) p.mutable_grad() = p.grad() * 0.5;
  }
};

struct Schedule {
  void on_batch_end(TrainingState& state) {
    if (state.batch == 5) state.set_learning_rate(state.learning_rate() / 2);
    if (state.batch == 7) static_cast<torch::optim::AdamOptions&>(state.optimizer.param_groups()[0].options()).lr(0.02);
  }
};

template <class... Callbacks>
Result fitted(std::shared_ptr<FakeCapture> capture, std::int64_t accumulation_steps, Callbacks... callbacks) {
  torch::manual_seed(4);
  torch::nn::Sequential model(linear_model(), torch::nn::Dropout(0.3));
  if (capture) capture->parameters = model->parameters();
  Trainer trainer(model, TrainerOptions()
                             .epochs(3)
                             .batch_size(4)
                             .learning_rate(0.05)
                             .accumulation_steps(accumulation_steps)
                             .capture(capture));
  Result result;
  for (int fit = 0; fit < 2; ++fit) {
    const attend::History history = trainer.fit(linear_samples(42), linear_samples(6, 3), callbacks...);
    for (const double loss : history.train_loss()) result.losses.push_back(loss);
    for (const double loss : history.last_batch_loss()) result.losses.push_back(loss);
    for (const double loss : history.validation_loss()) result.losses.push_back(loss);
  }
  result.parameters = model->parameters();
  result.explanation = trainer.explain();
  return result;
}

void check_same(const Result& a, const Result& b) {
  CHECK(a.losses == b.losses);
  for (std::size_t i = 0; i < a.parameters.size(); ++i) CHECK(torch::equal(a.parameters[i], b.parameters[i]));
}

}  // namespace

TEST_CASE("capture: a captured fit equals the plain loop to the last bit, whatever the callbacks do") {
  for (const std::int64_t accumulation_steps : {1, 2, 4}) {
    CAPTURE(accumulation_steps);
    const auto check = [&](auto... callbacks) {
      const auto capture = std::make_shared<FakeCapture>();
      const Result captured = fitted(capture, accumulation_steps, callbacks...);
      check_same(captured, fitted(nullptr, accumulation_steps, callbacks...));
      CHECK(capture->replays > 20);
      CHECK(captured.explanation.find("recording") != std::string::npos);
    };
    check();
    check(Clip());
    check(Replace());
    check(Schedule());
    check(Clip(), Schedule());
  }
}

TEST_CASE("capture: a step is one recording, or two if a callback runs between gradients and update") {
  for (const bool is_split : {false, true}) {
    const auto capture = std::make_shared<FakeCapture>();
    const Result result = is_split ? fitted(capture, 1, Clip()) : fitted(capture, 1);
    CHECK(capture->captures == (is_split ? 4 : 2));                    // two fits
    CHECK(capture->replays == 2 * (is_split ? 2 : 1) * (3 * 10 - 3));  // ten full batches an epoch
    CHECK(result.explanation == std::string("Double parameters; recording") +
                                    (is_split ? "s of gradients and update" : " of the whole step") +
                                    ", replayed for full batches after the first 3");
  }
}

TEST_CASE("capture: a step is captured again if a callback changes something before an epoch, and only then") {
  const std::vector<std::function<void(torch::nn::Module&)>> changes = {
      [](torch::nn::Module&) {},
      [](torch::nn::Module& model) { model.named_parameters()["0.bias"].requires_grad_(false); },
      [](torch::nn::Module& model) { model.named_children()["1"]->eval(); },
      [](torch::nn::Module& model) {
        const torch::Tensor weight = model.named_parameters()["0.weight"];
        weight.set_data(weight.detach().clone());
      },
  };
  for (const std::int64_t accumulation_steps : {1, 2}) {
    for (std::size_t i = 0; i < changes.size(); ++i) {
      CAPTURE(accumulation_steps);
      CAPTURE(i);
      const auto capture = std::make_shared<FakeCapture>();
      const Result captured = fitted(capture, accumulation_steps, Change{changes[i]});
      check_same(captured, fitted(nullptr, accumulation_steps, Change{changes[i]}));
      const int recordings = accumulation_steps == 1 ? 1 : 2;
      CHECK(capture->captures == recordings * (i == 0 ? 2 : 3));  // one for each fit, and one for the change
      CHECK(captured.explanation.find("recording") != std::string::npos);
    }
  }
}

namespace {

/// Replaces the optimizer's state by that of its own archive: other tensors with the same numbers.
void restore(torch::optim::Optimizer& optimizer) {
  std::stringstream stream;
  torch::serialize::OutputArchive written;
  optimizer.save(written);
  written.save_to(stream);
  torch::serialize::InputArchive read;
  read.load_from(stream);
  optimizer.load(read);
}

struct Restore {
  void on_epoch_begin(TrainingState& state) {
    if (state.epoch == 1) restore(state.optimizer);
  }
};

/// Restores after a plain step, just before the capture.
struct RestoreInTheFirstSteps {
  void on_batch_end(TrainingState& state) {
    if (state.epoch == 0 && state.batch == 2) restore(state.optimizer);
  }
};

/// Adds a parameter to the optimizer that the model does not have.
struct AddGroup {
  void on_batch_end(TrainingState& state) {
    if (state.epoch == 1 && state.batch == 4)
      state.optimizer.add_param_group(torch::optim::OptimizerParamGroup({torch::zeros({1}).requires_grad_()}));
  }
};

}  // namespace

TEST_CASE("capture: a step is captured again if the optimizer gets other or more tensors") {
  for (const std::int64_t accumulation_steps : {1, 2}) {
    CAPTURE(accumulation_steps);
    const auto check = [&](auto callback) {
      const auto capture = std::make_shared<FakeCapture>();
      check_same(fitted(capture, accumulation_steps, callback), fitted(nullptr, accumulation_steps, callback));
      CHECK(capture->captures == (accumulation_steps == 1 ? 3 : 6));
    };
    check(Restore());
    check(AddGroup());
  }
}

namespace {

/// y = w·x·s, where s is not a parameter.
struct ScaledImpl : torch::nn::Module {
  ScaledImpl() {
    weight = register_parameter("weight", torch::ones({3, 2}));
    scale = register_buffer("scale", torch::full({2}, 2.0));
  }
  torch::Tensor forward(const torch::Tensor& x) { return x.matmul(weight) * scale; }
  torch::Tensor weight, scale;
};
TORCH_MODULE(Scaled);

}  // namespace

TEST_CASE("capture: a step is captured again if a buffer is replaced; a recorded buffer is kept alive") {
  const auto fit = [](const std::shared_ptr<FakeCapture>& capture) {
    torch::manual_seed(4);
    Scaled model;
    if (capture) capture->parameters = model->parameters();
    Trainer trainer(model, TrainerOptions().epochs(3).batch_size(4).capture(capture));
    Samples samples{torch::rand({40, 3}), torch::rand({40, 2})};
    trainer.fit(samples, Change{[](torch::nn::Module& changed) {
                  torch::Tensor scale = changed.named_buffers()["scale"];
                  scale.set_data(torch::full({2}, 3.0));
                }});
    return model->weight.detach().clone();
  };
  const auto capture = std::make_shared<FakeCapture>();
  CHECK(fit(capture).equal(fit(nullptr)));
  CHECK(capture->captures == 2);
}

TEST_CASE("capture: changes by a callback in the first steps delay the capture and do not prevent it") {
  const auto capture = std::make_shared<FakeCapture>();
  const Result captured = fitted(capture, 1, RestoreInTheFirstSteps());
  check_same(captured, fitted(nullptr, 1, RestoreInTheFirstSteps()));
  CHECK(capture->captures == 2);  // one for each fit
  // An epoch has ten full batches. The second fit continues with epoch 3, so nothing is restored in it.
  CHECK(capture->replays == (3 * 10 - 6) + (3 * 10 - 3));
  CHECK(captured.explanation.find("recording of the whole step") != std::string::npos);
}

TEST_CASE("capture: a fit that a callback stops finishes its update") {
  for (const std::int64_t accumulation_steps : {1, 2, 4}) {
    for (const std::int64_t at : {0, 4, 10}) {  // the last batch is smaller
      CAPTURE(accumulation_steps);
      CAPTURE(at);
      const Result captured = fitted(std::make_shared<FakeCapture>(), accumulation_steps, Stop{at});
      check_same(captured, fitted(nullptr, accumulation_steps, Stop{at}));
      CHECK(captured.losses.size() == 3 * (2 + 3));  // the first fit ends in its second epoch
    }
  }
}

TEST_CASE("capture: a loss that a callback keeps is not overwritten, in every hook") {
  const auto capture = std::make_shared<FakeCapture>();
  torch::nn::Linear model = linear_model();
  capture->parameters = model->parameters();
  LookAtEnds look;
  Trainer trainer(model, TrainerOptions().epochs(4).batch_size(4).capture(capture));
  const attend::History history = trainer.fit(linear_samples(40), look);  // the last batch of an epoch is a replay
  for (std::size_t i = 0; i < 4; ++i) CHECK(look.losses[i].item<double>() == history.last_batch_loss()[i]);
}

namespace {

/// A model that uses one parameter only in every other forward pass.
struct EveryOther : torch::nn::Module {
  EveryOther() {
    weight = register_parameter("weight", normal({3, 1}, 1));
    bias = register_parameter("bias", normal({1}, 2));
  }
  torch::Tensor forward(const torch::Tensor& inputs) {
    const torch::Tensor outputs = inputs.matmul(weight);
    return ++calls % 2 == 0 ? outputs : outputs + bias;
  }
  torch::Tensor weight, bias;
  int calls = 0;
};

}  // namespace

TEST_CASE("capture: the plain loop is used if a parameter has a gradient only in some batches") {
  for (const bool is_split : {false, true}) {
    const auto trained = [&](const std::shared_ptr<FakeCapture>& capture) {
      const auto model = std::make_shared<EveryOther>();
      if (capture) capture->parameters = model->parameters();
      Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4).learning_rate(0.05).capture(capture));
      const Samples data = linear_samples(42);
      is_split ? trainer.fit(data, Clip()) : trainer.fit(data);
      if (capture) {
        CHECK(trainer.explain() == "Double parameters; plain loop: parameters have a gradient in some batches only");
        CHECK(capture->replays == 1);
      }
      return model;
    };
    const auto captured = trained(std::make_shared<FakeCapture>()), plain = trained(nullptr);
    CHECK(torch::equal(captured->weight, plain->weight));
    CHECK(torch::equal(captured->bias, plain->bias));
  }
}

TEST_CASE("capture: the plain loop is used for data that are not dense tensors") {
  struct Densify : torch::nn::Module {
    Densify() { linear = register_module("linear", linear_model()); }
    torch::Tensor forward(const torch::Tensor& inputs) { return linear->forward(inputs.to_dense()); }
    torch::nn::Linear linear = nullptr;
  };
  const auto trained = [](const Samples& data, const std::shared_ptr<FakeCapture>& capture) {
    const auto model = std::make_shared<Densify>();
    if (capture) capture->parameters = model->parameters();
    Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4).capture(capture));
    trainer.fit(data);
    if (capture) CHECK(trainer.explain() == "Double parameters; plain loop: the training set is not two dense tensors");
    return model->linear->weight.detach();
  };
  const Samples dense = linear_samples(42), sparse{dense.x.to_sparse(), dense.y};
  CHECK(torch::equal(trained(sparse, std::make_shared<FakeCapture>()), trained(dense, nullptr)));
}

TEST_CASE("capture: the plain loop is used if a step cannot be captured, and no batch is lost") {
  for (const std::int64_t accumulation_steps : {1, 2}) {
    for (const int fails_at : {1, 2}) {
      const auto capture = std::make_shared<FakeCapture>();
      capture->fails_at = fails_at;
      Result result = fitted(capture, accumulation_steps, Clip());
      check_same(result, fitted(nullptr, accumulation_steps, Clip()));
    }
  }
  const auto capture = std::make_shared<FakeCapture>();
  capture->fails_at = 1;
  capture->parameters = {};
  Trainer trainer(linear_model(), TrainerOptions().batch_size(4).capture(capture));
  CHECK(trainer.explain() == "Double parameters; recording if the step can be captured");
  trainer.fit(linear_samples(42));
  CHECK(trainer.explain() == "Double parameters; plain loop: the step could not be captured: no luck");
}

namespace {

/// A model that is never on the CPU, on any machine.
struct OnMeta : torch::nn::Module {
  OnMeta() { register_parameter("weight", torch::empty({1}, torch::device(torch::kMeta).dtype(torch::kDouble))); }
  torch::Tensor forward(const torch::Tensor& inputs) { return inputs; }
};

}  // namespace

TEST_CASE("capture: Trainer::explain() gives the reason why steps are not captured") {
  const TrainerOptions options = TrainerOptions().epochs(1).batch_size(4).capture(std::make_shared<FakeCapture>());
  CHECK(Trainer(linear_model()).explain() == "Double parameters; plain loop: the device is cpu");
  CHECK(Trainer(linear_model(), TrainerOptions().autocast(torch::kBFloat16).accumulation_steps(3)).explain() ==
        "Double parameters, which are not autocast to BFloat16, an update every 3 batches; plain loop: the device is "
        "cpu");
  const auto sgd = [](std::vector<torch::Tensor> parameters, double rate) {
    return torch::optim::SGD(std::move(parameters), torch::optim::SGDOptions(rate));
  };
  CHECK(Trainer(linear_model(), options, attend::MeanSquaredError(), sgd).explain() ==
        "Double parameters; plain loop: torch::optim::SGD keeps numbers of its step on the host, unlike attend::Adam "
        "and AdamW");
  const auto nowhere = std::make_shared<FakeCapture>();
  nowhere->reason = "the device is not the right one";
  CHECK(Trainer(linear_model(), TrainerOptions().capture(nowhere)).explain() ==
        "Double parameters; plain loop: the device is not the right one");
  CHECK(Trainer(std::make_shared<OnMeta>()).explain() ==
        "Double parameters; plain loop: TrainerOptions::capture is not set");
  Trainer trainer(linear_model(), options);
  trainer.fit(linear_samples(8));
  CHECK(trainer.explain() == "Double parameters; plain loop: the fit was over before a step could be captured");
}

TEST_CASE("accumulation_steps: accumulated batches equal one batch, including the incomplete last update") {
  for (const std::int64_t samples : {24, 26, 21}) {
    const auto weight = [&](std::int64_t batch_size, std::int64_t steps) {
      torch::nn::Linear model = linear_model();
      Trainer(model, TrainerOptions().epochs(3).batch_size(batch_size).accumulation_steps(steps).learning_rate(0.05))
          .fit(linear_samples(samples));
      return model->weight.detach();
    };
    CHECK(torch::allclose(weight(4, 3), weight(12, 1), 0, 1e-12));
  }
}

TEST_CASE("accumulation_steps: a fit that is stopped finishes the current update") {
  struct Stop {
    std::vector<std::int64_t> before = {}, after = {};
    void on_before_step(TrainingState& state) { before.push_back(state.batch); }
    bool on_batch_end(TrainingState& state) { return after.push_back(state.batch), true; }
  } stop;
  Trainer(linear_model(), TrainerOptions().batch_size(4).accumulation_steps(3)).fit(linear_samples(40), stop);
  CHECK(stop.before == std::vector<std::int64_t>{2});
  CHECK(stop.after == std::vector<std::int64_t>{0, 1, 2});
}

TEST_CASE("autocast: training and validation equal a hand-written loop to the bit; the loss is float32") {
  const Samples data{normal({8, 3}, 1, torch::kFloat), normal({8, 1}, 2, torch::kFloat)};
  torch::nn::Linear model = linear_model(), by_hand = linear_model();
  model->to(torch::kFloat);
  by_hand->to(torch::kFloat);
  Look look;
  Trainer trainer(model, TrainerOptions().epochs(3).batch_size(8).autocast(torch::kBFloat16));
  const attend::History history = trainer.fit(Samples{data.x, data.y}, data, look);
  CHECK((look.losses[0].scalar_type() == torch::kFloat));
  CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  attend::Adam optimizer(by_hand->parameters());
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    const torch::Tensor rows = attend::detail::shuffled(8, 0, epoch);
    optimizer.zero_grad();
    torch::Tensor loss;
    {
      const attend::test::Autocast autocast;
      loss = at::mse_loss(by_hand->forward(data.x.index_select(0, rows)), data.y.index_select(0, rows));
    }
    loss.backward();
    optimizer.step();
    CHECK(torch::equal(look.losses[epoch], loss.detach()));
    const torch::NoGradGuard no_grad;
    const attend::test::Autocast autocast;
    CHECK(history.validation_loss()[epoch] == at::mse_loss(by_hand->forward(data.x), data.y).item<float>());
  }
}

}  // namespace step_capture_test
