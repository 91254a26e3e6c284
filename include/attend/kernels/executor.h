// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/thread_pool.h>
#include <attend/version.h>

#include <algorithm>
#include <thread>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The interface to the threads on which the kernels run. To use its own threads, a program derives from this class.
///
/// @code
/// struct OwnThreads : attend::Executor {
///   int threads() const override { return 4; }
///   void run(int parts, void (*work)(const void*, int), const void* context) override {
///     std::vector<std::jthread> own;
///     for (int i = 0; i < parts; ++i) own.emplace_back([=] { work(context, i); });
///   }
///   using attend::Executor::run;
/// };
/// @endcode
class Executor {
 public:
  virtual ~Executor() = default;

  /// The number of parts into which a call is divided.
  ///
  /// Calls with the same number of parts give the same bits. Exception: a SummedGradient of more than 131,072 / threads
  /// numbers, on more than two threads, is added up in an order that may differ from run to run.
  ///
  /// @return The number; below 1 counts as 1.
  virtual int threads() const = 0;

  /// Calls work(context, i) once for each i from 0 to parts − 1, in any order and on any threads, and returns when all
  /// calls have returned.
  ///
  /// `work` allocates memory, so it may throw std::bad_alloc. run() must pass this exception on to its caller, or the
  /// program must end.
  ///
  /// @param parts The number of calls, at most threads().
  /// @param work The function.
  /// @param context The first argument of the function.
  virtual void run(int parts, void (*work)(const void* context, int part), const void* context) = 0;

  /// The same for a function object. Runs a single part on the calling thread.
  ///
  /// @param parts The number of calls.
  /// @param work Called as work(i).
  template <class Work>
  void run(int parts, const Work& work) {
    if (parts == 1) return work(0);
    run(
        parts, [](const void* context, int part) { (*static_cast<const Work*>(context))(part); }, &work);
  }
};

/// Threads that attend starts at the first call and keeps. All executors of this class share them.
///
/// Only one call at a time can use them. A call from another thread at the same time, or from within a part, runs all
/// its parts on the calling thread.
class ThreadPoolExecutor : public Executor {
 public:
  /// @param threads The number of threads that work on a call, the calling thread included. Default: one for each
  /// processor.
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

/// The executor that a call uses by default: one thread for each processor.
inline Executor& default_executor() {
  static ThreadPoolExecutor executor;
  return executor;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
