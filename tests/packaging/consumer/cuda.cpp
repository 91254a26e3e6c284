// SPDX-License-Identifier: MIT
//
// What attend::cuda adds, where CUDA's headers are. It need not run: this machine may have no GPU.
#include <attend/training/cuda_graph.h>

int main() { return attend::cuda_graphs()->why_not(c10::Device(c10::kCPU)).has_value() ? 0 : 1; }
