// SPDX-License-Identifier: MIT

// Tests that philox() gives the same bits in device code and host code. Without a GPU it tests only that this compiles.

#include <attend/detail/philox.h>

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

constexpr int kBlocks = 1024;
constexpr int kSkipped = 77;  // counts as "skipped" for ctest

__global__ void draw(std::uint64_t seed, attend::detail::PhiloxBlock* blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < kBlocks) blocks[i] = attend::detail::philox(seed, i, ~std::uint64_t{0} - i);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: this machine has no GPU");
    return kSkipped;
  }
  constexpr std::uint64_t kSeed = 0x299f31d0a4093822;
  static attend::detail::PhiloxBlock drawn[kBlocks];
  attend::detail::PhiloxBlock* on_device = nullptr;
  bool failed = cudaMalloc(&on_device, sizeof drawn) != cudaSuccess;
  if (!failed) draw<<<kBlocks / 128, 128>>>(kSeed, on_device);
  failed = failed || cudaMemcpy(drawn, on_device, sizeof drawn, cudaMemcpyDeviceToHost) != cudaSuccess;
  int differences = 0;
  for (int i = 0; i < kBlocks; ++i) {
    const attend::detail::PhiloxBlock expected = attend::detail::philox(kSeed, i, ~std::uint64_t{0} - i);
    for (int word = 0; word < 4; ++word) differences += drawn[i].words[word] != expected.words[word];
  }
  std::printf("%s, %d of %d words differ\n", cudaGetErrorString(cudaGetLastError()), differences, 4 * kBlocks);
  return failed || differences > 0 ? 1 : 0;
}
