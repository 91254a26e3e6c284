// SPDX-License-Identifier: MIT

// Runs the random calls in tf32 on a GPU. Elsewhere the harness runs them. benchmarks/gpu.sh compiles this file, which
// takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/tf32_test.cpp"
