// SPDX-License-Identifier: MIT

#include <attend/cuda.cuh>

struct NoTensorCores {
  using BFloat16 = attend::cuda::Widths<>;
  using Float16 = attend::cuda::Widths<>;
};

attend::BackendChoice causal_on_cuda() {
  return attend::cuda::backend<attend::Unchanged, attend::Causal, NoTensorCores>();
}
