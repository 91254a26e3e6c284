// SPDX-License-Identifier: MIT

// Compiled by nvcc.

#include "scores.h"

#include <attend/cuda.cuh>

/// The kernels that are compiled for tensor cores: bfloat16, heads of 33 to 64 columns.
struct Width64 {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<>;
};

attend::BackendChoice plain_on_cuda() {
  return attend::cuda::backend<attend::Unchanged, attend::EveryKey, Width64>();
}

attend::BackendChoice tilted_on_cuda() { return attend::cuda::backend<Tilted, attend::Causal, Width64>(); }

/// The same, and float32 in tf32.
struct InTf32 : Width64 {
  using Float32 = attend::cuda::Widths<64>;
};

attend::BackendChoice tf32_on_cuda() {
  return attend::cuda::backend<attend::Unchanged, attend::EveryKey, InTf32>();
}
