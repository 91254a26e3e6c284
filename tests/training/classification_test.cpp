// SPDX-License-Identifier: MIT
#include <attend/training/accuracy.h>
#include <attend/training/callbacks/stop_early.h>
#include <attend/training/cross_entropy.h>

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include <limits>
#include <string>
#include <vector>

namespace classification_test {

using attend::Accuracy;
using attend::CrossEntropy;
using attend::StopEarly;
using attend::test::message_of;
using attend::test::normal;
using attend::test::Samples;

/// Float64 points (count, 2) of three classes.
Samples points(std::int64_t count, std::uint64_t seed = 1) {
  const torch::Tensor labels = torch::arange(count) % 3;
  return {normal({count, 2}, seed) * 0.3 + torch::stack({labels == 1, labels == 2}, 1).to(torch::kDouble), labels};
}

TEST_CASE(
    "CrossEntropy: it equals torch's cross_entropy, with and without label smoothing, for two and four dimensions") {
  namespace F = torch::nn::functional;
  const torch::Tensor scores = normal({5, 3}, 1), labels = torch::tensor({0, 2, 1, 1, 0});
  const torch::Tensor maps = normal({2, 3, 4, 5}, 2), map_labels = torch::randint(0, 3, {2, 4, 5});
  for (const double smoothing : {0.0, 0.1, 1.0}) {
    const auto options = F::CrossEntropyFuncOptions().label_smoothing(smoothing);
    const CrossEntropy loss = CrossEntropy().label_smoothing(smoothing);
    CHECK(torch::equal(loss(scores, labels), F::cross_entropy(scores, labels, options)));
    CHECK(torch::equal(loss(maps, map_labels), F::cross_entropy(maps, map_labels, options)));
  }
}

TEST_CASE("Accuracy: the share of targets with the largest score") {
  const torch::Tensor scores = torch::tensor({{1.0, 2.0}, {3.0, 0.0}, {0.0, 0.0}, {5.0, 6.0}});
  CHECK(Accuracy()(scores, torch::tensor({1, 0, 0, 0})).item<double>() == 0.75);  // of equal scores the first counts
  CHECK(Accuracy()(scores.t().unsqueeze(0), torch::tensor({{1, 0, 1, 0}})).item<double>() == 0.5);
}

TEST_CASE("CrossEntropy and Accuracy: sizes and dtypes that do not fit are errors") {
  const torch::Tensor scores = normal({4, 3}, 1), labels = torch::zeros({4}, torch::kLong);
  CHECK(message_of<c10::ValueError>([&] { CrossEntropy()(scores, labels.slice(0, 0, 3)); }) ==
        "attend::CrossEntropy: outputs [4, 3] must have the sizes (N, classes, ...) for targets (N, ...), got targets "
        "[3]");
  CHECK(message_of<c10::ValueError>([&] {
          CrossEntropy()(scores, labels.view({4, 1}));
        }) ==
        "attend::CrossEntropy: outputs [4, 3] must have the sizes (N, classes, ...) for targets (N, ...), got targets "
        "[4, 1]");
  CHECK(message_of<c10::TypeError>([&] { CrossEntropy()(scores, labels.to(torch::kInt)); }) ==
        "attend::CrossEntropy: targets (Int) must be Long, the index of the right class");
  for (const double smoothing : {-0.1, 1.5, std::numeric_limits<double>::quiet_NaN()})
    CHECK(message_of<c10::ValueError>([&] {
            CrossEntropy().label_smoothing(smoothing)(scores, labels);
          }).starts_with("attend::CrossEntropy: label_smoothing ("));
  CHECK(message_of<c10::ValueError>([&] { Accuracy()(scores, labels.slice(0, 0, 3)); }) ==
        "attend::Accuracy: outputs [4, 3] must have the sizes (N, classes, ...) for targets (N, ...), got targets [3]");
}

TEST_CASE("Trainer::evaluate: the mean of a metric over the samples, in evaluation mode, with a smaller last batch") {
  torch::nn::Sequential model(torch::nn::Linear(2, 3), torch::nn::Dropout(0.9));
  model->to(torch::kDouble);
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(20).batch_size(4).learning_rate(0.1), CrossEntropy());
  const Samples held_out = points(10, 5);
  trainer.fit(points(30));
  const double share = trainer.evaluate(held_out, Accuracy());
  CHECK(model->is_training());
  model->eval();
  const torch::NoGradGuard no_grad;
  CHECK(share == doctest::Approx(Accuracy()(model->forward(held_out.x), held_out.y).item<double>()).epsilon(1e-12));
  CHECK(share > 0.5);
  const auto largest = [](const torch::Tensor& outputs, const torch::Tensor&) { return outputs.max(); };
  CHECK_NOTHROW(trainer.evaluate(held_out, largest));
  CHECK(message_of<c10::ValueError>([&] {
          trainer.evaluate(held_out, [](const torch::Tensor& outputs, const torch::Tensor&) { return outputs; });
        }) == "attend::Trainer: the metric must be a 0-d tensor, got [4, 3]");
}

/// The numbers of epochs after which a fit with these validation losses ends.
std::size_t epochs_with(const StopEarly& stop, const std::vector<double>& losses, bool are_validated = true) {
  attend::test::StateByHand by_hand;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    attend::EpochRecord record;
    record.train_loss = are_validated ? 0.0 : losses[i];
    if (are_validated) record.validation_loss = losses[i];
    by_hand.history.add(record);
    if (stop.on_epoch_end(by_hand.state)) return i + 1;
  }
  return 0;
}

TEST_CASE("StopEarly: it ends the fit when the loss has not fallen for `patience` epochs") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(epochs_with(StopEarly(2), {3, 2, 1, 1, 0.5, 0.6, 0.7, 0.1}) == 7);
  CHECK(epochs_with(StopEarly(1), {3, 3}) == 2);
  CHECK(epochs_with(StopEarly(3), {3, 4, 5, 2, 1}) == 0);
  CHECK(epochs_with(StopEarly(2), {1, nan, nan, 0.5}) == 3);  // a training loss does not replace a NaN
  CHECK(epochs_with(StopEarly(2), {nan, nan, 1}, /*are_validated=*/false) == 2);
  CHECK(epochs_with(StopEarly(2), {1, nan, nan}, /*are_validated=*/false) == 3);
  CHECK(epochs_with(StopEarly(2), {1, 2, 3}, /*are_validated=*/false) == 3);
  CHECK(message_of<c10::ValueError>([] { StopEarly(0); }) == "attend::StopEarly: patience (0) must be at least 1");
}

TEST_CASE("StopEarly: a fit ends early, and its history says when") {
  torch::nn::Linear model(torch::nn::LinearOptions(2, 3));
  model->to(torch::kDouble);
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(50).learning_rate(1e6), CrossEntropy());
  CHECK(trainer.fit(points(30), points(9, 5), StopEarly(1)).epochs().size() < 50);
}

}  // namespace classification_test
