// SPDX-License-Identifier: MIT

// The random calls of the backward pass, by which the harness tests the kernels, on a GPU. benchmarks/gpu.sh compiles
// this file, which takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/backward_test.cpp"
#include "kernels/cuda/plain_backward_test.cpp"
