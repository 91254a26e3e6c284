// SPDX-License-Identifier: MIT

#include <attend/flex_attention.h>

#include <torch/types.h>

#include <cstdio>

attend::BackendChoice causal_on_cuda();  // kernels.cu

int main() {
  const torch::Tensor x = torch::randn({1, 2, 16, 8});
  try {
    attend::flex_attention(x, x, x, attend::Unchanged{}, attend::Causal{},
                           attend::AttentionOptions().backend(causal_on_cuda()));
  } catch (const c10::NotImplementedError& error) {
    std::puts(error.what_without_backtrace());
    return 0;
  }
  return 1;
}
