// SPDX-License-Identifier: MIT

#include <attend/cuda.cuh>

struct NoTensorCores {
  using BFloat16 = attend::cuda::Widths<>;
  using Float16 = attend::cuda::Widths<>;
};

std::shared_ptr<const attend::detail::AttentionBackend> causal_on_cuda() {
  return attend::cuda::backend<attend::Unchanged, attend::Causal, NoTensorCores>();
}
