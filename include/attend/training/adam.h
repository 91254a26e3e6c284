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

/// Adam in one fused call for all parameters, with everything that changes from step to step kept on the device.
///
/// The same options, state and archive as torch::optim::Adam, and the same update up to rounding:
///   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  p ← p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
///
/// Differs from torch::optim::Adam: about eight calls a parameter become one for all; t and the learning rate are
/// tensors on the parameters' device, so that a step can be captured in a CUDA graph. The rate may be changed between
/// steps by `options().set_lr(rate)`, as schedulers do, or by `AdamOptions::lr(rate)`, which replays of a captured step
/// see after before_replay() (Trainer calls it). They do not see other options that change after the capture.
///
/// Throws c10::Error for options out of range, c10::NotImplementedError for a sparse gradient or a parameter that is a
/// view with gaps, c10::ValueError for a parameter that has left the device of its state, and for a step if all
/// parameters are frozen and have no gradient.
///
/// Source: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015.
///
/// Example:
/// @code
/// attend::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
/// @endcode
class Adam : public detail::FusedAdam<detail::AdamTraits> {
 public:
  using FusedAdam::FusedAdam;
};

/// AdamW, Adam with weight decay apart from the gradient: as attend::Adam, beside torch::optim::AdamW.
///
/// p ← p − lr · weight_decay · p, then Adam's update without weight decay. weight_decay is 0.01 by default, as in
/// torch.
///
/// Differs from torch::optim::AdamW, and throws, as attend::Adam does.
///
/// Source: I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", 2019.
///
/// Example:
/// @code
/// attend::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-3).weight_decay(0.1));
/// @endcode
class AdamW : public detail::FusedAdam<detail::AdamWTraits> {
 public:
  using FusedAdam::FusedAdam;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
