// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <cuda_runtime.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Starts `function`, a __global__ function that runs Kernel, with the shared memory that Kernel needs.
template <class Kernel, class... Arguments>
cudaError_t launch(void (*function)(Arguments...), std::int64_t blocks, cudaStream_t stream,
                   const Arguments&... arguments) {
  if constexpr (Kernel::kSharedBytes > 48 * 1024) {
    constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const cudaError_t error = cudaFuncSetAttribute(function, kAttribute, Kernel::kSharedBytes);
        error != cudaSuccess)
      return error;
  }
  function<<<static_cast<unsigned>(blocks), Kernel::kThreads, Kernel::kSharedBytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
