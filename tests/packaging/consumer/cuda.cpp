// SPDX-License-Identifier: MIT
//
// Uses the addition of attend::cuda, if CUDA's headers are found. It is compiled only: this machine may have no GPU.
#include <attend/training/cuda_graph.h>

int main() { return attend::cuda_graphs()->why_not(c10::Device(c10::kCPU)).has_value() ? 0 : 1; }
