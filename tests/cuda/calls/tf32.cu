// SPDX-License-Identifier: MIT

// The random calls in tf32, by which the harness tests the kernels, on a GPU. benchmarks/gpu.sh compiles this file, which
// takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/tf32_test.cpp"
