// SPDX-License-Identifier: MIT

// Compiled by nvcc. Each call of attend::cuda::backend() compiles the kernels of one pair of structs.

#include "scores.h"

#include <attend/cuda.cuh>

namespace {

/// The kernels on tensor cores: bfloat16 with heads of up to 64 columns. All other calls run without tensor cores.
/// Without this third argument all widths are compiled, which takes a minute for each pair of structs.
struct Width64 {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<>;
};

}  // namespace

attend::BackendChoice plain_on_cuda() {
  return attend::cuda::backend<attend::Unchanged, attend::EveryKey, Width64>();
}

attend::BackendChoice tilted_on_cuda() { return attend::cuda::backend<Tilted, attend::Causal, Width64>(); }
