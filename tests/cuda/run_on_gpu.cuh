// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/support/moved_memory.h"

#include <attend/kernels/cuda/launch_backward.cuh>
#include <attend/kernels/cuda/launch_forward.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace attend::test {

constexpr int kSkipped = 77;  // counts as "skipped" for ctest

inline bool has_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

inline void throw_if(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// The GPU, for MovedMemory. The functions wait for it.
struct Gpu {
  static void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    throw_if(cudaMalloc(&memory, bytes));
    return memory;
  }
  static void copy(void* to, const void* from, std::size_t bytes) {
    throw_if(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
  }
  static void free(void* memory) { cudaFree(memory); }
};

template <class Kernel, class Score, class Mask>
constexpr auto kernel_of(const cuda::Call&) {
  return &cuda::detail::forward_kernel<Kernel, Score, Mask>;
}
template <class Kernel, class Score, class Mask>
constexpr auto kernel_of(const cuda::BackwardCall&) {
  return &cuda::detail::backward_kernel<Kernel, Score, Mask>;
}

/// Runs a kernel on the GPU, on copies of the memory. What it writes is copied back.
///
/// @throws std::runtime_error for each error of CUDA.
template <class Kernel, class Call, class Score, class Mask>
void run_on_gpu(const Call& call, const Score& score_mod, const Mask& mask_mod, const GlobalMemory& memory) {
  const MovedMemory<Gpu> moved(memory);
  throw_if(cuda::detail::launch<Kernel>(kernel_of<Kernel, Score, Mask>(call), Kernel::blocks(call), /*stream=*/nullptr,
                                        moved.moved(call), moved.moved(score_mod), moved.moved(mask_mod)));
  throw_if(cudaDeviceSynchronize());
  moved.copy_back();
}

}  // namespace attend::test
