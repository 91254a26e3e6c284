// SPDX-License-Identifier: MIT

#include "gpu/kernels.h"

#include <attend/attend.h>  // nvcc crashes at some expressions, and a user's .cu file may include any header
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
