// SPDX-License-Identifier: MIT
#include <attend/training/callbacks/stop_on_interrupt.h>
#include <attend/training/trainer.h>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "training/support.h"

namespace {

using attend::StopOnInterrupt;
using attend::TrainingState;
using attend::test::linear_model;
using attend::test::linear_samples;

void handler_before(int) {}

/// The handler that is installed; it stays so.
auto current_handler(int signal) {
  const auto handler = std::signal(signal, SIG_DFL);
  std::signal(signal, handler);
  return handler;
}

/// Raises a signal before a step, and counts batches.
struct Raise {
  int signal;
  std::int64_t epoch, batch;
  int batches = 0;

  void on_before_step(TrainingState& state) {
    if (state.epoch == epoch && state.batch == batch) std::raise(signal);
  }
  void on_batch_end(TrainingState&) { ++batches; }
};

TEST_CASE("a signal ends the fit after the batch, and what was trained is there") {
  for (const int signal : {SIGINT, SIGTERM}) {
    CAPTURE(signal);
    StopOnInterrupt interrupt;
    CHECK_FALSE(interrupt.happened());
    Raise raise{signal, /*epoch=*/1, /*batch=*/1};
    attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(3).batch_size(2));
    const attend::History history = trainer.fit(linear_samples(8), linear_samples(4, 3), interrupt, raise);
    CHECK(interrupt.happened());
    CHECK(raise.batches == 4 + 2);
    CHECK(history.epochs().size() == 2);
  }
}

TEST_CASE("a signal during validation ends the fit with that epoch") {
  StopOnInterrupt interrupt;
  int batches = 0;
  torch::nn::Linear model = linear_model();
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(3).batch_size(4),
                          [&](const torch::Tensor& outputs, const torch::Tensor& targets) {
                            if (model->is_training()) ++batches;
                            if (!model->is_training() && !interrupt.happened()) std::raise(SIGINT);
                            return (outputs - targets).square().mean();
                          });
  const attend::History history = trainer.fit(linear_samples(8), linear_samples(8, 3), interrupt);
  CHECK(interrupt.happened());
  CHECK(batches == 2);
  CHECK(history.epochs().size() == 1);
}

TEST_CASE("without a signal nothing ends, and an object made after a signal starts afresh") {
  {
    const StopOnInterrupt interrupt;
    std::raise(SIGINT);
    CHECK(interrupt.happened());
  }
  StopOnInterrupt interrupt;
  CHECK_FALSE(interrupt.happened());
  attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(3));
  CHECK(trainer.fit(linear_samples(8), interrupt).epochs().size() == 3);
  CHECK_FALSE(interrupt.happened());
}

TEST_CASE("the handlers that were there before return with the destructor, also after a signal") {
  const auto outer_interrupt = std::signal(SIGINT, &handler_before);
  const auto outer_terminate = std::signal(SIGTERM, SIG_IGN);
  for (const bool with_signal : {false, true}) {
    CAPTURE(with_signal);
    {
      const StopOnInterrupt interrupt;
      const bool installed = current_handler(SIGINT) != &handler_before && current_handler(SIGTERM) != SIG_IGN;
      CHECK(installed);
      if (with_signal) std::raise(SIGTERM);
    }
    const bool restored = current_handler(SIGINT) == &handler_before && current_handler(SIGTERM) == SIG_IGN;
    CHECK(restored);
  }
  std::signal(SIGINT, outer_interrupt);
  std::signal(SIGTERM, outer_terminate);
}

TEST_CASE("a second signal ends the program") {
  const std::vector<std::pair<int, int>> signals = {
      {SIGINT, SIGINT}, {SIGTERM, SIGTERM}, {SIGINT, SIGTERM}, {SIGTERM, SIGINT}};
  for (const auto& row : signals) {
    const int first = row.first, second = row.second;
    CAPTURE(first);
    CAPTURE(second);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const StopOnInterrupt interrupt;
      std::raise(first);
      if (!interrupt.happened()) ::_exit(2);
      std::raise(second);
      ::_exit(3);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    const bool ended_by_the_second = WIFSIGNALED(status) && WTERMSIG(status) == second;
    CHECK(ended_by_the_second);
  }
}

}  // namespace
