// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/training_state.h>
#include <attend/version.h>

#include <concepts>
#include <string>
#include <type_traits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The result of a hook: nothing, or whether to end the fit.
template <class Result>
concept HookResult = std::is_void_v<Result> || std::same_as<Result, bool>;

// A type for each hook. It calls the hook, and says whether a class has a member with the name of the hook.
#define ATTEND_DEFINE_HOOK(name)                                                                   \
  struct name##_hook {                                                                             \
    template <class Callback>                                                                      \
    static auto call(Callback& callback, TrainingState& state) -> decltype(callback.name(state)) { \
      return callback.name(state);                                                                 \
    }                                                                                              \
    template <class Callback>                                                                      \
    static constexpr bool kIsNamed = requires {                                                    \
      &Callback::name;                                                                             \
    };                                                                                             \
  };
ATTEND_DEFINE_HOOK(on_fit_begin)
ATTEND_DEFINE_HOOK(on_epoch_begin)
ATTEND_DEFINE_HOOK(on_before_step)
ATTEND_DEFINE_HOOK(on_batch_end)
ATTEND_DEFINE_HOOK(on_epoch_end)
ATTEND_DEFINE_HOOK(on_checkpoint)
ATTEND_DEFINE_HOOK(on_fit_end)
#undef ATTEND_DEFINE_HOOK

template <class Hook, class Callback>
concept HasHook = requires(Callback& callback, TrainingState& state) {
  { Hook::call(callback, state) } -> HookResult;
};

/// A callback whose state is part of a checkpoint.
template <class Callback>
concept HasState = requires(Callback& callback, std::string state) {
  { callback.save_state() } -> std::same_as<std::string>;
  callback.load_state(state);
};

template <class Callback, class... Hooks>
constexpr void check_hooks() {
  static_assert((HasHook<Hooks, Callback> || ...),
                "attend::Trainer: a callback needs at least one of on_fit_begin, on_epoch_begin, on_before_step, "
                "on_batch_end, on_epoch_end, on_checkpoint, on_fit_end. Each takes attend::TrainingState& and returns "
                "void or bool. A validation set is passed before the callbacks; it needs inputs() and targets(), or "
                "size() and get_batch(indices)");
  static_assert(
      ((HasHook<Hooks, Callback> || !Hooks::template kIsNamed<Callback>)&&...),
      "attend::Trainer: each hook of a callback must take attend::TrainingState& and return void or bool. A hook "
      "of this callback has another signature and would never be called");
}

template <class Callback>
constexpr void check_callback() {
  check_hooks<Callback, on_fit_begin_hook, on_epoch_begin_hook, on_before_step_hook, on_batch_end_hook,
              on_epoch_end_hook, on_checkpoint_hook, on_fit_end_hook>();
  static_assert(HasState<Callback> || (
                                          !requires { &Callback::save_state; } && !requires { &Callback::load_state; }),
                "attend::Trainer: a callback with a state needs std::string save_state() and load_state(std::string)");
}

/// Calls a hook if the callback has it. Returns whether the callback ends the fit.
template <class Hook, class Callback>
bool call_hook(Callback& callback, TrainingState& state) {
  if constexpr (!HasHook<Hook, Callback>) {
    return false;
  } else if constexpr (std::is_void_v<decltype(Hook::call(callback, state))>) {
    Hook::call(callback, state);
    return false;
  } else {
    return Hook::call(callback, state);
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
