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

/// Whose threads take the next section.
///
/// As a rule, LibTorch's threads: they spin for a while after each of its loops, so they begin at once, and other
/// threads would have to share the cores with them. But a loop of LibTorch's ends only when all of its threads have
/// been scheduled. Beside another busy process each of them may wait for milliseconds. So once a thread was held up,
/// the pool takes the sections for 10 ms. If it happens again soon after, the pool takes them for four times as long,
/// up to 2 s.
class WhoseThreads {
 public:
  using Clock = std::chrono::steady_clock;

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

  /// Whether the threads of the next section read the clock that tells how long they had a core. That takes as long as
  /// a very short section. So it is not read after such a section; one that is held up is not short.
  static bool are_watched() { return instance().are_watched_; }

  static void section_took(Clock::duration time) { instance().are_watched_ = time > kVeryShort; }

  /// What the calling thread's share of a section takes.
  class Share {
   public:
    explicit Share(bool is_watched)
        : is_watched_(is_watched), cpu_begin_(is_watched ? cpu_time() : std::chrono::nanoseconds(0)) {}

    /// Whether the thread was without a core, since the section began, for more than 0.5 ms and an eighth of the time.
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

  /// LibTorch's threads do not survive a fork; GNU's OpenMP hangs in the child.
  WhoseThreads() {
    pthread_atfork(nullptr, nullptr, [] { instance().until_ = std::numeric_limits<std::int64_t>::max(); });
  }

  static WhoseThreads& instance() {
    static WhoseThreads instance;
    return instance;
  }

  std::atomic<std::int64_t> until_{0}, pause_{kShortest};  // in ticks of the clock
  std::atomic<std::int64_t> sections_{kSoon};              // of LibTorch's threads since they were held up
  std::atomic<bool> are_watched_{true};
};

/// A section: calls work(begin, end) for ranges that make up 0 … count − 1, at least `grain` each but for the last, on
/// as many threads as at::get_num_threads() says. Exceptions come through. Within another section, of ours or of
/// LibTorch's, it runs on its caller.
///
/// at::parallel_for is a template, and silently runs serially in a translation unit that is compiled without -fopenmp;
/// a TensorIterator's loop over as many elements is run in parallel by LibTorch itself.
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

/// Calls work(t) for t = 0 … threads − 1, each on a thread of its own as far as there are so many.
template <class Work>
void parallel(int threads, const Work& work) {
  if (threads == 1) return work(0);
  parallel_ranges(threads, /*grain=*/1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) work(static_cast<int>(t));
  });
}

/// to[i] = Σ_t sums[t · row + i] for i = 0 … count − 1: what each thread has added up for itself, in their order.
inline void add_sums_of_threads(const float* sums, std::int64_t row, int threads, std::int64_t count, float* to) {
  parallel_ranges(count, /*grain=*/1 << 15, [&](std::int64_t begin, std::int64_t end) {
    std::copy(sums + begin, sums + end, to + begin);
    for (int t = 1; t < threads; ++t)
      for (std::int64_t i = begin; i < end; ++i) to[i] += sums[t * row + i];
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
