// SPDX-License-Identifier: MIT

// The random calls of the forward pass, by which the harness tests the kernels, on a GPU. benchmarks/gpu.sh compiles
// this file, which takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/decode_test.cpp"
#include "kernels/cuda/forward_test.cpp"
#include "kernels/cuda/plain_forward_test.cpp"
