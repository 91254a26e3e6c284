// SPDX-License-Identifier: MIT
#pragma once

/// Marks a function that runs on the CPU and, when nvcc compiles it, on the GPU as well. The body is the same in both.
#if defined(__CUDACC__)
#define ATTEND_HOST_DEVICE __host__ __device__
#else
#define ATTEND_HOST_DEVICE
#endif
