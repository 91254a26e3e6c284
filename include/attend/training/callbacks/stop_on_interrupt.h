// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/training_state.h>
#include <attend/version.h>

#include <signal.h>

#include <atomic>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A callback that ends the fit after the current batch on Ctrl-C, instead of ending the program.
///
/// - SIGTERM has the same effect as Ctrl-C (SIGINT).
/// - A second signal has its usual effect, so a program that hangs can still be ended.
/// - A signal that the program ignores stays ignored.
/// - The destructor restores the handlers of the signals.
///
/// Only one object may exist at a time. It needs a POSIX system.
///
/// @code
/// attend::StopOnInterrupt interrupt;
/// trainer.fit(train_set, interrupt);
/// if (interrupt.happened()) std::cerr << "stopped early\n";
/// @endcode
class StopOnInterrupt {
 public:
  /// Replaces the handlers of SIGINT and SIGTERM. Earlier signals do not count.
  StopOnInterrupt() {
    signal_received_ = 0;
    struct sigaction action = {};
    action.sa_handler = &receive;
    action.sa_flags = SA_RESTART;
    ::sigemptyset(&action.sa_mask);
    // Everything is set up before the first signal can arrive.
    for (Replaced& replaced : replaced_) {
      ::sigaddset(&action.sa_mask, replaced.signal);
      ::sigaction(replaced.signal, nullptr, &replaced.previous);
    }
    set([&](const Replaced&) { return &action; });
  }

  /// Restores the handlers.
  ~StopOnInterrupt() { restore(); }

  StopOnInterrupt(const StopOnInterrupt&) = delete;
  StopOnInterrupt& operator=(const StopOnInterrupt&) = delete;

  /// Whether a signal was received since the object was made.
  bool happened() const { return signal_received_ != 0; }

  /// Ends the fit if a signal was received.
  bool on_batch_end(TrainingState&) { return happened(); }

  /// Ends the fit if a signal was received during validation.
  bool on_epoch_end(TrainingState&) { return happened(); }

 private:
  struct Replaced {
    int signal;
    struct sigaction previous;
  };

  /// Sets the action of each signal that is not ignored.
  template <class ActionFor>
  static void set(ActionFor action_for) {
    for (const Replaced& replaced : replaced_) {
      if (replaced.previous.sa_handler != SIG_IGN) ::sigaction(replaced.signal, action_for(replaced), nullptr);
    }
  }

  static void restore() {
    set([](const Replaced& replaced) { return &replaced.previous; });
  }

  /// The signal handler. It only writes a lock-free atomic and calls sigaction, which handlers may do.
  static void receive(int signal) {
    signal_received_ = signal;
    restore();
  }

  static_assert(std::atomic<int>::is_always_lock_free);
  static inline constinit std::atomic<int> signal_received_{0};
  static inline constinit Replaced replaced_[] = {{SIGINT, {}}, {SIGTERM, {}}};
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
