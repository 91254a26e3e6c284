// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/launch.cuh>

#include <cuda_runtime.h>

#include <cstdint>

// The backward pass on a GPU. It needs nvcc.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

/// How many blocks of a kernel a multiprocessor must have registers for: 6 of those without tensor cores, which have
/// little shared memory.
template <class Kernel>
inline constexpr int kLeastBlocks = Kernel::kThreads == 64 && Kernel::kSharedBytes <= 32 * 1024 ? 6 : 1;

template <class Kernel, class Score, class Mask>
__global__ void __launch_bounds__(Kernel::kThreads, kLeastBlocks<Kernel>)
    backward_kernel(const __grid_constant__ BackwardCall call, const __grid_constant__ Score score,
                    const __grid_constant__ Mask mask) {
  Kernel::run(call, score, mask);
}

}  // namespace detail

/// Starts the kernels of a backward pass. It allocates nothing and waits for nothing.
///
/// The same call gives the same bits each time: no kernel adds atomically.
///
/// @tparam Kernels The kernels that are compiled. Default: all.
/// @param call The call of the forward pass, from call_of().
/// @param gradients The gradients that are read, and those that are written. All pointers are to memory of the GPU.
/// @param score_mod As in the forward pass.
/// @param mask_mod As in the forward pass.
/// @param marked marked(k, reads) is the score_mod whose tensor k reads through `reads`, for each k whose gradient is
/// wanted. It is called on the host.
/// @param workspace backward_workspace_bytes() bytes of the GPU, aligned to 16 bytes. It need not be cleared.
/// @param stream The stream.
/// @return The first error of a launch.
/// @throws std::invalid_argument if a kernel would have more blocks than a GPU allows.
///
/// backward_why_not() must be null for the call.
template <class Kernels = EveryKernel, class Score, class Mask, class Marked>
cudaError_t attention_backward(const Call& call, const AttentionGradients& gradients, const Score& score_mod,
                               const Mask& mask_mod, const Marked& marked, void* workspace, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto launch = [&](auto kernel, const BackwardCall& backward) {
    using Kernel = decltype(kernel);
    if (error == cudaSuccess)
      error = detail::launch<Kernel>(&detail::backward_kernel<Kernel, Score, Mask>, Kernel::blocks(backward), stream,
                                     backward, score_mod, mask_mod);
  };
  launch_backward<Score, Mask, Kernels>(call, gradients, marked, workspace, backward_workspace_bytes(call, gradients),
                                        launch);
  return error;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
