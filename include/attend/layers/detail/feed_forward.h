// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/kernels/cpu/feed_forward_activation.h>
#include <attend/layers/activation.h>
#include <attend/layers/detail/fused_feed_forward.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/dropout.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// second(dropout(activation(first(x)))): the feed-forward network without a gate, by the fastest kernels that can
/// compute it.
inline at::Tensor feed_forward(const at::Tensor& x, const Linear& first, const Activation& activation, double dropout,
                               const Linear& second, Backend backend) {
  if (backend == Backend::kAuto) backend = BackendGuard::current();
  if (backend != Backend::kReference && (activation.is_relu() || activation.is_gelu()) &&
      FusedFeedForward::is_faster(x, first, second))
    return FusedFeedForward::run(
        x, first, activation.is_relu() ? cpu::HiddenActivation::kReLU : cpu::HiddenActivation::kGELU, dropout, second);
  const at::Tensor hidden = activation.is_gelu() ? FusedLinear::gelu(x, first, backend)
                                                 : activation(FusedLinear::run(x, {first}, backend)[0]);
  return FusedLinear::run(at::dropout(hidden, dropout, /*train=*/true), {second}, backend)[0];
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
