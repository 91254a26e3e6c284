// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Checks that there is one target for each set of scores (N, classes, …): (N, …).
inline void check_class_targets(const char* name, const torch::Tensor& outputs, const torch::Tensor& targets) {
  TORCH_CHECK_VALUE(outputs.dim() >= 2 && outputs.dim() == targets.dim() + 1 && outputs.size(0) == targets.size(0) &&
                        outputs.sizes().slice(2) == targets.sizes().slice(1),
                    name, ": outputs ", outputs.sizes(),
                    " must have the sizes (N, classes, ...) for targets (N, ...), got targets ", targets.sizes());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
