// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/training_state.h>

#include <atomic>
#include <csignal>

namespace attend {

/// A callback that makes Ctrl-C end the fit after the current batch instead of ending the program.
///
/// While the object lives, the first SIGINT or SIGTERM is remembered and a second one has its usual effect, so that a program
/// that hangs can still be ended. The handlers that were there before return with the destructor. One object at a time.
///
/// Example:
///   attend::StopOnInterrupt interrupt;
///   trainer.fit(train_set, interrupt);
///   if (interrupt.happened()) std::cerr << "stopped early\n";
class StopOnInterrupt {
 public:
  StopOnInterrupt() {
    signal_received() = 0;
    previous_interrupt_ = std::signal(SIGINT, &receive);
    previous_terminate_ = std::signal(SIGTERM, &receive);
  }

  ~StopOnInterrupt() {
    std::signal(SIGINT, previous_interrupt_);
    std::signal(SIGTERM, previous_terminate_);
  }

  StopOnInterrupt(const StopOnInterrupt&) = delete;
  StopOnInterrupt& operator=(const StopOnInterrupt&) = delete;

  /// Whether a signal came.
  bool happened() const { return signal_received() != 0; }

  bool on_batch_end(TrainingState&) { return happened(); }

  /// For a signal that came after the last batch, in validation.
  bool on_epoch_end(TrainingState&) { return happened(); }

 private:
  static std::atomic<int>& signal_received() {
    static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may touch lock-free atomics only");
    static constinit std::atomic<int> received{0};
    return received;
  }

  static void receive(int signal) {
    signal_received() = signal;
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
  }

  using Handler = void (*)(int);
  Handler previous_interrupt_, previous_terminate_;
};

}  // namespace attend
