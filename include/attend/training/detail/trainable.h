// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Throws c10::ValueError under NoGradGuard or InferenceMode, where torch records no gradients.
inline void check_records_gradients(const char* function) {
  TORCH_CHECK_VALUE(!c10::InferenceMode::is_enabled(), function,
                    ": no gradients are recorded under InferenceMode; train outside of its scope");
  TORCH_CHECK_VALUE(c10::GradMode::is_enabled(), function,
                    ": no gradients are recorded under NoGradGuard; train outside of its scope");
}

/// Throws c10::ValueError if an optimizer has parameters, and all of them are frozen.
inline void check_trains_something(const char* function, const torch::optim::Optimizer& optimizer) {
  bool has_parameters = false;
  for (const auto& group : optimizer.param_groups()) {
    for (const torch::Tensor& parameter : group.params()) {
      if (parameter.requires_grad()) return;
      has_parameters = true;
    }
  }
  TORCH_CHECK_VALUE(!has_parameters, function,
                    ": all parameters are frozen; call requires_grad_() on the parameters to train");
}

/// Throws c10::ValueError with the reason why a loss requires no gradient.
[[noreturn]] inline void refuse_loss(const char* function, const torch::optim::Optimizer& optimizer) {
  check_records_gradients(function);
  check_trains_something(function, optimizer);
  TORCH_CHECK_VALUE(false, function,
                    ": the loss must depend on a parameter that requires a gradient; a tensor between them was "
                    "detached or computed without gradients");
}

/// A sentence for inputs whose dtype or device differs from that of every parameter. Empty if some parameter has both.
inline std::string why_inputs_do_not_fit(const torch::Tensor& inputs, const torch::optim::Optimizer& optimizer) {
  const torch::Tensor* first = nullptr;
  for (const auto& group : optimizer.param_groups()) {
    for (const torch::Tensor& parameter : group.params()) {
      const bool has_dtype = !inputs.is_floating_point() || parameter.scalar_type() == inputs.scalar_type();
      if (has_dtype && parameter.device() == inputs.device()) return "";
      if (first == nullptr) first = &parameter;
    }
  }
  if (first == nullptr) return "";
  return c10::str("attend::TrainingStep: the inputs are ", inputs.scalar_type(), " on ", inputs.device(),
                  ", and the parameters are ", first->scalar_type(), " on ", first->device(),
                  "; convert one of them with .to()");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
