// SPDX-License-Identifier: MIT
#include "support/call.h"

#include <attend/kernels.h>
#include <attend/kernels/cpu/attention_pass.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <thread>
#include <vector>

using attend::test::Call;

namespace {

/// The threads of an engine: one of its own for each part.
struct OwnThreads : attend::Executor {
  explicit OwnThreads(int threads) : count(threads) {}
  int threads() const override { return count; }
  void run(int parts, void (*work)(const void*, int), const void* context) override {
    ++runs;
    most_parts = std::max(most_parts, parts);
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(parts));
    std::vector<std::thread> own;
    for (int i = 0; i < parts; ++i)
      own.emplace_back([=, &errors] {
        try {
          work(context, i);
        } catch (...) {
          errors[static_cast<std::size_t>(i)] = std::current_exception();
        }
      });
    for (std::thread& thread : own) thread.join();
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  }
  using attend::Executor::run;

  int count, runs = 0, most_parts = 0;
};

/// All parts one after the other, the last one first.
struct Backwards : attend::Executor {
  explicit Backwards(int threads) : count(threads) {}
  int threads() const override { return count; }
  void run(int parts, void (*work)(const void*, int), const void* context) override {
    for (int i = parts - 1; i >= 0; --i) work(context, i);
  }
  using attend::Executor::run;
  int count;
};

std::vector<std::vector<double>> results_of(attend::Executor& executor) {
  Call call(2, 4, 2, 150, 170, 16, 24);
  call.params.window_right = 0;
  call.forward(executor);
  call.backward(executor);
  return call.written();
}

/// A score_mod that throws for one query.
struct Throws {
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    if (at.query == 100) throw std::runtime_error("from a score_mod");
    return score;
  }
};

}  // namespace

TEST_CASE("Executor: the same number of threads gives the same bits, on any threads and in any order") {
  for (const int threads : {1, 2, 3, 7}) {
    CAPTURE(threads);
    attend::ThreadPoolExecutor pool(threads);
    OwnThreads own(threads);
    Backwards backwards(threads);
    const auto expected = results_of(pool);
    CHECK(results_of(pool) == expected);
    CHECK(results_of(own) == expected);
    CHECK(results_of(backwards) == expected);
    CHECK(own.most_parts <= threads);
    CHECK((own.runs > 0) == (threads > 1));  // a single part runs on the caller
  }
}

TEST_CASE("Executor: the outputs do not depend on the number of threads") {
  attend::ThreadPoolExecutor one(1), three(3);
  const auto a = results_of(one), b = results_of(three);
  CHECK(a[0] == b[0]);  // output
  CHECK(a[1] == b[1]);  // log-sum-exp
  CHECK(a[2] == b[2]);  // of query
}

TEST_CASE("Executor: more threads than work items, and a number of threads below 1") {
  for (const int threads : {64, 0, -3}) {
    CAPTURE(threads);
    OwnThreads own(threads);
    attend::ThreadPoolExecutor one(1);
    Call call(1, 2, 1, 5, 9, 8, 8), other(1, 2, 1, 5, 9, 8, 8);
    call.forward(own);
    call.backward(own);
    other.forward(one);
    other.backward(one);
    CHECK(call.written()[0] == other.written()[0]);
    CHECK(call.written()[2] == other.written()[2]);
    CHECK(own.most_parts <= 2);  // there are two items
  }
  CHECK(attend::ThreadPoolExecutor(-1).threads() == 1);
  CHECK(attend::default_executor().threads() >= 1);
}

TEST_CASE("Executor: an exception of a part reaches the caller, and the next call works") {
  OwnThreads own(2);
  for (attend::Executor* const executor : {static_cast<attend::Executor*>(&own), &attend::default_executor()}) {
    Call call(1, 2, 2, 130, 20, 8, 8);
    CHECK_THROWS_WITH_AS(
        attend::kernels::flex_attention_forward(call.params, Throws{}, attend::EveryKey{}, call.outputs, *executor),
        "from a score_mod", std::runtime_error);
    call.forward(*executor);
    call.backward(*executor);
    Call other(1, 2, 2, 130, 20, 8, 8);
    other.forward();
    other.backward();
    CHECK(call.written()[0] == other.written()[0]);
  }
}

TEST_CASE("Executor: calls from several user threads at the same time") {
  attend::ThreadPoolExecutor pool(2);
  const auto expected = results_of(pool);
  std::atomic<int> wrong{0};
  std::vector<std::thread> users;
  for (int i = 0; i < 4; ++i)
    users.emplace_back([&] {
      attend::ThreadPoolExecutor own(2);
      for (int k = 0; k < 5; ++k) wrong += results_of(own) != expected;
    });
  for (std::thread& user : users) user.join();
  CHECK(wrong == 0);
}

TEST_CASE("BackwardPass: keys times threads may be more than 2^31") {
  constexpr std::int64_t S = 30'000;
  constexpr int kThreads = 100'000;
  Call call(1, 2, 1, 1, S, 1, 1);  // two items that add to the gradients of the same keys
  call.forward();
  call.backward();
  const std::vector<double> expected = call.value_gradient.values();

  const attend::cpu::AttentionPlan<float> plan(call.params, attend::simd::best_instruction_set(), nullptr);
  const attend::cpu::Scores<float> scores(call.params, nullptr);
  const attend::cpu::AttentionResults<float> results(plan, call.outputs);
  attend::cpu::Gradients<float> gradients;
  gradients.output = {call.gradients.output, false};
  gradients.query = {call.gradients.query, false};
  gradients.key = {call.gradients.key, false};
  gradients.value = {call.gradients.value, false};
  call.value_gradient.fill([] { return -77; });
  attend::cpu::BackwardPass<float> pass(plan, scores, results, gradients, kThreads);
  for (int thread = 0; thread < kThreads; ++thread) pass.work(thread, /*is_careful=*/false);
  for (int thread = kThreads - 10; thread < kThreads; ++thread) pass.finish(thread);  // the last three keys
  for (std::int64_t j = S - 3; j < S; ++j)
    CHECK(std::abs(call.value_gradient.get(0, 0, j, 0) - expected[static_cast<std::size_t>(j)]) < 1e-6);
}
