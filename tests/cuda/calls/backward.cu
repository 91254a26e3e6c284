// SPDX-License-Identifier: MIT

// Runs the random calls of the backward pass on a GPU. Elsewhere the harness runs them. benchmarks/gpu.sh compiles this
// file, which takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/backward_test.cpp"
#include "kernels/cuda/plain_backward_test.cpp"
