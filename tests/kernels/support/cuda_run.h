// SPDX-License-Identifier: MIT
#pragma once

#include "support/cuda_block.h"

#ifdef __CUDACC__
#include "cuda/run_on_gpu.cuh"
#endif

#include <cstdint>
#include <string>

namespace attend::test {

/// Runs a kernel: by the harness, or on the GPU in a program that nvcc compiles (tests/cuda/calls).
///
/// @param seed Decides the order in which the harness runs threads.
/// @return What the harness reports.
template <class Kernel, class Call, class Score, class Mask>
std::string run_kernel(const Call& call, const Score& score_mod, const Mask& mask_mod, GlobalMemory& memory,
                       [[maybe_unused]] std::uint64_t seed) {
#ifdef __CUDACC__
  run_on_gpu<Kernel>(call, score_mod, mask_mod, memory);
  return "";
#else
  return run_on_host({.grid = {static_cast<int>(Kernel::blocks(call)), 1, 1},
                      .threads = Kernel::kThreads,
                      .shared_bytes = Kernel::kSharedBytes,
                      .seed = seed},
                     memory, [&] { Kernel::run(call, score_mod, mask_mod); })
      .text();
#endif
}

}  // namespace attend::test
