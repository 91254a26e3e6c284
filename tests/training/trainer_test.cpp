// SPDX-License-Identifier: MIT
#include <attend/training/trainer.h>

#include <attend/data/shape_dataset.h>
#include <attend/layers/conv_stack.h>
#include <attend/training/callbacks/csv_log.h>
#include <attend/training/callbacks/progress_bar.h>

#include "support/errors.h"
#include "training/support.h"

#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/data/datasets/base.h>
#include <torch/data/datasets/map.h>
#include <torch/data/transforms/stack.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/loss.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
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
using torch::data::Example;
using Indices = std::vector<std::size_t>;

namespace {

// ---- The same samples as different datasets of torch::data -------------------------------------------------------

/// Samples one by one. Records the order of the requests.
struct OneByOne : torch::data::datasets::Dataset<OneByOne> {
  explicit OneByOne(Samples samples) : samples(std::move(samples)) {}
  Example<> get(std::size_t index) override {
    asked->push_back(index);
    const auto i = static_cast<std::int64_t>(index);
    return {samples.x[i], samples.y[i]};
  }
  std::optional<std::size_t> size() const override { return samples.x.size(0); }

  Samples samples;
  std::shared_ptr<Indices> asked = std::make_shared<Indices>();
};

/// Samples in batches of tensors.
struct InBatches : torch::data::datasets::BatchDataset<InBatches, Example<>> {
  explicit InBatches(Samples samples) : samples(std::move(samples)) {}
  Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    const std::vector<std::int64_t> rows(indices.begin(), indices.end());
    return {samples.x.index_select(0, torch::tensor(rows)), samples.y.index_select(0, torch::tensor(rows))};
  }
  std::optional<std::size_t> size() const override { return samples.x.size(0); }

  Samples samples;
};

/// Samples as two tensors that are made on request.
struct MadeOnDemand {
  torch::Tensor inputs() { return samples.x; }
  torch::Tensor targets() { return samples.y; }

  Samples samples;
};

struct OfUnknownSize : InBatches {
  OfUnknownSize() : InBatches(linear_samples(4)) {}
  std::optional<std::size_t> size() const override { return std::nullopt; }
};

// ---- Callbacks ---------------------------------------------------------------------------------------------------

using Hook = std::function<void(TrainingState&)>;

/// A callback whose hooks a test sets.
struct Hooks {
  Hook fit_begin = {}, epoch_begin = {}, before_step = {}, batch_end = {}, epoch_end = {}, fit_end = {};

  void on_fit_begin(TrainingState& state) { call(fit_begin, state); }
  void on_epoch_begin(TrainingState& state) { call(epoch_begin, state); }
  void on_before_step(TrainingState& state) { call(before_step, state); }
  void on_batch_end(TrainingState& state) { call(batch_end, state); }
  void on_epoch_end(TrainingState& state) { call(epoch_end, state); }
  void on_fit_end(TrainingState& state) { call(fit_end, state); }

  static void call(const Hook& hook, TrainingState& state) {
    if (hook) hook(state);
  }
};

/// Records the calls of the hooks. Returns true from one of them at its n-th call.
struct Recorder {
  std::vector<std::string> calls = {};
  std::string stop_in = {};
  int stop_at = 1;

  bool on_fit_begin(TrainingState&) { return record("fit_begin"); }
  bool on_epoch_begin(TrainingState&) { return record("epoch_begin"); }
  bool on_before_step(TrainingState&) { return record("before_step"); }
  bool on_batch_end(TrainingState&) { return record("batch_end"); }
  bool on_epoch_end(TrainingState&) { return record("epoch_end"); }
  bool on_fit_end(TrainingState&) { return record("fit_end"); }

  bool record(const std::string& hook) {
    calls.push_back(hook);
    return hook == stop_in && count(hook) == stop_at;
  }
  std::ptrdiff_t count(const std::string& hook) const { return std::count(calls.begin(), calls.end(), hook); }
};

const auto kPlainSgd = [](std::vector<torch::Tensor> parameters, double rate) {
  return torch::optim::SGD(std::move(parameters), torch::optim::SGDOptions(rate));
};

/// A trainer whose steps are too small to change a weight, so that every loss can be computed in advance.
auto trainer_that_stands_still(torch::nn::Linear model, std::int64_t batch_size, std::int64_t epochs = 1) {
  return Trainer(model, TrainerOptions().epochs(epochs).batch_size(batch_size).learning_rate(1e-300),
                 attend::MeanSquaredError(), kPlainSgd);
}

double mean_squared_error(torch::nn::Linear model, const torch::Tensor& x, const torch::Tensor& y) {
  const torch::NoGradGuard no_grad;
  return torch::nn::functional::mse_loss(model->forward(x), y).item<double>();
}

bool same(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const torch::Tensor& x, const torch::Tensor& y) { return torch::equal(x, y); });
}

}  // namespace

// ---- Examples and construction -----------------------------------------------------------------------------------

TEST_CASE("Trainer: the examples in the documentation compile and give the documented results") {
  attend::test::TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  const attend::ShapeDataset train_set(attend::ShapeDatasetOptions().max_samples(20).seed(7));
  const attend::ShapeDataset validation_set(attend::ShapeDatasetOptions().max_samples(10).seed(8));
  attend::ConvStack model(attend::ConvStackOptions(1, 4, 1).depth(2).kernel_size(5));
  std::ostringstream shown;
  std::streambuf* const standard_error = std::cerr.rdbuf(shown.rdbuf());

  attend::Trainer trainer(
      model, attend::TrainerOptions().epochs(2).batch_size(32).learning_rate(1e-3).device(torch::kCPU).seed(7));
  attend::History history = trainer.fit(train_set, validation_set, attend::ProgressBar(), attend::CsvLog(path));

  std::cerr.rdbuf(standard_error);
  CHECK(history.train_loss().size() == 2);
  CHECK(history.last_batch_loss().size() == 2);
  CHECK(history.validation_loss().size() == 2);
  CHECK(history.train_loss()[1] < history.train_loss()[0]);
  CHECK(attend::test::lines_of(path).size() == 3);
  CHECK(shown.str().find("epoch 2/2") != std::string::npos);
}

TEST_CASE("Trainer: it is made from a model alone; the model is a holder, a Sequential or a shared_ptr") {
  const Samples data = linear_samples(8);
  const auto learns = [&](auto& trainer) {
    const double before = trainer.evaluate(data);
    trainer.fit(data);
    CHECK(trainer.evaluate(data) < before);
  };
  torch::nn::Linear holder = linear_model();
  Trainer of_holder(holder);
  learns(of_holder);
  CHECK_FALSE(torch::equal(holder->weight, linear_model()->weight));  // shared, not copied

  torch::nn::Sequential sequential(linear_model(), torch::nn::Dropout(0.0));
  Trainer of_sequential(sequential, TrainerOptions().epochs(1));
  learns(of_sequential);

  const std::shared_ptr<torch::nn::LinearImpl> shared = linear_model().ptr();
  Trainer of_shared(shared, TrainerOptions().epochs(1));
  learns(of_shared);
}

TEST_CASE("Trainer: a fit equals a hand-written loop with torch::optim::Adam over the same batches") {
  const Samples data = linear_samples(10);
  OneByOne recording(data);
  torch::nn::Linear model = linear_model();
  Trainer trainer(model, TrainerOptions().epochs(3).batch_size(4).learning_rate(0.05));
  trainer.fit(recording);

  torch::nn::Linear by_hand = linear_model();
  torch::optim::Adam optimizer(by_hand->parameters(), 0.05);
  const std::vector<std::int64_t> order(recording.asked->begin(), recording.asked->end());
  REQUIRE(order.size() == 30);
  for (const auto& epoch : torch::tensor(order).split(10)) {
    for (const auto& rows : epoch.split(4)) {
      optimizer.zero_grad();
      torch::nn::functional::mse_loss(by_hand->forward(data.x.index_select(0, rows)), data.y.index_select(0, rows))
          .backward();
      optimizer.step();
    }
  }
  CHECK(torch::allclose(model->weight, by_hand->weight, 0, 1e-12));
  CHECK(torch::allclose(model->bias, by_hand->bias, 0, 1e-12));
}

TEST_CASE("Trainer: a parameter that two submodules share is trained once, as in Python") {
  struct Tied : torch::nn::Module {
    Tied() {
      torch::manual_seed(3);
      first = register_module("first", torch::nn::Linear(3, 3));
      second = register_parameter("second", first->weight);
      to(torch::kDouble);
    }
    torch::Tensor forward(const torch::Tensor& x) { return torch::linear(first(x), second).sum(1, /*keepdim=*/true); }
    torch::nn::Linear first{nullptr};
    torch::Tensor second;
  };
  const Samples samples = linear_samples(32);
  const auto by_hand = std::make_shared<Tied>(), trained = std::make_shared<Tied>();
  REQUIRE(trained->parameters().size() == 3);

  torch::optim::Adam optimizer({by_hand->first->weight, by_hand->first->bias}, torch::optim::AdamOptions(1e-2));
  for (int epoch = 0; epoch < 5; ++epoch) {
    optimizer.zero_grad();
    torch::nn::functional::mse_loss(by_hand->forward(samples.x), samples.y).backward();
    optimizer.step();
  }
  std::size_t gradients = 0;
  struct Count {
    std::size_t& gradients;
    void on_before_step(attend::TrainingState& state) { gradients = state.gradients().size(); }
  };
  attend::Trainer trainer(trained, TrainerOptions().epochs(5).batch_size(32).learning_rate(1e-2));
  trainer.fit(samples, Count{gradients});
  CHECK(gradients == 2);
  CHECK(torch::allclose(trained->first->weight, by_hand->first->weight, 0, 1e-12));
  CHECK(torch::allclose(trained->first->bias, by_hand->first->bias, 0, 1e-12));
}

TEST_CASE("Trainer: the loss may be a function or a module of torch::nn, the optimizer any of torch::optim") {
  const Samples data = linear_samples(8);
  const TrainerOptions options = TrainerOptions().epochs(3).batch_size(8).learning_rate(0.1);
  const auto with_loss = [&](auto loss) {
    torch::nn::Linear model = linear_model();
    Trainer(model, options, loss, kPlainSgd).fit(data);
    return model->weight.detach().clone();
  };
  // One batch has all samples, so their order changes only rounding errors.
  torch::nn::Linear by_hand = linear_model();
  torch::optim::SGD optimizer(by_hand->parameters(), 0.1);
  for (int epoch = 0; epoch < 3; ++epoch) {
    optimizer.zero_grad();
    torch::nn::functional::l1_loss(by_hand->forward(data.x), data.y).backward();
    optimizer.step();
  }
  CHECK(torch::allclose(with_loss([](const torch::Tensor& outputs, const torch::Tensor& targets) {
                          return (outputs - targets).abs().mean();
                        }),
                        by_hand->weight, 0, 1e-12));
  CHECK(torch::allclose(with_loss(torch::nn::L1Loss()), by_hand->weight, 0, 1e-12));
}

// ---- Data --------------------------------------------------------------------------------------------------------

TEST_CASE("Trainer: the same samples give the same bits, as tensors and as datasets of torch::data") {
  const Samples data = linear_samples(10), validation = linear_samples(5, 3);
  const auto fit = [](auto&& train_set, auto&& validation_set) {
    torch::nn::Linear model = linear_model();
    const attend::History history =
        Trainer(model, TrainerOptions().epochs(2).batch_size(4)).fit(train_set, validation_set);
    std::vector<double> result = {model->bias.item<double>()};
    for (const attend::EpochRecord& epoch : history.epochs())
      result.insert(result.end(), {epoch.train_loss, epoch.last_batch_loss, epoch.validation_loss});
    return result;
  };
  const std::vector<double> expected = fit(data, validation);
  CHECK(fit(OneByOne(data), OneByOne(validation)) == expected);
  CHECK(fit(InBatches(data), InBatches(validation)) == expected);
  CHECK(fit(OneByOne(data).map(torch::data::transforms::Stack<>()),
            OneByOne(validation).map(torch::data::transforms::Stack<>())) == expected);
  CHECK(fit(InBatches(data), validation) == expected);
  CHECK(fit(MadeOnDemand{data}, MadeOnDemand{validation}) == expected);
}

// ---- The order of the samples ------------------------------------------------------------------------------------

namespace {

/// The samples that each of `epochs` epochs requests.
std::vector<Indices> orders(const TrainerOptions& options, std::size_t samples = 12) {
  OneByOne data(linear_samples(samples));
  Trainer(linear_model(), options).fit(data);
  std::vector<Indices> epochs;
  for (auto epoch = data.asked->begin(); epoch != data.asked->end(); epoch += samples)
    epochs.emplace_back(epoch, epoch + samples);
  return epochs;
}

}  // namespace

TEST_CASE("Trainer: each epoch uses every sample once, in a different order") {
  const std::vector<Indices> epochs = orders(TrainerOptions().epochs(5).batch_size(5));
  REQUIRE(epochs.size() == 5);
  Indices all(12);
  std::iota(all.begin(), all.end(), 0);
  for (Indices epoch : epochs) {
    CHECK(epoch != all);
    std::sort(epoch.begin(), epoch.end());
    CHECK(epoch == all);
  }
  CHECK(std::set<Indices>(epochs.begin(), epochs.end()).size() == 5);
}

TEST_CASE("Trainer: the order of an epoch depends only on the seed and the epoch") {
  const TrainerOptions options = TrainerOptions().epochs(3).batch_size(4).seed(7);
  torch::manual_seed(1);
  const std::vector<Indices> expected = orders(options);
  torch::manual_seed(2);
  CHECK(orders(options) == expected);
  torch::rand(100);
  CHECK(orders(TrainerOptions(options).batch_size(5).learning_rate(0.5)) == expected);
  CHECK(orders(TrainerOptions(options).epochs(2)) == std::vector<Indices>(expected.begin(), expected.end() - 1));

  const std::vector<Indices> others = orders(TrainerOptions(options).seed(8));
  for (const Indices& epoch : others) CHECK(std::count(expected.begin(), expected.end(), epoch) == 0);
  const std::uint64_t high_bits_only = 7 + (std::uint64_t{1} << 40);
  CHECK(orders(TrainerOptions(options).seed(high_bits_only)) != expected);
}

TEST_CASE("Trainer: shuffling draws nothing from torch's generator") {
  torch::manual_seed(5);
  const torch::Tensor expected = torch::rand({4});
  Trainer trainer(linear_model(), TrainerOptions().epochs(3).batch_size(4));
  torch::manual_seed(5);
  trainer.fit(linear_samples(8), linear_samples(4));
  CHECK(torch::equal(torch::rand({4}), expected));
}

TEST_CASE("Trainer: two fits of two epochs equal one fit of four epochs") {
  OneByOne data(linear_samples(10));
  torch::nn::Linear model = linear_model();
  Trainer(model, TrainerOptions().epochs(4).batch_size(4)).fit(data);
  const Indices asked = std::exchange(*data.asked, {});

  torch::nn::Linear resumed = linear_model();
  Trainer trainer(resumed, TrainerOptions().epochs(2).batch_size(4));
  const attend::History first = trainer.fit(data);
  std::vector<std::int64_t> epochs;
  const attend::History second = trainer.fit(data, Hooks{.epoch_begin = [&](TrainingState& state) {
                                               epochs.push_back(state.epoch);
                                               CHECK(state.epochs == 4);
                                             }});
  CHECK(*data.asked == asked);
  CHECK(torch::equal(resumed->weight, model->weight));
  CHECK(epochs == std::vector<std::int64_t>{2, 3});

  // Each fit returns its own epochs; the trainer keeps all epochs.
  CHECK(first.epochs().size() == 2);
  CHECK(second.epochs().size() == 2);
  std::vector<double> both = first.train_loss();
  for (const double loss : second.train_loss()) both.push_back(loss);
  CHECK(trainer.history().train_loss() == both);
}

TEST_CASE("Trainer::resume(): another trainer with loaded weights and optimizer continues with the same numbers") {
  Samples data = linear_samples(10);
  torch::nn::Linear straight = linear_model();
  Trainer whole(straight, TrainerOptions().epochs(4).batch_size(4));
  whole.fit(data);

  torch::nn::Linear model = linear_model();
  Trainer first(model, TrainerOptions().epochs(2).batch_size(4));
  first.fit(data);
  std::stringstream weights, state;
  torch::save(model, weights);
  torch::save(first.optimizer(), state);

  torch::nn::Linear loaded = linear_model();
  torch::load(loaded, weights);
  Trainer second(loaded, TrainerOptions().epochs(2).batch_size(4));
  torch::load(second.optimizer(), state);
  second.resume(first.history());
  CHECK(second.fit(data).epochs().size() == 2);
  CHECK(loaded->weight.equal(straight->weight));
  CHECK(second.history().train_loss() == whole.history().train_loss());
  CHECK(message_of<c10::ValueError>([&] { second.resume(first.history()); }) ==
        "attend::Trainer: resume() needs a trainer without recorded epochs; this one has 4");
}

// ---- Losses and times --------------------------------------------------------------------------------------------

TEST_CASE("train_loss: it is the mean over samples, also if the last batch is smaller") {
  const Samples data = linear_samples(10);
  for (const std::int64_t batch_size : {1, 3, 4, 10, 32}) {
    CAPTURE(batch_size);
    OneByOne recording(data);
    torch::nn::Linear model = linear_model();
    auto trainer = trainer_that_stands_still(model, batch_size);
    const attend::History history = trainer.fit(recording);
    REQUIRE(history.epochs().size() == 1);
    CHECK(history.train_loss()[0] == doctest::Approx(mean_squared_error(model, data.x, data.y)).epsilon(1e-12));

    const std::int64_t last_batch = (10 - 1) % batch_size + 1;
    const std::vector<std::int64_t> last(recording.asked->end() - last_batch, recording.asked->end());
    CHECK(history.last_batch_loss()[0] ==
          doctest::Approx(mean_squared_error(model, data.x.index_select(0, torch::tensor(last)),
                                             data.y.index_select(0, torch::tensor(last))))
              .epsilon(1e-12));
  }
}

TEST_CASE("train_loss: it is measured while the weights change") {
  const Samples data = linear_samples(8);
  std::vector<double> losses;
  const attend::History history =
      Trainer(linear_model(), TrainerOptions().epochs(1).batch_size(2).learning_rate(0.1))
          .fit(data, Hooks{.batch_end = [&](TrainingState& state) { losses.push_back(state.loss.item<double>()); }});
  REQUIRE(losses.size() == 4);
  CHECK(history.train_loss()[0] == doctest::Approx((losses[0] + losses[1] + losses[2] + losses[3]) / 4).epsilon(1e-12));
  CHECK(history.last_batch_loss()[0] == losses[3]);
}

TEST_CASE("Trainer: the validation loss is the mean over samples after the epoch, and NaN without a set") {
  const Samples data = linear_samples(8), validation = linear_samples(7, 3);
  torch::nn::Linear model = linear_model();
  Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4).learning_rate(0.1));
  std::vector<double> expected;
  const attend::History history =
      trainer.fit(data, validation, Hooks{.epoch_end = [&](TrainingState&) {
                    expected.push_back(mean_squared_error(model, validation.x, validation.y));
                  }});
  REQUIRE(history.epochs().size() == 2);
  for (std::size_t epoch = 0; epoch < 2; ++epoch)
    CHECK(history.validation_loss()[epoch] == doctest::Approx(expected[epoch]).epsilon(1e-12));
  CHECK(trainer.evaluate(validation) == doctest::Approx(expected[1]).epsilon(1e-12));
  CHECK(std::isnan(trainer.fit(data).validation_loss()[0]));
}

TEST_CASE("seconds: the time of an epoch includes validation, and the sum is at most the time of the fit") {
  struct Slow : InBatches {
    using InBatches::InBatches;
    Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      return InBatches::get_batch(indices);
    }
  };
  double at_end = 0;
  Hooks look{.fit_end = [&](TrainingState& state) { at_end = state.seconds; }};
  const attend::History history =
      Trainer(linear_model(), TrainerOptions().epochs(3)).fit(linear_samples(8), Slow(linear_samples(4, 3)), look);
  for (const double seconds : history.seconds()) CHECK(seconds >= 0.02);
  CHECK(at_end >= history.seconds()[0] + history.seconds()[1] + history.seconds()[2]);
}

// ---- Training mode and evaluation mode ---------------------------------------------------------------------------

namespace {

torch::nn::Sequential model_with_modes() {
  torch::manual_seed(3);
  torch::nn::Sequential model(torch::nn::Linear(3, 8), torch::nn::BatchNorm1d(8), torch::nn::Dropout(0.5),
                              torch::nn::Linear(8, 1));
  model->to(torch::kDouble);
  return model;
}

bool everything_trains(torch::nn::Sequential model) {
  const auto modules = model->modules();
  return std::all_of(modules.begin(), modules.end(), [](const auto& module) { return module->is_training(); });
}

}  // namespace

TEST_CASE("Trainer: validation changes no running statistics, no random numbers and no weights") {
  const Samples data = linear_samples(12);
  const auto trained = [&](auto&&... validation_set) {
    torch::nn::Sequential model = model_with_modes();
    Trainer(model, TrainerOptions().epochs(3).batch_size(4)).fit(data, validation_set...);
    std::vector<torch::Tensor> tensors = model->parameters();
    for (const torch::Tensor& buffer : model->buffers()) tensors.push_back(buffer);
    return tensors;
  };
  CHECK(same(trained(), trained(linear_samples(9, 3))));
  CHECK_FALSE(same(trained(), model_with_modes()->parameters()));
}

TEST_CASE("Trainer: validation uses evaluation mode without gradients and then restores training mode") {
  const Samples validation = linear_samples(6, 3);
  torch::nn::Sequential model = model_with_modes();
  bool with_gradients = false;
  Trainer trainer(model, TrainerOptions().epochs(1).batch_size(4),
                  [&](const torch::Tensor& outputs, const torch::Tensor& targets) {
                    if (!model->is_training()) with_gradients |= outputs.requires_grad();
                    return torch::nn::functional::mse_loss(outputs, targets);
                  });
  const attend::History history = trainer.fit(linear_samples(12), validation);
  CHECK_FALSE(with_gradients);
  CHECK(everything_trains(model));

  model->eval();
  const double expected = torch::nn::functional::mse_loss(model->forward(validation.x), validation.y).item<double>();
  CHECK(history.validation_loss()[0] == doctest::Approx(expected).epsilon(1e-12));

  CHECK(trainer.evaluate(validation) == doctest::Approx(expected).epsilon(1e-12));
  CHECK_FALSE(model->is_training());  // as it was before evaluate()
  trainer.fit(linear_samples(12), Hooks{.batch_end = [&](TrainingState&) { CHECK(everything_trains(model)); }});
}

TEST_CASE("Trainer: modules that on_fit_begin puts into evaluation mode stay there; the others are in training mode") {
  torch::nn::Sequential model = model_with_modes();
  model->eval();
  const auto norm = model[1];
  const auto only_the_norm_is_frozen = [&](TrainingState&) {
    for (const auto& module : model->modules()) CHECK(module->is_training() == (module != norm));
  };
  Trainer trainer(model, TrainerOptions().epochs(2).batch_size(4));
  trainer.fit(linear_samples(8), linear_samples(4, 3),
              Hooks{.fit_begin = [&](TrainingState&) { norm->eval(); },
                    .epoch_begin = only_the_norm_is_frozen,
                    .before_step = only_the_norm_is_frozen,
                    .fit_end = only_the_norm_is_frozen});
  trainer.evaluate(linear_samples(4, 3));
  for (const auto& module : model->modules()) CHECK(module->is_training() == (module != norm));
}

TEST_CASE("Trainer: training mode is restored if validation throws") {
  torch::nn::Sequential model = model_with_modes();
  Trainer trainer(model, TrainerOptions().epochs(1).batch_size(4));
  const Samples misfit{normal({4, 3}, 1), normal({4, 2}, 2)};
  message_of<c10::ValueError>([&] { trainer.fit(linear_samples(8), misfit); });
  CHECK(everything_trains(model));
  message_of<c10::ValueError>([&] { trainer.evaluate(misfit); });
  CHECK(everything_trains(model));
}

// ---- Callbacks ---------------------------------------------------------------------------------------------------

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

// ---- Errors ------------------------------------------------------------------------------------------------------

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
