// SPDX-License-Identifier: MIT

// The kernels whose registers and instructions gates_test.py compares with gates.csv.

#include "kernels/support/user_structs.h"

#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/kernels/cuda/launch_backward.cuh>
#include <attend/kernels/cuda/launch_forward.cuh>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

using enum NumberType;

#define ATTEND_FORWARD(Score, Mask, ...)                             \
  template __global__ void forward_kernel<__VA_ARGS__, Score, Mask>( \
      const __grid_constant__ Call, const __grid_constant__ Score, const __grid_constant__ Mask)
#define ATTEND_BACKWARD(Score, Mask, ...)                             \
  template __global__ void backward_kernel<__VA_ARGS__, Score, Mask>( \
      const __grid_constant__ BackwardCall, const __grid_constant__ Score, const __grid_constant__ Mask)

// ---- Forward --------------------------------------------------------------------------------------------------------

ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 32, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 64, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 96, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 128, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 192, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 256, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 64, true>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kBFloat16, 128, true>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat16, 128, false>);
ATTEND_FORWARD(Unchanged, Causal, TensorCoreForward<kBFloat16, 64, false>);
ATTEND_FORWARD(Unchanged, Causal, TensorCoreForward<kBFloat16, 128, false>);
ATTEND_FORWARD(test::SoftSign, SlidingWindow, TensorCoreForward<kBFloat16, 64, false>);
ATTEND_FORWARD(test::Gated, test::SameDocument, TensorCoreForward<kBFloat16, 128, false>);

ATTEND_FORWARD(Unchanged, EveryKey, Decode<kBFloat16, 64, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kBFloat16, 128, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kBFloat16, 256, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kFloat16, 128, true>);
ATTEND_FORWARD(test::Gated, test::SameDocument, Decode<kBFloat16, 128, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Combine<kBFloat16>);

ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 32, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 64, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 96, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 128, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 192, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 256, false>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 64, true>);
ATTEND_FORWARD(Unchanged, EveryKey, TensorCoreForward<kFloat32, 128, true>);
ATTEND_FORWARD(test::SoftSign, SlidingWindow, TensorCoreForward<kFloat32, 64, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kFloat32, 64, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kFloat32, 128, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Decode<kFloat32, 256, false>);
ATTEND_FORWARD(Unchanged, EveryKey, Combine<kFloat32>);

ATTEND_FORWARD(Unchanged, EveryKey, PlainForward<kFloat32>);
ATTEND_FORWARD(Unchanged, EveryKey, PlainForward<kFloat64>);
ATTEND_FORWARD(Unchanged, EveryKey, PlainForward<kBFloat16>);

// ---- Backward -------------------------------------------------------------------------------------------------------

#define ATTEND_TENSOR_BACKWARD(Score, Mask, kType, kWidth, kPart)              \
  ATTEND_BACKWARD(Score, Mask, TensorCoreKeys<kType, kWidth, kPart, Score, Mask>); \
  ATTEND_BACKWARD(Score, Mask, TensorCoreQueries<kType, kWidth, Score, Mask>)
#define ATTEND_PLAIN_BACKWARD(Score, Mask, T)                 \
  ATTEND_BACKWARD(Score, Mask, PlainRowSums<T, Score, Mask>); \
  ATTEND_BACKWARD(Score, Mask, PlainKeys<T, Score, Mask>);    \
  ATTEND_BACKWARD(Score, Mask, PlainQueries<T, Score, Mask>)

ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 32, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 64, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 96, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 128, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 192, KeyPart::kKeys);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kBFloat16, 256, KeyPart::kKeys);
ATTEND_BACKWARD(Unchanged, EveryKey, TensorCoreKeys<kBFloat16, 256, KeyPart::kValues, Unchanged, EveryKey>);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat16, 128, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, Causal, kBFloat16, 64, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(test::Gated, test::SameDocument, kBFloat16, 128, KeyPart::kBoth);
ATTEND_BACKWARD(Unchanged, EveryKey, TensorCoreRowSums<kBFloat16>);

ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat32, 32, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat32, 64, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat32, 96, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat32, 128, KeyPart::kBoth);
ATTEND_TENSOR_BACKWARD(Unchanged, EveryKey, kFloat32, 192, KeyPart::kKeys);
ATTEND_BACKWARD(Unchanged, EveryKey, TensorCoreKeys<kFloat32, 192, KeyPart::kValues, Unchanged, EveryKey>);
ATTEND_TENSOR_BACKWARD(test::Gated, test::SameDocument, kFloat32, 64, KeyPart::kBoth);
ATTEND_BACKWARD(Unchanged, EveryKey, TensorCoreRowSums<kFloat32>);

ATTEND_PLAIN_BACKWARD(Unchanged, EveryKey, float);
ATTEND_PLAIN_BACKWARD(Unchanged, EveryKey, double);

ATTEND_BACKWARD(Unchanged, EveryKey, TensorCoreEntrySums<kBFloat16, 128, Unchanged, EveryKey>);
ATTEND_BACKWARD(Unchanged, EveryKey, EntrySums<float, Unchanged, EveryKey>);
ATTEND_BACKWARD(test::Gated, test::SameDocument, TensorSums<float, test::Gated, test::SameDocument>);
ATTEND_BACKWARD(Unchanged, EveryKey, AddPartials);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
