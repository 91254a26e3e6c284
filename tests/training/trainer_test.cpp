// SPDX-License-Identifier: MIT

// Tests what Trainer computes: data, order, losses, modes.

#include <attend/data/shape_dataset.h>
#include <attend/layers/conv_stack.h>
#include <attend/training/callbacks/csv_log.h>
#include <attend/training/callbacks/progress_bar.h>
#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"
#include "training/trainer_support.h"

#include <doctest/doctest.h>
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
#include <iostream>
#include <memory>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::TrainingState;
using attend::test::Hooks;
using attend::test::InBatches;
using attend::test::Indices;
using attend::test::kPlainSgd;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::MadeOnDemand;
using attend::test::mean_squared_error;
using attend::test::message_of;
using attend::test::normal;
using attend::test::OneByOne;
using attend::test::same;
using attend::test::Samples;
using attend::test::trainer_that_stands_still;
using torch::data::Example;

namespace trainer_test {

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

}  // namespace trainer_test
