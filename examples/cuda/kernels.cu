// SPDX-License-Identifier: MIT

// Compiled by nvcc. Each call of attend::cuda::backend() compiles the kernels of one pair of structs.

#include "scores.h"

#include <attend/cuda.cuh>

attend::BackendChoice plain_on_cuda() { return attend::cuda::backend(); }

attend::BackendChoice tilted_on_cuda() { return attend::cuda::backend<Tilted, attend::Causal>(); }

/// The kernels on tensor cores: bfloat16 with heads of up to 64 columns. All other calls run without tensor cores.
struct Width64 {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<>;
};
attend::BackendChoice small_on_cuda() { return attend::cuda::backend<attend::Unchanged, attend::Causal, Width64>(); }
