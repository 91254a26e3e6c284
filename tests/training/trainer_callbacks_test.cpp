// SPDX-License-Identifier: MIT

// Tests when Trainer calls the hooks of callbacks, and what TrainingState says there.

#include <attend/training/trainer.h>

#include "training/support.h"
#include "training/trainer_support.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::TrainingState;
using attend::test::Hooks;
using attend::test::kPlainSgd;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::mean_squared_error;
using attend::test::OneByOne;
using attend::test::Recorder;
using attend::test::Samples;
using attend::test::trainer_that_stands_still;

namespace trainer_callbacks_test {
namespace {

const std::vector<std::string> kAllCalls = {
    "fit_begin",                                                                         //
    "epoch_begin", "before_step", "batch_end", "before_step", "batch_end", "epoch_end",  // epoch 0
    "epoch_begin", "before_step", "batch_end", "before_step", "batch_end", "epoch_end",  // epoch 1
    "fit_end"};

}  // namespace

TEST_CASE("callbacks: the order of the hooks; a callback passed as an lvalue keeps its state") {
  Recorder first, second;
  Trainer trainer(linear_model(), TrainerOptions().epochs(2).batch_size(4));
  trainer.fit(linear_samples(8), first, second);
  CHECK(first.calls == kAllCalls);
  CHECK(second.calls == kAllCalls);
  trainer.fit(linear_samples(8), linear_samples(4), first);
  CHECK(first.calls.size() == 2 * kAllCalls.size());
}

TEST_CASE("callbacks: they are called in the order of the arguments, all of them even if one stops the fit") {
  std::vector<std::string> calls;
  const auto named = [&](const std::string& name) {
    return Hooks{.fit_begin = [&calls, name](TrainingState&) { calls.push_back(name); },
                 .batch_end = [&calls, name](TrainingState&) { calls.push_back(name + name); }};
  };
  Recorder stops{.stop_in = "batch_end"};
  Trainer(linear_model(), TrainerOptions().batch_size(2)).fit(linear_samples(8), named("a"), stops, named("b"));
  CHECK(calls == std::vector<std::string>{"a", "b", "aa", "bb"});
}

TEST_CASE("callbacks: a callback may have any hook, static, const or as a function object, and be const itself") {
  static int calls = 0;
  struct StaticHook {
    static void on_epoch_end(TrainingState&) { ++calls; }
  };
  struct ConstHook {
    void on_batch_end(const TrainingState&) const { ++calls; }
  };
  struct FunctionObject {
    std::function<bool(TrainingState&)> on_fit_end = [](TrainingState&) { return ++calls > 0; };
  };
  const ConstHook const_hook;
  Trainer(linear_model(), TrainerOptions().epochs(1))
      .fit(linear_samples(4), StaticHook(), const_hook, FunctionObject());
  CHECK(calls == 3);
}

TEST_CASE("callbacks: true from any hook stops the fit after the batch; history and on_fit_end are complete") {
  struct Row {
    std::string hook;
    int at;  // number of the call that returns true
    int steps, epochs_recorded;
  };
  // Two epochs of three batches.
  for (const Row& row :
       {Row{"fit_begin", 1, 0, 0}, Row{"epoch_begin", 1, 0, 0}, Row{"epoch_begin", 2, 3, 1},
        Row{"before_step", 1, 1, 1}, Row{"before_step", 2, 2, 1}, Row{"batch_end", 1, 1, 1}, Row{"batch_end", 3, 3, 1},
        Row{"batch_end", 5, 5, 2}, Row{"epoch_end", 1, 3, 1}, Row{"epoch_end", 2, 6, 2}, Row{"fit_end", 1, 6, 2}}) {
    CAPTURE(row.hook);
    CAPTURE(row.at);
    torch::nn::Linear model = linear_model();
    int updates = 0;
    torch::Tensor weight = model->weight.detach().clone();
    std::int64_t epoch_at_end = -1;
    Hooks count{.batch_end =
                    [&](TrainingState&) {
                      updates += torch::equal(weight, model->weight) ? 0 : 1;
                      weight = model->weight.detach().clone();
                    },
                .fit_end = [&](TrainingState& state) { epoch_at_end = state.epoch; }};
    Recorder stops{.stop_in = row.hook, .stop_at = row.at};
    Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4));
    const attend::History history = trainer.fit(linear_samples(12), stops, count);
    CHECK(updates == row.steps);
    CHECK(stops.count("before_step") == row.steps);
    CHECK(history.epochs().size() == static_cast<std::size_t>(row.epochs_recorded));
    CHECK(stops.count("epoch_end") == row.epochs_recorded);
    CHECK(stops.count("fit_end") == 1);
    CHECK(stops.calls.back() == "fit_end");
    CHECK(epoch_at_end == row.epochs_recorded);
  }
}

TEST_CASE("Trainer: an epoch that was stopped early is recorded with the mean over its samples") {
  const Samples data = linear_samples(10), validation = linear_samples(3, 9);
  OneByOne recording(data);
  torch::nn::Linear model = linear_model();
  auto trainer = trainer_that_stands_still(model, 4);
  Recorder stops{.stop_in = "batch_end", .stop_at = 2};
  std::int64_t batches_done = 0, samples_done = 0;
  Hooks look{.epoch_end = [&](TrainingState& state) {
    batches_done = state.batch;
    samples_done = state.samples;
  }};
  const attend::History history = trainer.fit(recording, validation, stops, look);
  REQUIRE(history.epochs().size() == 1);
  CHECK(batches_done == 2);
  CHECK(samples_done == 8);
  const std::vector<std::int64_t> seen(recording.asked->begin(), recording.asked->end());
  REQUIRE(seen.size() == 8);
  const torch::Tensor rows = torch::tensor(seen);
  CHECK(history.train_loss()[0] ==
        doctest::Approx(mean_squared_error(model, data.x.index_select(0, rows), data.y.index_select(0, rows)))
            .epsilon(1e-12));
  CHECK(history.validation_loss()[0] ==
        doctest::Approx(mean_squared_error(model, validation.x, validation.y)).epsilon(1e-12));
}

TEST_CASE("TrainingState: it counts epochs, batches and samples as documented") {
  std::vector<std::string> seen;
  const auto look = [&](const std::string& hook) {
    return [&seen, hook](TrainingState& state) {
      std::ostringstream line;
      line << hook << ": epoch " << state.epoch << '/' << state.epochs << " batch " << state.batch << '/'
           << state.batches << " samples " << state.samples << '/' << state.samples_per_epoch << " recorded "
           << state.history.epochs().size();
      seen.push_back(line.str());
    };
  };
  Hooks hooks{look("fit_begin"), look("epoch_begin"), look("before_step"),
              look("batch_end"), look("epoch_end"),   look("fit_end")};
  Trainer(linear_model(), TrainerOptions().epochs(2).batch_size(4)).fit(linear_samples(6), hooks);
  CHECK(seen == std::vector<std::string>{
                    "fit_begin: epoch 0/2 batch 0/2 samples 0/6 recorded 0",
                    "epoch_begin: epoch 0/2 batch 0/2 samples 0/6 recorded 0",
                    "before_step: epoch 0/2 batch 0/2 samples 4/6 recorded 0",
                    "batch_end: epoch 0/2 batch 0/2 samples 4/6 recorded 0",
                    "before_step: epoch 0/2 batch 1/2 samples 6/6 recorded 0",
                    "batch_end: epoch 0/2 batch 1/2 samples 6/6 recorded 0",
                    "epoch_end: epoch 0/2 batch 2/2 samples 6/6 recorded 1",
                    "epoch_begin: epoch 1/2 batch 0/2 samples 0/6 recorded 1",
                    "before_step: epoch 1/2 batch 0/2 samples 4/6 recorded 1",
                    "batch_end: epoch 1/2 batch 0/2 samples 4/6 recorded 1",
                    "before_step: epoch 1/2 batch 1/2 samples 6/6 recorded 1",
                    "batch_end: epoch 1/2 batch 1/2 samples 6/6 recorded 1",
                    "epoch_end: epoch 1/2 batch 2/2 samples 6/6 recorded 2",
                    "fit_end: epoch 2/2 batch 2/2 samples 6/6 recorded 2",
                });
}

TEST_CASE("TrainingState: it gives the trainer's model, optimizer and history, the batch's loss and a running clock") {
  const Samples data = linear_samples(4);
  torch::nn::Linear model = linear_model();
  Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4).learning_rate(0.125));
  double before = mean_squared_error(model, data.x, data.y), clock = 0;
  const auto look = [&](TrainingState& state) {
    CHECK(&state.model == model.get());
    CHECK(&state.optimizer == &trainer.optimizer());
    CHECK(&state.history == &trainer.history());
    CHECK(state.learning_rate() == 0.125);
    CHECK(state.seconds >= clock);
    clock = state.seconds;
  };
  const auto look_at_loss = [&](TrainingState& state) {
    CHECK(state.loss.dim() == 0);
    CHECK_FALSE(state.loss.requires_grad());
    CHECK(state.loss.item<double>() == doctest::Approx(before).epsilon(1e-12));
  };
  trainer.fit(data, Hooks{look, look, look, look, look, look},
              Hooks{.before_step = look_at_loss, .batch_end = [&](TrainingState& state) {
                      look_at_loss(state);
                      before = mean_squared_error(model, data.x, data.y);
                    }});
  CHECK(clock > 0);
  CHECK(trainer.model().get() == model.get());
  CHECK(trainer.options().learning_rate() == 0.125);
}

TEST_CASE("TrainingState: a learning rate that a callback sets takes effect from the next step on") {
  torch::nn::Linear model = linear_model();
  torch::Tensor after_first_epoch;
  Trainer trainer(model, TrainerOptions().epochs(3).batch_size(4));
  trainer.fit(linear_samples(8), Hooks{.epoch_end = [&](TrainingState& state) {
                if (state.epoch > 0) return;
                after_first_epoch = model->weight.detach().clone();
                state.set_learning_rate(0);
              }});
  CHECK_FALSE(torch::equal(after_first_epoch, linear_model()->weight));
  CHECK(torch::equal(model->weight, after_first_epoch));
}

TEST_CASE("TrainingState::gradients(): the step uses gradients that a callback has clipped before it") {
  const Samples data = linear_samples(8);
  torch::nn::Linear model = linear_model();
  Trainer trainer(model, TrainerOptions().epochs(1).batch_size(8).learning_rate(0.5), attend::MeanSquaredError(),
                  kPlainSgd);
  trainer.fit(data, Hooks{.before_step = [](TrainingState& state) {
                REQUIRE(state.gradients().size() == 2);
                for (torch::Tensor& gradient : state.gradients()) gradient.clamp_(-0.01, 0.01);
              }});
  const torch::Tensor moved =
      (model->weight - linear_model()->weight).abs();  // rate 0.5 · 0.01 wherever it was clipped
  CHECK(moved.max().item<double>() == doctest::Approx(0.005).epsilon(1e-12));
}

}  // namespace trainer_callbacks_test
