// SPDX-License-Identifier: MIT
#include <attend/detail/thread_pool.h>
#include <attend/detail/torch/parallel.h>
#include <attend/layers/conv_stack.h>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

using attend::detail::parallel;
using attend::detail::parallel_ranges;
using attend::detail::ThreadPool;
using attend::detail::WhoseThreads;

namespace {

/// Makes sections use the pool for the next two seconds.
void give_sections_to_the_pool() {
  for (int i = 0; i < 10; ++i) WhoseThreads::a_thread_was_held_up();
}

/// Sets the number of torch's threads; the destructor restores it.
struct NumThreads {
  explicit NumThreads(int threads) { at::set_num_threads(threads); }
  ~NumThreads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

/// Counts how often each piece of a section was run.
class Counts {
 public:
  explicit Counts(int pieces) : counts_(static_cast<std::size_t>(pieces)) {}
  void add(std::int64_t piece) { ++counts_[static_cast<std::size_t>(piece)]; }
  bool are_all(int count) const {
    return std::all_of(counts_.begin(), counts_.end(), [&](const auto& each) { return each == count; });
  }

 private:
  std::vector<std::atomic<int>> counts_;
};

/// Waits until `count` threads have arrived, for at most half a minute.
class Meeting {
 public:
  explicit Meeting(int count) : missing_(count) {}
  bool come() {
    --missing_;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (missing_ > 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    return missing_ <= 0;
  }

 private:
  std::atomic<int> missing_;
};

}  // namespace

TEST_CASE("ThreadPool::run: it runs every piece once") {
  for (const int threads : {1, 2, 3, 8})
    for (const int pieces : {0, 1, 2, 3, 100}) {
      Counts counts(pieces);
      ThreadPool::run(threads, pieces, [&](int i) { counts.add(i); });
      CHECK(counts.are_all(1));
    }
}

TEST_CASE("ThreadPool::run: it uses the requested number of threads and no more") {
  for (const int threads : {4, 2, 3}) {
    Meeting meeting(threads);
    std::atomic<bool> have_met{true};
    ThreadPool::run(threads, threads, [&](int) { have_met = meeting.come() && have_met; });
    CHECK(have_met);  // each piece waited for all others, so each had a thread of its own

    std::mutex mutex;
    std::set<std::thread::id> seen;
    ThreadPool::run(threads, 500, [&](int) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    CHECK(static_cast<int>(seen.size()) <= threads);
  }
}

TEST_CASE("ThreadPool::run: it rethrows the exception of a piece, and works afterwards") {
  for (const int bad : {0, 7, 49}) {
    CHECK_THROWS_WITH_AS(ThreadPool::run(4, 50,
                                         [&](int i) {
                                           if (i == bad) throw std::runtime_error("piece " + std::to_string(i));
                                         }),
                         ("piece " + std::to_string(bad)).c_str(), std::runtime_error);
    Counts counts(50);
    ThreadPool::run(4, 50, [&](int i) { counts.add(i); });
    CHECK(counts.are_all(1));
  }
  CHECK_THROWS_AS(ThreadPool::run(4, 50, [](int) { throw 1; }), int);  // all throw, the caller gets one
}

TEST_CASE("ThreadPool::run: within a parallel section it runs on the calling thread") {
  Counts counts(6 * 5);
  std::atomic<int> elsewhere{0};
  ThreadPool::run(3, 6, [&](int i) {
    const auto caller = std::this_thread::get_id();
    ThreadPool::run(3, 5, [&](int j) {
      if (std::this_thread::get_id() != caller) ++elsewhere;
      counts.add(i * 5 + j);
    });
  });
  CHECK(counts.are_all(1));
  CHECK(elsewhere == 0);
}

TEST_CASE("ThreadPool::run: several threads of a program may call it at once") {
  constexpr int kUsers = 4, kRounds = 500, kPieces = 5;
  std::vector<Counts> counts;
  for (int user = 0; user < kUsers; ++user) counts.emplace_back(kPieces);
  std::vector<std::thread> users;
  for (int user = 0; user < kUsers; ++user)
    users.emplace_back([&, user] {
      for (int round = 0; round < kRounds; ++round)
        ThreadPool::run(3, kPieces, [&](int i) { counts[static_cast<std::size_t>(user)].add(i); });
    });
  for (std::thread& user : users) user.join();
  for (const Counts& each : counts) CHECK(each.are_all(kRounds));
}

TEST_CASE("ThreadPool::run: the pieces run in the caller's floating-point environment") {
  ThreadPool::run(4, 4, [](int) {});  // starts the workers
  for (const bool flushes : {true, false}) {
    if (!at::globalContext().setFlushDenormal(flushes)) continue;  // torch does not support it on this processor
    Meeting meeting(4);
    std::atomic<int> right{0};
    ThreadPool::run(4, 4, [&](int) {
      volatile float tiny = std::numeric_limits<float>::min();
      tiny = tiny / 2;
      if (meeting.come() && (tiny == 0.0f) == flushes) ++right;
    });
    CHECK(right == 4);
  }
}

TEST_CASE("parallel_ranges, parallel: they run everything once, on torch's threads and on the pool's") {
  const NumThreads three(3);
  for (const bool by_pool : {false, true})
    for (const int count : {0, 1, 5, 1000}) {
      CAPTURE(by_pool);
      CAPTURE(count);
      if (by_pool) give_sections_to_the_pool();
      Counts ranges(count), pieces(count);
      parallel_ranges(count, /*grain=*/7, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ranges.add(i);
      });
      CHECK(ranges.are_all(1));
      if (count > 0) parallel(count, [&](int i) { pieces.add(i); });
      CHECK(pieces.are_all(count > 0 ? 1 : 0));
      CHECK_THROWS_WITH_AS(parallel(3,
                                    [](int i) {
                                      if (i == 2) throw std::runtime_error("third");
                                    }),
                           "third", std::runtime_error);
    }
}

TEST_CASE("parallel_ranges: within a section, and with at::set_num_threads(1), it runs on the calling thread") {
  for (const bool by_pool : {false, true}) {
    CAPTURE(by_pool);
    if (by_pool) give_sections_to_the_pool();
    std::atomic<int> elsewhere{0}, calls{0};
    const auto run = [&] {
      const auto caller = std::this_thread::get_id();
      parallel(8, [&](int) {
        ++calls;
        if (std::this_thread::get_id() != caller) ++elsewhere;
      });
    };
    {
      const NumThreads two(2);
      parallel(2, [&](int) { run(); });
      CHECK(calls == 16);
    }
    const NumThreads one(1);
    run();
    CHECK(calls == 24);
    CHECK(elsewhere == 0);
  }
}

TEST_CASE("WhoseThreads: sections use the pool after a delayed thread, and LibTorch's threads again later") {
  give_sections_to_the_pool();
  CHECK(WhoseThreads::are_the_pools());
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  CHECK_FALSE(WhoseThreads::are_the_pools());
}

TEST_CASE("WhoseThreads: work counts as delayed if its thread waits, not if its thread computes") {
  const auto began = WhoseThreads::Clock::now();
  const WhoseThreads::Share share(/*is_watched=*/true), unwatched(/*is_watched=*/false);
  CHECK_FALSE(share.was_held_up(began));
  CHECK_FALSE(WhoseThreads::Share(true).was_held_up(WhoseThreads::Clock::now()));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(share.was_held_up(began));
  CHECK(WhoseThreads::Share(true).was_held_up(began));  // it began late
  CHECK_FALSE(unwatched.was_held_up(began));
}

TEST_CASE("WhoseThreads: the section after a very short one is not watched, other sections are") {
  WhoseThreads::section_took(std::chrono::microseconds(5));
  CHECK_FALSE(WhoseThreads::are_watched());
  WhoseThreads::section_took(std::chrono::milliseconds(1));
  CHECK(WhoseThreads::are_watched());
}

TEST_CASE("ConvStack: results have the same bits on torch's threads and on the pool's threads") {
  const NumThreads three(3);
  at::Tensor x = at::randn({7, 5, 60}).requires_grad_();
  attend::ConvStack stack(attend::ConvStackOptions(5, 32, 6).depth(3).backend(attend::Backend::kCpu));
  const auto results = [&] {
    stack->zero_grad();
    x.mutable_grad() = at::Tensor();
    const at::Tensor y = stack->forward(x);
    y.backward(at::ones_like(y));
    std::vector<at::Tensor> all{y.detach(), x.grad().clone()};
    for (const at::Tensor& parameter : stack->parameters()) all.push_back(parameter.grad().clone());
    return all;
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));  // LibTorch's threads again
  const std::vector<at::Tensor> first = results();
  for (int round = 0; round < 20; ++round) {
    give_sections_to_the_pool();
    const std::vector<at::Tensor> second = results();
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].equal(second[i]));
  }
}

TEST_CASE("parallel: it works in a child process made by fork(), and afterwards in the parent") {
  const NumThreads three(3);
  const auto is_right = [] {
    Counts counts(30);
    for (int round = 0; round < 10; ++round) parallel(30, [&](int i) { counts.add(i); });
    return counts.are_all(10);
  };
  for (const bool by_pool : {false, true}) {
    CAPTURE(by_pool);
    if (by_pool) give_sections_to_the_pool();
    CHECK(is_right());
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // ends a child that hangs
      _exit(is_right() ? 0 : 1);
    }
    REQUIRE(child > 0);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(is_right());
  }
}
