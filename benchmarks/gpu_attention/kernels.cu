// SPDX-License-Identifier: MIT

#include "kernels.h"

#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/cuda.cuh>

namespace gpu_attention {
namespace {

/// The widths that measure.py measures.
struct Measured {
  using BFloat16 = attend::cuda::Widths<64, 128>;
  using Float16 = attend::cuda::Widths<>;
};

}  // namespace

attend::BackendChoice plain_kernels() { return attend::cuda::backend<attend::Unchanged, attend::EveryKey, Measured>(); }
attend::BackendChoice table_kernels() { return attend::cuda::backend<TableBias, attend::Causal, Measured>(); }
attend::BackendChoice bounded_kernels() { return attend::cuda::backend<Bounded, attend::Causal, Measured>(); }

}  // namespace gpu_attention
