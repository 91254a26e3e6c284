// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/fused_adam.h>
#include <attend/version.h>

#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>

#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

struct AdamTraits {
  using Optimizer = torch::optim::Adam;
  using Options = torch::optim::AdamOptions;
  using State = torch::optim::AdamParamState;
  static constexpr const char* kName = "attend::Adam";
  static constexpr bool kIsDecayDecoupled = false;

  template <class... Arguments>
  static void update(Arguments&&... arguments) {
    at::_fused_adam_(std::forward<Arguments>(arguments)...);
  }
};

struct AdamWTraits {
  using Optimizer = torch::optim::AdamW;
  using Options = torch::optim::AdamWOptions;
  using State = torch::optim::AdamWParamState;
  static constexpr const char* kName = "attend::AdamW";
  static constexpr bool kIsDecayDecoupled = true;

  template <class... Arguments>
  static void update(Arguments&&... arguments) {
    at::_fused_adamw_(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace detail

/// Adam in one fused call for all parameters. Everything that changes from step to step is kept on the device.
///
/// m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  p ← p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
///
/// Options, state and archive are those of torch::optim::Adam. The update is the same up to rounding.
///
/// Differs from torch::optim::Adam:
/// - About eight calls for each parameter become one call for all.
/// - t and the learning rate are tensors on the device of the parameters, so a step can be captured in a CUDA graph.
///
/// The learning rate may be changed between steps by `options().set_lr(rate)`, as schedulers do, or by
/// `AdamOptions::lr(rate)`. Replays of a captured step see the change after before_replay(), which Trainer calls. They
/// do not see other options that change after the capture.
///
/// @throws c10::Error for options out of range.
/// @throws c10::NotImplementedError for a sparse gradient, and for a parameter that is a view with gaps.
/// @throws c10::ValueError for a parameter that has left the device of its state, and for a step if all parameters are
/// frozen and have no gradient.
///
/// Source: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015.
///
/// @code
/// attend::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
/// @endcode
class Adam : public detail::FusedAdam<detail::AdamTraits> {
 public:
  using FusedAdam::FusedAdam;
};

/// AdamW: Adam with weight decay apart from the gradient.
///
/// p ← p − lr · weight_decay · p, then the update of attend::Adam without weight decay. weight_decay is 0.01 by
/// default, as in torch. Differs from torch::optim::AdamW, and throws, as attend::Adam does.
///
/// Source: I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", 2019.
///
/// @code
/// attend::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-3).weight_decay(0.1));
/// @endcode
class AdamW : public detail::FusedAdam<detail::AdamWTraits> {
 public:
  using FusedAdam::FusedAdam;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
