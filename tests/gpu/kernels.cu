// SPDX-License-Identifier: MIT

#include "gpu/kernels.h"

#include <attend/attend.h>  // all of it, because a .cu file of a user may include it, and nvcc crashes at some expressions
#include <attend/attention/bias.h>
#include <attend/attention/sequence_masks.h>
#include <attend/score/mask_operators.h>
#include <attend/cuda.cuh>

namespace attend::test {
namespace {

/// Some widths: tests/cuda/harness.cu has the others.
struct FewWidths {
  using BFloat16 = cuda::Widths<32, 64>;
  using Float16 = cuda::Widths<32>;
};

}  // namespace

attend::BackendChoice plain_kernels() { return cuda::backend<Unchanged, EveryKey, FewWidths>(); }

attend::BackendChoice kernels_of_structs() {
  return cuda::backend<Then<Softcap, RelativeBias>, And<Document, Causal>, FewWidths>();
}

}  // namespace attend::test
