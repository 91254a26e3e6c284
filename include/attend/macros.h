// SPDX-License-Identifier: MIT
#pragma once

/// Marks a function that nvcc compiles for the CPU and for the GPU. With other compilers it expands to nothing.
///
/// The operators of a score_mod and of a mask_mod have it, so that the same struct compiles with nvcc.
#if defined(__CUDACC__)
#define ATTEND_HOST_DEVICE __host__ __device__
#else
#define ATTEND_HOST_DEVICE
#endif
