// SPDX-License-Identifier: MIT

// Compiled by nvcc. Each call of attend::cuda::backend() compiles the kernels of one pair of structs.

#include "scores.h"

#include <attend/cuda.cuh>

std::shared_ptr<const attend::detail::AttentionBackend> plain_on_cuda() { return attend::cuda::backend(); }

std::shared_ptr<const attend::detail::AttentionBackend> tilted_on_cuda() {
  return attend::cuda::backend<Tilted, attend::Causal>();
}
