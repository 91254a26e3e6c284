// SPDX-License-Identifier: MIT
#include <attend/training/callbacks/checkpoint.h>

#include <attend/io/checkpoint_folder.h>
#include <attend/training/adam.h>
#include <attend/training/callbacks/csv_log.h>
#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <doctest/doctest.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using attend::Checkpoint;
using attend::CheckpointData;
using attend::CheckpointFolder;
using attend::CheckpointOptions;
using attend::FileError;
using attend::Trainer;
using attend::TrainerOptions;
using attend::TrainingState;
using attend::test::bytes_of;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::lines_of;
using attend::test::message_of;
using attend::test::normal;
using attend::test::Samples;
using attend::test::TemporaryFolder;
using attend::test::write_bytes;

namespace {

constexpr std::int64_t kEpochs = 3, kBatchSize = 4, kSamples = 10;  // batches of 4, 4 and 2 samples

/// A net with buffers and random numbers. The seed of the initial weights is that of torch.
torch::nn::Sequential net_with_dropout() {
  torch::nn::Sequential net(torch::nn::Linear(3, 8), torch::nn::BatchNorm1d(8), torch::nn::Dropout(0.5),
                            torch::nn::Linear(8, 1));
  net->to(torch::kDouble);
  return net;
}

TrainerOptions options(std::int64_t accumulation_steps = 1) {
  return TrainerOptions()
      .epochs(kEpochs)
      .batch_size(kBatchSize)
      .learning_rate(0.01)
      .seed(3)
      .accumulation_steps(accumulation_steps);
}

/// The process that is killed.
struct Killed {};

/// Ends a training without notice, after this number of batches.
struct Kill {
  int batches;
  void on_batch_end(TrainingState&) {
    if (batches-- == 0) throw Killed();
  }
};

/// Changes the learning rate, freezes a layer and sets modes, by state that it counts itself.
struct Schedule {
  int batches = 0;
  void on_batch_end(TrainingState& state) {
    ++batches;
    state.set_learning_rate(0.01 / batches);
    if (batches == 4) state.model.children()[1]->eval();
    if (batches == 5) state.model.children()[3]->named_parameters()["bias"].set_requires_grad(false);
  }
  std::string save_state() const { return std::to_string(batches); }
  void load_state(const std::string& text) { batches = std::stoi(text); }
};

/// All numbers of a training, without times.
struct Numbers {
  std::vector<torch::Tensor> tensors;
  std::vector<double> figures;
  Schedule schedule;

  template <class ATrainer>
  static Numbers of(ATrainer& trainer, const torch::nn::Sequential& net, const attend::History& fitted,
                    const Schedule& schedule) {
    Numbers numbers{{}, {}, schedule};
    for (const auto& of_net : {net->parameters(), net->buffers()})
      for (const torch::Tensor& tensor : of_net) numbers.tensors.push_back(tensor.detach().clone());
    numbers.tensors.push_back(torch::rand({4}));  // what comes next from the generator
    for (const auto* history : {&trainer.history(), &fitted})
      for (const attend::EpochRecord& record : history->epochs())
        for (const double figure : {record.train_loss, record.last_batch_loss, record.validation_loss})
          numbers.figures.push_back(figure);
    return numbers;
  }

  friend bool operator==(const Numbers& a, const Numbers& b) {
    if (a.tensors.size() != b.tensors.size()) return false;
    for (std::size_t i = 0; i < a.tensors.size(); ++i)
      if (!torch::equal(a.tensors[i], b.tensors[i])) return false;
    return a.figures == b.figures && a.schedule.batches == b.schedule.batches;
  }
};

/// Trains in a folder, continues from its checkpoints if it has some, and is killed after a number of batches.
template <class MakeOptimizer>
std::optional<Numbers> train(const std::string& folder, int batches, const MakeOptimizer& make_optimizer,
                             const TrainerOptions& options, const CheckpointOptions& checkpoint_options) {
  const Samples samples = linear_samples(kSamples), held_out = linear_samples(4, 21);
  torch::manual_seed(1);
  torch::nn::Sequential net = net_with_dropout();
  Trainer trainer(net, options, attend::MeanSquaredError(), make_optimizer);
  trainer.resume(folder);
  Schedule schedule;
  try {
    const attend::History fitted =
        trainer.fit(samples, held_out, Checkpoint(folder, checkpoint_options), schedule, Kill{batches});
    return Numbers::of(trainer, net, fitted, schedule);
  } catch (const Killed&) {
    return std::nullopt;
  }
}

constexpr int kNever = 1000;

template <class MakeOptimizer>
void check_cuts(const std::vector<int>& cuts, const MakeOptimizer& make_optimizer, std::int64_t accumulation_steps = 1,
                const CheckpointOptions& checkpoint_options = CheckpointOptions().every_batches(1)) {
  TemporaryFolder folder;
  const TrainerOptions trainer_options = options(accumulation_steps);
  const Numbers whole =
      train(folder.path() + "/whole", kNever, make_optimizer, trainer_options, checkpoint_options).value();
  for (const int batches : cuts) {
    CAPTURE(batches);
    const std::string path = folder.path() + "/" + std::to_string(batches);
    CHECK(!train(path, batches, make_optimizer, trainer_options, checkpoint_options));
    torch::manual_seed(99);
    const auto numbers = train(path, kNever, make_optimizer, trainer_options, checkpoint_options);
    CHECK(numbers.value() == whole);
  }
}

template <class Optimizer, class Options>
auto maker(const Options& options) {
  return [=](std::vector<torch::Tensor> parameters, double rate) {
    Options with_rate = options;
    with_rate.lr(rate);
    return Optimizer(std::move(parameters), with_rate);
  };
}

/// The positions of the checkpoints in a folder, as "EPOCH.BATCH EPOCH.BATCH".
std::string positions_in(const std::string& folder) {
  std::string positions;
  for (const auto& [position, path] : CheckpointFolder(folder).files())
    positions += (positions.empty() ? "" : " ") + std::to_string(position.epoch) + '.' + std::to_string(position.batch);
  return positions;
}

/// A training without Checkpoint's choices: three batches in an epoch.
template <class... Callbacks>
void fit_linear(const TrainerOptions& options, Callbacks&&... callbacks) {
  Trainer(linear_model(), options).fit(linear_samples(kSamples), callbacks...);
}

}  // namespace

// ---- Trainer::resume() -------------------------------------------------------------------------------------------

TEST_CASE("Trainer::resume(): cut after any batch, a training continues bit-identically, with attend's optimizers") {
  check_cuts({0, 1, 2, 3, 4, 5, 6, 7, 8}, attend::MakeAdam());
  check_cuts({1, 5}, maker<attend::AdamW>(torch::optim::AdamWOptions().weight_decay(0.1).amsgrad(true)));
}

TEST_CASE("Trainer::resume(): cut after any batch, a training continues bit-identically, with torch's optimizers") {
  check_cuts({1, 5}, maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9)));
  check_cuts({1, 5}, maker<torch::optim::Adam>(torch::optim::AdamOptions()));
  check_cuts({1, 5}, maker<torch::optim::RMSprop>(torch::optim::RMSpropOptions().momentum(0.5)));
  check_cuts({1, 5}, maker<torch::optim::Adagrad>(torch::optim::AdagradOptions()));
}

TEST_CASE("Trainer::resume(): with accumulation_steps a checkpoint holds complete updates only") {
  check_cuts({2, 4, 7}, attend::MakeAdam(), 2);
  check_cuts({2, 4, 7}, attend::MakeAdam(), 5);
}

TEST_CASE("Trainer::resume(): with rare checkpoints it repeats the batches after the last one") {
  check_cuts({2, 4, 7}, attend::MakeAdam(), 1, CheckpointOptions().every_batches(2).keep_last(1));
  check_cuts({2, 4, 7}, attend::MakeAdam(), 1, CheckpointOptions());
  check_cuts({2, 4, 7}, attend::MakeAdam(), 1, CheckpointOptions().every_epochs(2));
}

TEST_CASE("Trainer::resume(): a training may be cut many times") {
  TemporaryFolder folder;
  const CheckpointOptions every_batch = CheckpointOptions().every_batches(1);
  const auto whole = train(folder.path() + "/whole", kNever, attend::MakeAdam(), options(), every_batch);
  std::optional<Numbers> numbers;
  int runs = 0;
  for (; !numbers; ++runs) numbers = train(folder.path() + "/parts", 1, attend::MakeAdam(), options(), every_batch);
  CHECK(runs == 9);
  CHECK(*numbers == *whole);
}

TEST_CASE("Trainer::resume(): a stop by a callback is continued where it was") {
  struct Stop {
    int batches;
    bool on_batch_end(TrainingState&) { return --batches == 0; }
  };
  TemporaryFolder folder;
  torch::nn::Linear whole = linear_model(), parts = linear_model();
  Trainer(whole, options()).fit(linear_samples(kSamples));
  {
    Trainer trainer(linear_model(), options());
    trainer.fit(linear_samples(kSamples), Checkpoint(folder.path()), Stop{5});
    CHECK(trainer.history().epochs().size() == 2);  // the second one is not complete
  }
  CHECK(positions_in(folder.path()) == "1.0 1.2");
  Trainer trainer(parts, options());
  CHECK(trainer.resume(folder.path()) == folder.path() + "/checkpoint-000001-00000002.safetensors");
  CHECK(trainer.history().epochs().size() == 1);
  CHECK(trainer.fit(linear_samples(kSamples)).epochs().size() == 3);
  CHECK(torch::equal(parts->weight, whole->weight));
}

TEST_CASE("Trainer::resume(): after the last epoch, more epochs train on and equal epochs train nothing") {
  TemporaryFolder folder;
  torch::nn::Linear whole = linear_model();
  Trainer(whole, options().epochs(5)).fit(linear_samples(kSamples));
  fit_linear(options(), Checkpoint(folder.path()));
  for (const std::int64_t epochs : {3, 5}) {
    CAPTURE(epochs);
    torch::nn::Linear model(3, 1);
    model->to(torch::kDouble);
    Trainer trainer(model, options().epochs(epochs));
    CHECK(trainer.resume(folder.path()));
    const attend::History fitted = trainer.fit(linear_samples(kSamples), Checkpoint(folder.path()));
    CHECK(static_cast<std::int64_t>(fitted.epochs().size()) == epochs);
    CHECK(torch::equal(model->weight, whole->weight) == (epochs == 5));
  }
}

TEST_CASE("Trainer::resume(): without a checkpoint it returns nothing, and the training begins at the beginning") {
  TemporaryFolder folder;
  torch::nn::Linear model = linear_model(), other = linear_model();
  Trainer trainer(model, options());
  CHECK(trainer.resume(folder.path()) == std::nullopt);
  CHECK(trainer.resume(folder.path() + "/missing") == std::nullopt);
  trainer.fit(linear_samples(kSamples));
  Trainer(other, options()).fit(linear_samples(kSamples));
  CHECK(torch::equal(model->weight, other->weight));
}

TEST_CASE("Trainer::resume(): a trainer with recorded epochs is refused") {
  TemporaryFolder folder;
  Trainer trainer(linear_model(), options());
  trainer.fit(linear_samples(kSamples), Checkpoint(folder.path()));
  CHECK(message_of<c10::ValueError>([&] { trainer.resume(folder.path()); }) ==
        "attend::Trainer: resume() needs a trainer without recorded epochs; this one has 3");
}

TEST_CASE("Trainer::resume(): one message lists all settings that differ") {
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path()));
  const std::string path = folder.path() + "/checkpoint-000003-00000000.safetensors";
  torch::nn::Linear model = linear_model();
  const torch::Tensor weight = model->weight.detach().clone();
  Trainer trainer(model, TrainerOptions().batch_size(5).seed(4).learning_rate(0.02).accumulation_steps(2).autocast(
                             torch::kBFloat16));
  CHECK(message_of<FileError>([&] { trainer.resume(folder.path()); }) ==
        "attend::Trainer::resume: " + path +
            ": accumulation_steps: expected 2, found 1; autocast: expected BFloat16, found none; batch_size: expected "
            "5, found 4; learning_rate: expected 0.02, found 0.01; seed: expected 4, found 3");
  CHECK(torch::equal(model->weight, weight));
  CHECK(trainer.history().epochs().empty());

  Trainer right(linear_model(), options());
  right.resume(folder.path());
  CHECK(message_of<FileError>([&] { right.fit(linear_samples(11)); }) ==
        "attend::Trainer::resume: " + path + ": samples: expected 11, found 10");
}

TEST_CASE("Trainer::resume(): one message lists all differences of the model and of the optimizer") {
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path()));
  const std::string begin =
      "attend::load_training_state: " + folder.path() + "/checkpoint-000003-00000000.safetensors: ";
  const auto message = [&](auto model, auto make_optimizer) {
    Trainer trainer(model, options(), attend::MeanSquaredError(), make_optimizer);
    const std::string text = message_of<FileError>([&] { trainer.resume(folder.path()); });
    CHECK(trainer.history().epochs().empty());
    return text;
  };
  const auto sgd = maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1));
  CHECK(message(linear_model(), sgd) == begin + "optimizer: expected SGD, found Adam");
  CHECK(message(torch::nn::Linear(torch::nn::LinearOptions(4, 1).bias(false)), attend::MakeAdam()) ==
        begin +
            "tensor \"model.weight\": expected Float [1, 4], found Double [1, 3]; tensor \"model.bias\": expected "
            "none, found Double [1]");
  CHECK(message(torch::nn::Sequential(linear_model()), attend::MakeAdam()) ==
        begin +
            "tensor \"model.0.weight\": expected Double [1, 3], found none; tensor \"model.0.bias\": expected "
            "Double [1], found none; tensor \"model.bias\": expected none, found Double [1]; tensor "
            "\"model.weight\": expected none, found Double [1, 3]");
}

TEST_CASE("save_state and load_state: a fit without the callbacks of the saved one is refused") {
  TemporaryFolder folder;
  struct Counter {
    int batches = 0;
    void on_batch_end(TrainingState&) { ++batches; }
    std::string save_state() const { return std::to_string(batches); }
    void load_state(const std::string& text) { batches = std::stoi(text); }
  };
  fit_linear(options(), Checkpoint(folder.path()), Counter());
  Trainer trainer(linear_model(), options());
  trainer.resume(folder.path());
  CHECK(message_of<FileError>([&] { trainer.fit(linear_samples(kSamples)); }) ==
        "attend::Trainer::resume: " + folder.path() +
            "/checkpoint-000003-00000000.safetensors: expected the states of 0 callbacks, found 1: fit() must have the "
            "callbacks of the saved fit");

  struct OtherCounter : Counter {};
  Trainer other(linear_model(), options());
  other.resume(folder.path());
  CHECK(message_of<FileError>([&] { other.fit(linear_samples(kSamples), OtherCounter()); }) ==
        "attend::Trainer::resume: " + folder.path() +
            "/checkpoint-000003-00000000.safetensors: callback.0: expected OtherCounter, found Counter");
}

TEST_CASE("Checkpoint: a fit is saved where it ends, whichever hook has ended it") {
  struct StopInBegin {
    bool on_epoch_begin(TrainingState& state) { return state.epoch == 2; }
  };
  struct StopInCheckpoint {
    bool on_checkpoint(TrainingState& state) { return state.epoch == 1 && state.batch == 2; }
  };
  const CheckpointOptions rare = CheckpointOptions().every_epochs(5).keep_best(false);
  {
    TemporaryFolder folder;
    fit_linear(options(), Checkpoint(folder.path(), rare), StopInBegin());
    CHECK(positions_in(folder.path()) == "2.0");
  }
  for (const bool is_first : {true, false}) {
    TemporaryFolder folder;
    if (is_first)
      fit_linear(options(), StopInCheckpoint(), Checkpoint(folder.path(), rare));
    else
      fit_linear(options(), Checkpoint(folder.path(), rare), StopInCheckpoint());
    CHECK(positions_in(folder.path()) == "1.2");
  }
}

TEST_CASE("Trainer::resume(): a damaged newest checkpoint is reported, and the one before it is used") {
  TemporaryFolder folder;
  const CheckpointOptions every_batch = CheckpointOptions().every_batches(1);
  const auto whole = train(folder.path() + "/whole", kNever, attend::MakeAdam(), options(), every_batch);
  const std::string path = folder.path() + "/cut";
  train(path, 5, attend::MakeAdam(), options(), every_batch);
  const std::string newest = path + "/checkpoint-000001-00000002.safetensors";
  std::string bytes = bytes_of(newest);
  bytes[bytes.size() / 2] ^= 1;
  write_bytes(newest, bytes);

  struct Messages : c10::WarningHandler {
    void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
    std::vector<std::string> texts;
  } messages;
  {
    const c10::WarningUtils::WarningHandlerGuard guard(&messages);
    CHECK(train(path, kNever, attend::MakeAdam(), options(), every_batch).value() == *whole);
  }
  REQUIRE(messages.texts.size() == 1);
  CHECK(messages.texts[0].starts_with("attend::load_checkpoint: " + newest +
                                      ": the file is damaged: expected the checksum"));
  CHECK(messages.texts[0].ends_with("; the checkpoint before it is used"));

  for (const auto& [position, file] : CheckpointFolder(path).files()) write_bytes(file, "");
  Trainer trainer(net_with_dropout(), options());
  const c10::WarningUtils::WarningHandlerGuard guard(&messages);
  CHECK(message_of<FileError>([&] { trainer.resume(path); })
            .starts_with("attend::CheckpointFolder: " + path +
                         ": no checkpoint can be loaded; the newest: attend::load_checkpoint: " + path));
  CHECK(messages.texts.size() == 4);
}

TEST_CASE("Trainer::resume(): a whole file without the parts of a training is an error that names the part") {
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path(), CheckpointOptions().every_batches(1)));
  const CheckpointData right = attend::load_checkpoint(folder.path() + "/checkpoint-000002-00000003.safetensors");
  struct Case {
    const char* message;
    std::optional<torch::Tensor> tensor;
    const char* name;
  };
  const torch::Tensor number = torch::zeros({}, torch::kDouble), byte = torch::zeros({1}, torch::kByte);
  const Case tensors[] = {
      {"tensor \"history\": expected Double with 2 dimensions, found none", {}, "history"},
      {"tensor \"history\": expected four numbers for each epoch, found Double [2, 3]",
       torch::zeros({2, 3}, torch::kDouble), "history"},
      {"tensor \"history\": expected four numbers for each epoch, found Double [3, 4]",
       torch::zeros({3, 4}, torch::kDouble), "history"},
      {"tensor \"loss_sum\": expected Double with 0 dimensions, found Float []", number.to(torch::kFloat), "loss_sum"},
      {"tensor \"seconds\": expected Double with 0 dimensions, found none", {}, "seconds"},
      {"tensor \"loss\": expected one number, found Byte [1]", byte, "loss"},
      {"tensor \"flags\": expected a byte for each of 1 modules and 2 parameters, found 1", byte, "flags"},
      {"tensor \"optimizer\": expected Byte with 1 dimensions, found none", {}, "optimizer"},
      {"tensor \"optimizer\": ", byte, "optimizer"},
      {"tensor \"generator.cpu\": ", byte, "generator.cpu"},
  };
  const auto message = [&](const CheckpointData& data) {
    return message_of<FileError>([&] {
      Trainer trainer(linear_model(), options());
      trainer.resume(data);
      trainer.fit(linear_samples(kSamples));
    });
  };
  for (const Case& each : tensors) {
    CAPTURE(each.message);
    CheckpointData data = right;
    data.tensors.erase(each.name);
    if (each.tensor) data.tensors.insert(each.name, *each.tensor);
    CHECK(message(data).find(right.path + ": " + each.message) != std::string::npos);
  }
  for (const std::string name : {"trainer.epoch", "trainer.batch", "trainer.first_epoch"}) {
    for (const std::string text : {"-1", "", "1x", "9223372036854775808", "none"}) {
      CheckpointData data = right;
      if (text == "none")
        data.metadata.erase(name);
      else
        data.metadata[name] = text;
      CHECK(message(data) == "attend::Trainer::resume: " + right.path + ": " + name +
                                 ": expected a number of at least 0, found \"" + text + '"');
    }
  }
  CheckpointData data = right;
  data.metadata["trainer.first_epoch"] = "3";
  CHECK(message(data) ==
        "attend::Trainer::resume: " + right.path + ": trainer.first_epoch: expected at most 2, found 3");
}

// ---- The callback ------------------------------------------------------------------------------------------------

TEST_CASE("Checkpoint: every_epochs and every_batches say when, and a fit always ends with a checkpoint") {
  const struct {
    CheckpointOptions options;
    std::string expected;
  } cases[] = {
      {CheckpointOptions(), "1.0 2.0 3.0"},
      {CheckpointOptions().every_epochs(2), "2.0 3.0"},
      {CheckpointOptions().every_epochs(5), "3.0"},
      {CheckpointOptions().every_batches(1), "0.1 0.2 0.3 1.0 1.1 1.2 1.3 2.0 2.1 2.2 2.3 3.0"},
      {CheckpointOptions().every_batches(2), "0.2 1.0 1.2 2.0 2.2 3.0"},
      {CheckpointOptions().every_batches(4).every_epochs(9), "1.1 2.2 3.0"},
  };
  for (const auto& [checkpoint_options, expected] : cases) {
    TemporaryFolder folder;
    fit_linear(options(), Checkpoint(folder.path(), CheckpointOptions(checkpoint_options).keep_last(100)));
    CHECK(positions_in(folder.path()) == expected);
  }
}

TEST_CASE("Checkpoint: keep_last is the number of checkpoints that stay") {
  for (const std::int64_t keep_last : {1, 2}) {
    TemporaryFolder folder;
    fit_linear(options(), Checkpoint(folder.path(), CheckpointOptions().keep_last(keep_last)));
    CHECK(positions_in(folder.path()) == (keep_last == 1 ? "3.0" : "2.0 3.0"));
  }
}

TEST_CASE("Checkpoint: keep_best keeps the epoch with the lowest validation loss, without one the training loss") {
  // The loss is the weight itself, which the optimizer leaves alone; a callback sets it.
  struct SetWeight {
    std::vector<double> values;
    void on_epoch_begin(TrainingState& state) {
      const c10::NoGradGuard no_grad;
      state.model.parameters()[0].fill_(values[static_cast<std::size_t>(state.epoch)]);
    }
  };
  const auto loss = [](const torch::Tensor& outputs, const torch::Tensor&) { return outputs.mean(); };
  const auto sgd = maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1));
  const torch::Tensor ones = torch::ones({4, 1}, torch::kDouble);
  const double nan = std::nan("");
  const struct {
    std::vector<double> losses;
    double best;
  } cases[] = {{{3, 1, 2}, 1}, {{1, 2, 3}, 1}, {{3, 2, 1}, 1}, {{1, 1, 2}, 1}, {{nan, 2, nan}, 2}};
  for (const auto& [losses, best] : cases) {
    for (const bool has_validation : {false, true}) {
      TemporaryFolder folder;
      torch::nn::Linear model(torch::nn::LinearOptions(1, 1).bias(false));
      model->to(torch::kDouble);
      Trainer trainer(model, options().learning_rate(1e-300), loss, sgd);
      if (has_validation)
        trainer.fit(Samples{ones, ones}, Samples{ones, ones}, SetWeight{losses}, Checkpoint(folder.path()));
      else
        trainer.fit(Samples{ones, ones}, SetWeight{losses}, Checkpoint(folder.path()));
      const CheckpointData data = attend::load_checkpoint(CheckpointFolder(folder.path()).best_path());
      CHECK(data.tensors["model.weight"].item<double>() == best);
    }
  }
  // A model that the last update of an epoch has broken is not the best, even if the training loss of the epoch is low.
  struct BreakWeight : SetWeight {
    void on_batch_end(TrainingState& state) {
      const c10::NoGradGuard no_grad;
      if (state.epoch == 1 && state.batch + 1 == state.batches) state.model.parameters()[0].fill_(std::nan(""));
    }
  };
  TemporaryFolder broken;
  torch::nn::Linear model(torch::nn::LinearOptions(1, 1).bias(false));
  model->to(torch::kDouble);
  Trainer trainer(model, options().learning_rate(1e-300), loss, sgd);
  trainer.fit(Samples{ones, ones}, Samples{ones, ones}, BreakWeight{{{3, 1, 4}}}, Checkpoint(broken.path()));
  CHECK(attend::load_checkpoint(CheckpointFolder(broken.path()).best_path()).tensors["model.weight"].item<double>() ==
        3);
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path(), CheckpointOptions().keep_best(false)));
  CHECK(bytes_of(CheckpointFolder(folder.path()).best_path()).empty());
}

TEST_CASE("Checkpoint: metadata are in each checkpoint") {
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path(), CheckpointOptions().metadata({{"settings", "größer"}})));
  CHECK(CheckpointFolder(folder.path()).newest()->metadata.at("user.settings") == "größer");
}

TEST_CASE("Checkpoint: a fit that would remove the later checkpoints of another training is refused") {
  TemporaryFolder folder;
  fit_linear(options(), Checkpoint(folder.path()));
  const std::string before = positions_in(folder.path());
  CHECK(
      message_of<FileError>([&] { fit_linear(options(), Checkpoint(folder.path())); }) ==
      "attend::Checkpoint: " + folder.path() +
          "/checkpoint-000001-00000000.safetensors: expected no later checkpoint than epoch 0, batch 0, at which this "
          "fit begins; call Trainer::resume(), or use another folder");
  CHECK(positions_in(folder.path()) == before);
}

TEST_CASE("Checkpoint: two fits of one trainer may save in one folder") {
  TemporaryFolder folder;
  Trainer trainer(linear_model(), options());
  for (int i = 0; i < 2; ++i) trainer.fit(linear_samples(kSamples), Checkpoint(folder.path()));
  CHECK(positions_in(folder.path()) == "4.0 5.0 6.0");
}

TEST_CASE("Checkpoint: a folder that cannot be written ends the fit with an error") {
  TemporaryFolder folder;
  CHECK(message_of<FileError>([&] { fit_linear(options(), Checkpoint(folder.path() + "/a/b")); }) ==
        "attend::CheckpointFolder: " + folder.path() + "/a/b: cannot create the folder: No such file or directory");
  write_bytes(folder.path() + "/file", "");
  CHECK(message_of<FileError>([&] { fit_linear(options(), Checkpoint(folder.path() + "/file")); }) ==
        "attend::CheckpointFolder: " + folder.path() + "/file: cannot read the folder: Not a directory");
}

TEST_CASE("Checkpoint: options out of range are refused with the name and the value") {
  const auto message = [](const CheckpointOptions& options) {
    return message_of<c10::ValueError>([&] { Checkpoint("run", options); });
  };
  CHECK(message(CheckpointOptions().every_epochs(0)) == "attend::Checkpoint: every_epochs (0) must be at least 1");
  CHECK(message(CheckpointOptions().every_batches(-1)) == "attend::Checkpoint: every_batches (-1) must be at least 0");
  CHECK(message(CheckpointOptions().keep_last(0)) == "attend::Checkpoint: keep_last (0) must be at least 1");
}

TEST_CASE("on_checkpoint: it comes after the other hooks of the batch or epoch, with the position to continue from") {
  struct Recorder {
    std::vector<std::string>* calls;
    void on_checkpoint(TrainingState& state) {
      calls->push_back("checkpoint " + std::to_string(state.epoch) + ' ' + std::to_string(state.batch) +
                       (state.is_ending ? " ending" : ""));
    }
    void on_batch_end(TrainingState&) { calls->push_back("batch"); }
    void on_epoch_end(TrainingState&) { calls->push_back("epoch"); }
  };
  struct After {
    std::vector<std::string>* calls;
    void on_batch_end(TrainingState&) { calls->push_back("batch after"); }
    bool on_epoch_end(TrainingState&) {
      calls->push_back("epoch after");
      return true;
    }
  };
  std::vector<std::string> calls;
  fit_linear(options(2), Recorder{&calls}, After{&calls});
  CHECK((calls == std::vector<std::string>{"batch", "batch after", "batch", "batch after", "checkpoint 0 2", "batch",
                                           "batch after", "checkpoint 0 3", "epoch", "epoch after",
                                           "checkpoint 1 0 ending"}));
}

TEST_CASE("TrainingState: only on_checkpoint may call checkpoint(); other hooks get an error") {
  struct TooEarly {
    void on_batch_end(TrainingState& state) { state.checkpoint(); }
  };
  struct TooLate {
    void on_checkpoint(TrainingState& state) { CHECK(!state.checkpoint().tensors.is_empty()); }
    void on_fit_end(TrainingState& state) { state.checkpoint(); }
  };
  const std::string message = "attend::TrainingState: only on_checkpoint may call checkpoint()";
  CHECK(message_of<c10::ValueError>([] { fit_linear(options(1), TooEarly{}); }) == message);
  CHECK(message_of<c10::ValueError>([] { fit_linear(options(1), TooLate{}); }) == message);
}

TEST_CASE("CsvLog: after a resume the file has the lines of the epochs before the checkpoint, and no others") {
  TemporaryFolder folder;
  const std::string log = folder.file("log.csv");
  const auto without_seconds = [&] {
    std::vector<std::string> lines = lines_of(log);
    for (std::string& line : lines) line.resize(line.rfind(','));
    return lines;
  };
  fit_linear(options(), attend::CsvLog(log));
  const std::vector<std::string> whole = without_seconds();
  const std::string path = folder.path() + "/run";
  for (const int batches : {7, kNever}) {
    Trainer trainer(linear_model(), options());
    trainer.resume(path);
    try {
      trainer.fit(linear_samples(kSamples), Checkpoint(path), attend::CsvLog(log), Kill{batches});
    } catch (const Killed&) {
      std::ofstream(log, std::ios::app) << "lines after the last checkpoint\n";
    }
  }
  CHECK(without_seconds() == whole);
}
