// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/thread_pool.h>
#include <attend/version.h>

#include <algorithm>
#include <thread>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The threads that the kernels run on. A program with threads of its own derives from it:
///
/// @code
/// struct EngineThreads : attend::Executor {
///   int threads() const override { return engine.workers(); }
///   void run(int parts, void (*work)(const void*, int), const void* context) override {
///     engine.for_each(parts, [&](int i) { work(context, i); });
///   }
/// };
/// @endcode
class Executor {
 public:
  virtual ~Executor() = default;

  /// How many parts a call is divided into, at least 1. The same number gives the same bits.
  virtual int threads() const = 0;

  /// Calls work(context, i) once for each i from 0 to parts − 1, in any order and on any threads, and returns when all
  /// calls have returned. An exception of a call must reach the caller of run().
  virtual void run(int parts, void (*work)(const void* context, int part), const void* context) = 0;

  /// The same for a function object.
  template <class Work>
  void run(int parts, const Work& work) {
    if (parts == 1) return work(0);
    run(
        parts, [](const void* context, int part) { (*static_cast<const Work*>(context))(part); }, &work);
  }
};

/// Threads that attend starts at the first call and keeps. All executors of this kind share them.
class ThreadPoolExecutor : public Executor {
 public:
  /// @param threads How many threads work on a call, the caller's among them. Default: one for each processor.
  explicit ThreadPoolExecutor(int threads = static_cast<int>(std::thread::hardware_concurrency()))
      : threads_(std::max(threads, 1)) {}

  int threads() const override { return threads_; }
  void run(int parts, void (*work)(const void* context, int part), const void* context) override {
    detail::ThreadPool::run(threads_, parts, [&](int part) { work(context, part); });
  }
  using Executor::run;

 private:
  int threads_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
