// SPDX-License-Identifier: MIT

// Runs the random calls of the forward pass on a GPU. Elsewhere the harness runs them. benchmarks/gpu.sh compiles this
// file, which takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/decode_test.cpp"
#include "kernels/cuda/forward_test.cpp"
#include "kernels/cuda/plain_forward_test.cpp"
