// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/fused_adam.h>
#include <attend/version.h>

#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/types.h>

#include <utility>
#include <vector>

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

/// The optimizer Adam, with one fused call for many parameters.
///
/// m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  p ← p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε), for a
/// parameter p with the gradient g in step t.
///
/// Options, state and archive are those of torch::optim::Adam. The update is the same except for rounding.
///
/// The learning rate may be changed between steps by `options().set_lr(rate)`, as schedulers do, or by
/// `AdamOptions::lr(rate)`. Replays of a captured step use the new rate after before_replay(), which Trainer calls.
/// They ignore changes of other options.
///
/// @throws c10::Error for options out of range.
/// @throws c10::NotImplementedError for a sparse gradient, and for a parameter that is not dense in memory.
/// @throws c10::ValueError if a parameter is on another device than its state, or if its gradient has another dtype or
/// other sizes. step() also throws it if all parameters are frozen and none has a gradient.
///
/// Differs from torch::optim::Adam:
/// - One call updates all parameters of a group that have the same device and dtype. torch makes about eight calls for
///   each parameter.
/// - t and the learning rate are tensors on the device of the parameters, so a step can be captured in a CUDA graph.
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

/// The optimizer AdamW: Adam with decoupled weight decay, with one fused call for many parameters.
///
/// p ← p − lr · weight_decay · p, then the update of attend::Adam without weight decay. The default of weight_decay is
/// 0.01, as in torch.
///
/// It throws what attend::Adam throws. It differs from torch::optim::AdamW as attend::Adam differs from
/// torch::optim::Adam.
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

/// Makes the default optimizer of Trainer, attend::Adam.
struct MakeAdam {
  /// Makes attend::Adam with this learning rate, and default values of the other options.
  ///
  /// @param parameters The parameters of the model.
  /// @param learning_rate The learning rate.
  /// @return The optimizer.
  Adam operator()(std::vector<torch::Tensor> parameters, double learning_rate) const {
    return Adam(std::move(parameters), torch::optim::AdamOptions(learning_rate));
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
