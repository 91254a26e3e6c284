// SPDX-License-Identifier: MIT
#pragma once

#include "cuda_fiber.h"

#include <attend/kernels/cuda/host_block.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

namespace attend::test {

/// Random numbers: splitmix64.
class CudaRandom {
 public:
  explicit CudaRandom(std::uint64_t seed) : state_(seed) {}

  std::uint64_t operator()() {
    std::uint64_t x = state_ += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

 private:
  std::uint64_t state_;
};

/// The threads of a block as fibers, and who runs next: one thread runs until it suspends itself or ends.
class CudaThreads {
 public:
  /// Thrown in a thread, it stops the block: the stacks of all threads are unwound.
  struct Stopped {};

  /// `seed` 0: lanes and warps take turns by their index; else: in a random order.
  CudaThreads(int count, std::uint64_t seed)
      : threads_(static_cast<std::size_t>(count)),
        warps_(static_cast<std::size_t>(count / cuda::kWarpSize)),
        is_ordered_(seed == 0),
        random_(seed) {}
  CudaThreads(const CudaThreads&) = delete;
  CudaThreads& operator=(const CudaThreads&) = delete;

  /// Calls `body` in each thread. `on_deadlock` is called if threads are suspended and no other is left; the block then
  /// stops. Rethrows an exception of `body`.
  ///
  /// @return False if the block was stopped.
  bool run(const std::function<void()>& body, const std::function<void()>& on_deadlock) {
    static thread_local FiberStacks stacks;
    body_ = &body;
    on_deadlock_ = &on_deadlock;
    ended_ = ready_count_ = current_ = 0;
    is_stopping_ = false;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      threads_[i].has_started = threads_[i].has_ended = false;
      stacks.give(threads_[i].fiber, i, threads_.size());
      prepare_fiber(threads_[i].fiber, [] { running_->run_thread(); });
    }
    for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
      warps_[warp].count = 0;
      make_ready(static_cast<int>(warp));
    }
    CudaThreads* const outer = std::exchange(running_, this);
    switch_fiber(main_, next_to_run());
    running_ = outer;
    if (exception_ != nullptr) std::rethrow_exception(std::exchange(exception_, nullptr));
    return !is_stopping_;
  }

  /// The thread that runs.
  int current() const { return current_; }
  int count() const { return static_cast<int>(threads_.size()); }
  /// How many threads have ended, and whether one has.
  int ended() const { return ended_; }
  bool has_ended(int thread) const { return threads_[static_cast<std::size_t>(thread)].has_ended; }

  /// Lets others run. Returns when the thread runs again, which needs make_ready(), before or later.
  void suspend() {
    if (ready_count_ == 0) {
      (*on_deadlock_)();
      throw Stopped();
    }
    Fiber& from = threads_[static_cast<std::size_t>(current_)].fiber;
    if (Fiber& to = next_to_run(); &to != &from) switch_fiber(from, to);
    if (is_stopping_) throw Stopped();
  }

  /// All lanes of a warp can run.
  void make_ready(int warp) {
    Ready& ready = warps_[static_cast<std::size_t>(warp)];
    const auto random = static_cast<int>(is_ordered_ ? 0 : random_() & 0x3FF);
    const int factor = random % cuda::kWarpSize | 1, flip = random / cuda::kWarpSize;
    for (int i = cuda::kWarpSize; i-- > 0;) ready.lanes[ready.count++] = (i ^ flip) * factor % cuda::kWarpSize;
    ready_count_ += cuda::kWarpSize;
  }

 private:
  struct Thread {
    Fiber fiber;
    bool has_started = false, has_ended = false;
  };

  // The lanes of a warp that can run, the next one last.
  struct Ready {
    int lanes[cuda::kWarpSize];
    int count = 0;
  };

  // What a fiber does.
  void run_thread() {
    enter_fiber(main_);
    try {
      (*body_)();
    } catch (const Stopped&) {
      is_stopping_ = true;
    } catch (...) {
      if (exception_ == nullptr) exception_ = std::current_exception();
      is_stopping_ = true;
    }
    Thread& thread = threads_[static_cast<std::size_t>(current_)];
    thread.has_ended = true;
    ++ended_;
    if (!is_stopping_ && ready_count_ == 0 && ended_ < count()) {
      (*on_deadlock_)();
      is_stopping_ = true;
    }
    switch_fiber(thread.fiber, is_stopping_ ? next_to_unwind() : next_to_run(), /*ends=*/true);
  }

  // In order: the first thread that can run. Else: mostly one of the same warp.
  Fiber& next_to_run() {
    if (ended_ == count()) return main_;
    std::size_t warp = 0;
    if (!is_ordered_)
      warp = random_() % 8 == 0 ? random_() % warps_.size() : static_cast<std::size_t>(current_ / cuda::kWarpSize);
    while (warps_[warp].count == 0) warp = (warp + 1) % warps_.size();
    --ready_count_;
    current_ = static_cast<int>(warp) * cuda::kWarpSize + warps_[warp].lanes[--warps_[warp].count];
    Thread& thread = threads_[static_cast<std::size_t>(current_)];
    thread.has_started = true;
    return thread.fiber;
  }

  // After a stop: a thread that is suspended, and throws when it runs.
  Fiber& next_to_unwind() {
    for (std::size_t i = 0; i < threads_.size(); ++i)
      if (threads_[i].has_started && !threads_[i].has_ended) {
        current_ = static_cast<int>(i);
        return threads_[i].fiber;
      }
    return main_;
  }

  inline static thread_local CudaThreads* running_ = nullptr;

  std::vector<Thread> threads_;
  std::vector<Ready> warps_;
  const bool is_ordered_;
  CudaRandom random_;
  Fiber main_;
  const std::function<void()>* body_ = nullptr;
  const std::function<void()>* on_deadlock_ = nullptr;
  int current_ = 0, ended_ = 0, ready_count_ = 0;
  bool is_stopping_ = false;
  std::exception_ptr exception_;
};

}  // namespace attend::test
