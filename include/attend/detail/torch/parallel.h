// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/thread_pool.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Decides which threads run the next section: LibTorch's threads, or the threads of ThreadPool.
///
/// Normally LibTorch's threads run it. They spin for a while after each loop of LibTorch, so they begin at once. Other
/// threads would have to share the cores with them.
///
/// However, a loop of LibTorch ends only after all of its threads have been scheduled. If another process is busy, a
/// thread may wait for a core for milliseconds; here such a thread is called held up. After a thread was held up,
/// ThreadPool runs the sections of the next 10 ms. If a thread is held up again soon after that, ThreadPool runs the
/// sections for four times as long, up to 2 s.
class WhoseThreads {
 public:
  using Clock = std::chrono::steady_clock;

  /// Whether the threads of ThreadPool run the next section.
  static bool are_the_pools(Clock::time_point now = Clock::now()) {
    WhoseThreads& self = instance();
    if (now.time_since_epoch().count() < self.until_) return true;
    ++self.sections_;
    return false;
  }

  static void a_thread_was_held_up() {
    WhoseThreads& self = instance();
    self.pause_ = self.sections_ < kSoon ? std::min(4 * self.pause_, kLongest) : kShortest;
    self.until_ = Clock::now().time_since_epoch().count() + self.pause_;
    self.sections_ = 0;
  }

  /// Whether the threads of the next section measure how long they had a core. Reading that clock takes as long as a
  /// very short section. So it is not read after a very short section. A held-up section is never very short.
  static bool are_watched() { return instance().are_watched_; }

  static void section_took(Clock::duration time) { instance().are_watched_ = time > kVeryShort; }

  /// Measures the calling thread's share of a section.
  class Share {
   public:
    explicit Share(bool is_watched)
        : is_watched_(is_watched), cpu_begin_(is_watched ? cpu_time() : std::chrono::nanoseconds(0)) {}

    /// Whether the thread has had no core for more than 0.5 ms plus an eighth of the time since the section began.
    bool was_held_up(Clock::time_point section_began) const {
      if (!is_watched_) return false;
      const std::chrono::nanoseconds took = Clock::now() - section_began;
      if (took < kTolerated) return false;
      return took - (cpu_time() - cpu_begin_) > kTolerated + took / 8;
    }

   private:
    static constexpr std::chrono::nanoseconds kTolerated{500'000};

    static std::chrono::nanoseconds cpu_time() {
      std::timespec time{};
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
      return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
    }

    const bool is_watched_;
    const std::chrono::nanoseconds cpu_begin_;
  };

 private:
  static constexpr std::int64_t kShortest = Clock::duration(std::chrono::milliseconds(10)).count(),
                                kLongest = Clock::duration(std::chrono::seconds(2)).count();
  static constexpr int kSoon = 32;  // sections
  static constexpr Clock::duration kVeryShort = std::chrono::microseconds(100);

  /// LibTorch's threads do not survive a fork, and GNU's OpenMP hangs in the child. The child uses ThreadPool only.
  WhoseThreads() {
    pthread_atfork(nullptr, nullptr, [] { instance().until_ = std::numeric_limits<std::int64_t>::max(); });
  }

  static WhoseThreads& instance() {
    static WhoseThreads instance;
    return instance;
  }

  std::atomic<std::int64_t> until_{0}, pause_{kShortest};  // in ticks of the clock
  std::atomic<std::int64_t> sections_{kSoon};              // run by LibTorch's threads since one was held up
  std::atomic<bool> are_watched_{true};
};

/// Runs a section: calls work(begin, end) for ranges that together cover 0 … count − 1, on up to
/// at::get_num_threads() threads.
///
/// - Each range except the last has at least `grain` elements.
/// - Exceptions are passed on.
/// - Within another section, of attend or of LibTorch, everything runs on the calling thread.
///
/// at::parallel_for is not used: it is a template that silently runs serially in a translation unit compiled without
/// -fopenmp. Instead a TensorIterator loops over `count` elements, which LibTorch itself runs in parallel.
template <class Work>
void parallel_ranges(std::int64_t count, std::int64_t grain, const Work& work) {
  if (count == 0) return;
  const int threads = at::get_num_threads();
  if (count <= grain || threads == 1 || ThreadPool::is_in_section() || at::in_parallel_region()) return work(0, count);
  const auto began = WhoseThreads::Clock::now();
  if (WhoseThreads::are_the_pools(began))
    return ThreadPool::run(threads, static_cast<int>((count + grain - 1) / grain),
                           [&](int i) { work(i * grain, std::min(count, (i + 1) * grain)); });
  const bool is_watched = WhoseThreads::are_watched();
  std::atomic<bool> was_held_up{false};
  at::Tensor elements = at::empty({count}, at::kByte);
  const auto* first = static_cast<const char*>(elements.const_data_ptr());
  at::TensorIterator iterator = at::TensorIterator::borrowing_nullary_op(elements);
  iterator.for_each(
      [&](char** data, const std::int64_t*, std::int64_t size, std::int64_t /*rows: one*/) {
        const WhoseThreads::Share share(is_watched);
        work(data[0] - first, data[0] - first + size);
        if (share.was_held_up(began)) was_held_up = true;
      },
      grain);
  WhoseThreads::section_took(WhoseThreads::Clock::now() - began);
  if (was_held_up) WhoseThreads::a_thread_was_held_up();
}

/// Calls work(t) for t = 0 … threads − 1. Each call runs on a thread of its own if there are enough threads.
template <class Work>
void parallel(int threads, const Work& work) {
  if (threads == 1) return work(0);
  parallel_ranges(threads, /*grain=*/1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) work(static_cast<int>(t));
  });
}

/// to[i] = Σ_t sums[t · row + i] for i = 0 … count − 1: adds the partial sums of the threads in a fixed order.
inline void add_sums_of_threads(const float* sums, std::int64_t row, int threads, std::int64_t count, float* to) {
  parallel_ranges(count, /*grain=*/1 << 15, [&](std::int64_t begin, std::int64_t end) {
    std::copy(sums + begin, sums + end, to + begin);
    for (int t = 1; t < threads; ++t)
      for (std::int64_t i = begin; i < end; ++i) to[i] += sums[t * row + i];
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
