// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/every_kernel.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>
#include <attend/kernels/cuda/launch.cuh>

#include <cuda_runtime.h>

#include <cstdint>

// The forward pass on a GPU. It needs nvcc.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

// Two blocks on a multiprocessor allow each thread 255 registers.
template <class Kernel, class Score, class Mask>
__global__ void __launch_bounds__(Kernel::kThreads, 2)
    forward_kernel(const __grid_constant__ Call call, const __grid_constant__ Score score,
                   const __grid_constant__ Mask mask) {
  Kernel::run(call, score, mask);
}

}  // namespace detail

/// Starts the kernels of a forward pass. It allocates nothing and waits for nothing.
///
/// The same call gives the same bits each time.
///
/// @tparam Kernels The kernels that are compiled. Default: all.
/// @param call The call, from call_of().
/// @param score_mod A struct as ScoreMod describes, or Unchanged. Pointers in it are to memory of the GPU.
/// @param mask_mod A struct as MaskMod describes, or EveryKey.
/// @param workspace forward_workspace_bytes<Kernels>() bytes of the GPU, aligned to 16 bytes. It need not be cleared.
/// @param stream The stream.
/// @return The first error of a launch.
/// @throws std::invalid_argument if a grid would be larger than a GPU allows.
template <class Kernels = EveryKernel, class Score, class Mask>
cudaError_t attention_forward(const Call& call, const Score& score_mod, const Mask& mask_mod, void* workspace,
                              cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  launch_forward<Kernels>(call, workspace, [&](auto kernel, const Call& launched) {
    using Kernel = decltype(kernel);
    if (error == cudaSuccess)
      error = detail::launch<Kernel>(&detail::forward_kernel<Kernel, Score, Mask>, Kernel::blocks(launched), stream,
                                     launched, score_mod, mask_mod);
  });
  return error;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
