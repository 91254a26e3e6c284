// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Threads that sleep between sections. A section is a number of pieces of work. The caller and the workers take pieces
/// until none is left. The caller waits only for pieces that a worker has begun, so it can finish without any worker.
///
/// - Any thread may take a piece, so results must depend only on the number of the piece. Workers use the
///   floating-point environment of the caller (rounding, flushed denormals).
/// - A program has one pool, and a pool runs one section at a time. A section that begins within another section, or
///   while another user thread runs a section, runs on its caller alone.
/// - The caller gets the first exception. Pieces that have not begun by then are not computed.
/// - The first section starts the first workers. Workers exist until the program ends or its library is unloaded. Their
///   number is the largest that a section has needed, or smaller if the system refuses to start more.
/// - A process made by fork() has no workers and starts its own.
class ThreadPool {
 public:
  /// Calls work(i) once for each i = 0 … pieces − 1, on up to `threads` threads, the calling thread included.
  template <class Work>
  static void run(int threads, int pieces, const Work& work) {
    Section section{[](const void* call, int i) { (*static_cast<const Work*>(call))(i); }, &work, pieces};
    if (std::min(threads, pieces) < 2 || is_in_section() || !instance().try_run(section, std::min(threads, pieces) - 1))
      for (int i = 0; i < pieces; ++i) work(i);
  }

  /// Whether the calling thread is computing a piece.
  static bool& is_in_section() {
    thread_local bool is_in_section = false;
    return is_in_section;
  }

 private:
  struct Section {
    void (*call)(const void* work, int piece);
    const void* work;
    int pieces;
    std::fenv_t environment{};
    std::atomic<bool> has_failed{false};
    std::exception_ptr error{};
  };

  /// The rest of the section: the pieces that have not begun, and the workers that may still join. A thread that takes
  /// a piece by compare_exchange may read section_, which stays valid until that piece is finished.
  struct alignas(8) Left {
    std::uint32_t pieces = 0;
    std::uint16_t workers = 0;
    std::uint16_t turn = 0;  // number of the section, so that a late worker joins the next section properly
  };

  static std::atomic<ThreadPool*>& pool() {
    static std::atomic<ThreadPool*> pool{nullptr};
    return pool;
  }

  /// The pool. It is never destroyed, because other threads may still use it when the program ends. Only its workers
  /// end.
  static ThreadPool& instance() {
    struct AtEnd {
      ~AtEnd() {
        if (pool() != nullptr && !is_in_section()) pool().load()->stop();
      }
    };
    static const int watches_forks = pthread_atfork(nullptr, nullptr, [] { pool() = nullptr; });
    static_cast<void>(watches_forks);
    ThreadPool* known = pool();
    if (known == nullptr) {
      auto* const made = new ThreadPool;
      if (pool().compare_exchange_strong(known, made))
        known = made;
      else
        delete made;
    }
    static const AtEnd at_end;
    return *known;
  }

  /// False if the pool is busy.
  bool try_run(Section& section, int workers) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || is_stopped_) return false;
    start(workers);
    std::fegetenv(&section.environment);
    section_ = &section;
    unfinished_.store(section.pieces, std::memory_order_relaxed);
    const auto turn = static_cast<std::uint16_t>(left_.load(std::memory_order_relaxed).turn + 1);
    left_.store({static_cast<std::uint32_t>(section.pieces), static_cast<std::uint16_t>(workers), turn});
    ++sections_;
    for (int i = 0; i < workers; ++i) sections_.notify_one();
    is_in_section() = true;
    for (Left at; take(at, turn);) finish(section, at);
    is_in_section() = false;
    // The caller spins first: the other threads usually finish sooner than it could sleep and wake up.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    while (unfinished_ != 0 && std::chrono::steady_clock::now() < deadline) continue;
    for (int left; (left = unfinished_) != 0;) unfinished_.wait(left);
    if (section.error) std::rethrow_exception(section.error);
    return true;
  }

  void start(int workers) {
    try {
      while (static_cast<int>(workers_.size()) < workers) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {  // continue with fewer workers
    }
  }

  void stop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopped_ = true;
    ++sections_;
    sections_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  void serve() {
    is_in_section() = true;
    for (int seen = sections_; !is_stopped_; seen = sections_) {
      Left at;
      if (take(at)) {
        std::fesetenv(&section_->environment);
        do finish(*section_, at);
        while (take(at, at.turn));
      }
      sections_.wait(seen);
    }
  }

  /// Joins the current section as a worker and takes a piece of it.
  bool take(Left& at) {
    at = left_;
    while (at.pieces > 0 && at.workers > 0) {
      const Left next{at.pieces - 1, static_cast<std::uint16_t>(at.workers - 1), at.turn};
      if (left_.compare_exchange_weak(at, next)) return true;
    }
    return false;
  }

  /// Takes one more piece of this section.
  bool take(Left& at, std::uint16_t turn) {
    at = left_;
    while (at.pieces > 0 && at.turn == turn)
      if (left_.compare_exchange_weak(at, {at.pieces - 1, at.workers, at.turn})) return true;
    return false;
  }

  void finish(Section& section, const Left& at) {
    try {
      if (!section.has_failed) section.call(section.work, section.pieces - static_cast<int>(at.pieces));
    } catch (...) {
      if (!section.has_failed.exchange(true)) section.error = std::current_exception();
    }
    if (--unfinished_ == 0) unfinished_.notify_one();
  }

  std::mutex mutex_;  // held by the caller of the running section
  std::vector<std::thread> workers_;
  Section* section_ = nullptr;
  std::atomic<bool> is_stopped_{false};
  alignas(64) std::atomic<Left> left_{Left{}};
  alignas(64) std::atomic<int> sections_{0}, unfinished_{0};
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
