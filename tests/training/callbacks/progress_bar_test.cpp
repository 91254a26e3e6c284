// SPDX-License-Identifier: MIT
#include <attend/training/callbacks/progress_bar.h>

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::ProgressBar;
using attend::test::StateByHand;

namespace {

/// The lines that a terminal shows for this text. After a carriage return, text overwrites the line from its beginning.
std::vector<std::string> screen(const std::string& text) {
  std::vector<std::string> lines(1);
  std::size_t column = 0;
  for (const char c : text) {
    if (c == '\n') {
      lines.emplace_back();
      column = 0;
    } else if (c == '\r') {
      column = 0;
    } else {
      std::string& line = lines.back();
      line.resize(std::max(line.size(), column + 1), ' ');
      line[column++] = c;
    }
  }
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

/// Hooks called by hand: 50 epochs of 10,000 samples.
struct Bar : StateByHand {
  explicit Bar(bool with_bar) : bar(stream, with_bar) {
    state.epochs = 50;
    state.samples_per_epoch = 10000;
    bar.on_fit_begin(state);
  }

  /// Ends a batch.
  void batch(std::int64_t epoch, std::int64_t samples, double seconds, double loss) {
    state.epoch = epoch;
    state.samples = samples;
    state.seconds = seconds;
    state.loss = torch::full({}, loss);
    bar.on_batch_end(state);
  }

  /// Ends a batch whose loss must not be read: it is an undefined tensor.
  void unseen_batch(double seconds) {
    state.seconds = seconds;
    state.loss = torch::Tensor();
    bar.on_batch_end(state);
  }

  void epoch(std::int64_t epoch, double train_loss, double validation_loss, double seconds) {
    state.epoch = epoch;
    state.samples = state.samples_per_epoch;
    history.add(
        {.train_loss = train_loss, .last_batch_loss = 99, .validation_loss = validation_loss, .seconds = seconds});
    bar.on_epoch_end(state);
  }

  std::string last_line() const { return screen(stream.str()).back(); }

  std::ostringstream stream;
  ProgressBar bar;
};

}  // namespace

TEST_CASE("ProgressBar: the bar shows the epoch, its progress, the loss, the speed and the remaining time") {
  Bar bar(/*with_bar=*/true);
  // The line of the documentation. 24,352 samples in 11.82 s are 2060 a second; 475,648 are left: 230.9 s.
  bar.batch(2, 4352, 11.82, 0.0061234);
  CHECK(bar.last_line() == "epoch  3/50  [======>       ]  loss 0.00612  2060 samples/s  3:51 left");
  CHECK(bar.stream.str() == bar.last_line());  // no text before it, and no line break after it

  const std::vector<std::pair<std::int64_t, std::string>> bars = {
      {32, "[>             ]"},   {714, "[>             ]"},  {715, "[=>            ]"},   {5000, "[=======>      ]"},
      {9285, "[============> ]"}, {9286, "[=============>]"}, {10000, "[==============]"},
  };
  for (const auto& row : bars) {
    CAPTURE(row.first);
    bar.batch(3, row.first, bar.state.seconds + 1, 1);
    CHECK(bar.last_line().find("epoch  4/50  " + row.second + "  loss 1  ") == 0);
  }
}

TEST_CASE("ProgressBar: the line with the bar fits a terminal of 80 columns") {
  Bar bar(true);
  bar.state.epochs = 100;
  bar.state.epoch = 99;
  bar.bar.on_fit_begin(bar.state);
  const double seconds = 4321, left = 3831;  // 3831 s are 1:03:51
  bar.state.samples_per_epoch = std::llround(123456 * (seconds + left));
  bar.batch(99, 123456 * std::llround(seconds), seconds, 1.2345e-5);
  CHECK(bar.last_line() == "epoch 100/100  [=======>      ]  loss 1.23e-05  123456 samples/s  1:03:51 left");
  CHECK(bar.last_line().size() <= 79);
}

TEST_CASE("ProgressBar: the remaining time has hours if there are any") {
  // After one of 50 epochs, 49 times its duration is left.
  const std::vector<std::pair<double, std::string>> times = {{1, "0:49 left"},      {2, "1:38 left"},
                                                             {73, "59:37 left"},    {74, "1:00:26 left"},
                                                             {100, "1:21:40 left"}, {4000, "54:26:40 left"}};
  for (const auto& row : times) {
    CAPTURE(row.first);
    Bar bar(true);
    bar.batch(0, 10000, row.first, 1);
    const std::string line = bar.last_line();
    CHECK(line.substr(line.find("samples/s") + 11) == row.second);
  }
}

TEST_CASE("ProgressBar: speed and time are those of the current fit, not of earlier fits") {
  Bar bar(true);
  bar.state.epoch = 48;
  bar.bar.on_fit_begin(bar.state);
  bar.batch(49, 5000, 3, 1);  // 15,000 samples in 3 s; 5000 are left
  CHECK(bar.last_line().find("5000 samples/s  0:01 left") != std::string::npos);
}

TEST_CASE("ProgressBar: the loss is read only when the bar is drawn, at most five times a second") {
  Bar bar(true);
  for (const double seconds : {0.0, 0.05, 0.1, 0.19}) bar.unseen_batch(seconds);
  CHECK(bar.stream.str().empty());
  bar.batch(0, 100, 0.21, 0.5);
  CHECK(bar.last_line().find("loss 0.5 ") != std::string::npos);
  for (const double seconds : {0.21, 0.3, 0.4}) bar.unseen_batch(seconds);
  bar.batch(0, 200, 0.42, 0.25);
  CHECK(bar.last_line().find("loss 0.25 ") != std::string::npos);

  Bar steady(true);
  for (int i = 1; i <= 2000; ++i) steady.batch(0, i, 0.001 * i, 1);  // two seconds
  const std::string text = steady.stream.str();
  const std::ptrdiff_t draws = 1 + std::count(text.begin(), text.end(), '\r');
  CHECK(draws >= 8);
  CHECK(draws <= 10);
}

TEST_CASE("ProgressBar: without a bar it writes one line for each epoch and never reads the loss of a batch") {
  Bar bar(/*with_bar=*/false);
  for (const double seconds : {0.1, 1.0, 1000.0}) bar.unseen_batch(seconds);
  CHECK(bar.stream.str().empty());
  bar.epoch(0, 0.0123456, std::nan(""), 2.345);
  bar.epoch(9, 0.5, 1234567, 71);
  CHECK(bar.stream.str() ==
        "epoch  1/50  loss 0.0123  2.3 s\n"
        "epoch 10/50  loss 0.5  validation 1.23e+06  71.0 s\n");
}

TEST_CASE("ProgressBar: after the bar the terminal shows the same lines, without remains of the bar") {
  Bar bar(true);
  bar.batch(0, 5000, 1, 0.5);
  bar.batch(0, 10000, 2, 0.5);
  bar.epoch(0, 0.0123456, std::nan(""), 2.345);
  bar.batch(1, 10000, 4, 123456);  // a long line …
  bar.batch(1, 10000, 40, 0.5);    // … then a shorter one
  const std::vector<std::string> lines = screen(bar.stream.str());
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "epoch  1/50  loss 0.0123  2.3 s");
  CHECK(lines[1] == "epoch  2/50  [==============]  loss 0.5  500 samples/s  16:00 left");
}

TEST_CASE("ProgressBar: the line of an epoch that was stopped says so") {
  Bar run(/*with_bar=*/false);
  run.history.add({.train_loss = 0.5, .seconds = 3.25});
  run.state.epoch = 9;
  run.state.batch = 20;
  run.state.batches = 313;
  run.state.samples = 640;
  run.bar.on_epoch_end(run.state);
  CHECK(run.stream.str() == "epoch 10/50  loss 0.5  3.2 s  stopped after 20 of 313 batches\n");
}

TEST_CASE("ProgressBar: a loss of infinity or NaN is shown as inf or nan") {
  Bar bar(true);
  bar.batch(0, 5000, 1, std::numeric_limits<double>::infinity());
  CHECK(bar.last_line().find("loss inf ") != std::string::npos);
  bar.batch(0, 5000, 2, std::nan(""));
  CHECK(bar.last_line().find("loss nan ") != std::string::npos);
  bar.batch(0, 5000, 3, -std::nan(""));
  CHECK(bar.last_line().find("loss nan ") != std::string::npos);
}

TEST_CASE("ProgressBar: a fit writes one line for each epoch") {
  std::ostringstream stream;
  attend::Trainer trainer(attend::test::linear_model(), attend::TrainerOptions().epochs(3));
  const attend::History history = trainer.fit(attend::test::linear_samples(4), attend::test::linear_samples(4, 3),
                                              ProgressBar(stream, /*with_bar=*/false));
  const std::vector<std::string> lines = screen(stream.str());
  REQUIRE(lines.size() == 4);
  for (std::size_t epoch = 0; epoch < 3; ++epoch) {
    std::ostringstream expected;
    expected.precision(3);
    expected << "epoch " << epoch + 1 << "/3  loss " << history.train_loss()[epoch] << "  validation "
             << history.validation_loss()[epoch] << "  ";
    CHECK(lines[epoch].find(expected.str()) == 0);
  }
  CHECK(lines[3].empty());
}
