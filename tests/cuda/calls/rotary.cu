// SPDX-License-Identifier: MIT

// The random calls with rotary embeddings, by which the harness tests the kernels, on a GPU. benchmarks/gpu.sh compiles
// this file, which takes minutes.

#include "cuda/calls/main.cuh"
#include "kernels/cuda/rotary_test.cpp"
