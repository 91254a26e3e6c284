// SPDX-License-Identifier: MIT
#include <attend/training/callbacks/stop_on_interrupt.h>

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>
#include <vector>

using attend::StopOnInterrupt;
using attend::TrainingState;
using attend::test::linear_model;
using attend::test::linear_samples;

namespace {

int calls_before = 0, value_before = 0;

void handler_before(int, siginfo_t* info, void*) {
  ++calls_before;
  value_before = info->si_value.sival_int;
}

struct sigaction action_of(int signal) {
  struct sigaction action = {};
  REQUIRE(::sigaction(signal, nullptr, &action) == 0);
  return action;
}

bool is_handler_before(int signal) {
  const struct sigaction action = action_of(signal);
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == &handler_before;
}

/// Until the end of the scope, handler_before handles SIGINT and gets the signal's information, and SIGTERM is ignored.
struct ActionsBefore {
  ActionsBefore() {
    calls_before = 0;
    struct sigaction action = {};
    action.sa_sigaction = &handler_before;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGINT, &action, &interrupt);
    struct sigaction ignore = {};
    ignore.sa_handler = SIG_IGN;
    ::sigaction(SIGTERM, &ignore, &terminate);
  }
  ~ActionsBefore() {
    ::sigaction(SIGINT, &interrupt, nullptr);
    ::sigaction(SIGTERM, &terminate, nullptr);
  }

  struct sigaction interrupt, terminate;
};

/// Raises a signal before a step, and counts batches.
struct Raise {
  int signal;
  std::int64_t epoch, batch;
  int batches = 0;

  void on_before_step(TrainingState& state) {
    if (state.epoch == epoch && state.batch == batch) ::raise(signal);
  }
  void on_batch_end(TrainingState&) { ++batches; }
};

}  // namespace

TEST_CASE("StopOnInterrupt: a signal ends the fit after the batch, and the trained weights and history are kept") {
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

TEST_CASE("StopOnInterrupt: a signal during validation ends the fit after that epoch") {
  StopOnInterrupt interrupt;
  int batches = 0;
  torch::nn::Linear model = linear_model();
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(3).batch_size(4),
                          [&](const torch::Tensor& outputs, const torch::Tensor& targets) {
                            if (model->is_training()) ++batches;
                            if (!model->is_training() && !interrupt.happened()) ::raise(SIGINT);
                            return (outputs - targets).square().mean();
                          });
  const attend::History history = trainer.fit(linear_samples(8), linear_samples(8, 3), interrupt);
  CHECK(interrupt.happened());
  CHECK(batches == 2);
  CHECK(history.epochs().size() == 1);
}

TEST_CASE("StopOnInterrupt: without a signal the fit runs to its end; an object made after a signal starts anew") {
  {
    const StopOnInterrupt interrupt;
    ::raise(SIGINT);
    CHECK(interrupt.happened());
  }
  StopOnInterrupt interrupt;
  CHECK_FALSE(interrupt.happened());
  attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(3));
  CHECK(trainer.fit(linear_samples(8), interrupt).epochs().size() == 3);
  CHECK_FALSE(interrupt.happened());
}

TEST_CASE("StopOnInterrupt: the destructor restores the previous signal actions, also after a signal") {
  const ActionsBefore before;
  for (const bool with_signal : {false, true}) {
    CAPTURE(with_signal);
    {
      const StopOnInterrupt interrupt;
      CHECK_FALSE(is_handler_before(SIGINT));
      if (with_signal) ::raise(SIGINT);
      CHECK(interrupt.happened() == with_signal);
    }
    CHECK(is_handler_before(SIGINT));
  }
  CHECK(calls_before == 0);
}

TEST_CASE("StopOnInterrupt: a second signal calls the previous handler, with the sender's information") {
  const ActionsBefore before;
  const StopOnInterrupt interrupt;
  ::raise(SIGINT);
  CHECK(interrupt.happened());
  CHECK(calls_before == 0);
  CHECK(is_handler_before(SIGINT));
  sigval value;
  value.sival_int = 42;
  REQUIRE(::sigqueue(::getpid(), SIGINT, value) == 0);
  CHECK(calls_before == 1);
  CHECK(value_before == 42);
}

TEST_CASE("StopOnInterrupt: a signal that the program ignores stays ignored") {
  const ActionsBefore before;
  {
    const StopOnInterrupt interrupt;
    ::raise(SIGTERM);
    CHECK_FALSE(interrupt.happened());
    const bool ignored = action_of(SIGTERM).sa_handler == SIG_IGN;
    CHECK(ignored);
    ::raise(SIGINT);
    CHECK(interrupt.happened());
  }
  const bool ignored = action_of(SIGTERM).sa_handler == SIG_IGN;
  CHECK(ignored);
}

TEST_CASE("StopOnInterrupt: a second signal ends the program") {
  const std::vector<std::pair<int, int>> signals = {
      {SIGINT, SIGINT}, {SIGTERM, SIGTERM}, {SIGINT, SIGTERM}, {SIGTERM, SIGINT}};
  for (const auto& row : signals) {
    const int first = row.first, second = row.second;
    CAPTURE(first);
    CAPTURE(second);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::signal(first, SIG_DFL);  // doctest's handler would write a report
      ::signal(second, SIG_DFL);
      const StopOnInterrupt interrupt;
      ::raise(first);
      if (!interrupt.happened()) ::_exit(2);
      ::raise(second);
      ::_exit(3);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    const bool ended_by_the_second = WIFSIGNALED(status) && WTERMSIG(status) == second;
    CHECK(ended_by_the_second);
  }
}
