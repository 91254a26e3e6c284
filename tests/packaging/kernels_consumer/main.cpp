// SPDX-License-Identifier: MIT
//
// A program without LibTorch. It fails if one of the libraries that it was linked with is LibTorch's.
#include <attend/kernels.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

std::vector<float> causal_attention(const std::vector<float>& x, int heads, int rows, int columns);

int main() {
  const std::vector<float> x(2 * 100 * 16, 0.5f);
  for (const float number : causal_attention(x, 2, 100, 16))
    if (std::abs(number - 0.5f) > 1e-6f) return 1;
  try {
    attend::kernels::attention_forward({}, {});
    return 2;  // head_dim was not set
  } catch (const std::invalid_argument& error) {
    std::cout << error.what() << '\n';
  }
  std::ifstream libraries("/proc/self/maps");
  for (std::string line; std::getline(libraries, line);)
    if (line.find("libtorch_cpu.so") != std::string::npos || line.find("libc10.so") != std::string::npos) {
      std::cout << line << '\n';
      return 3;
    }
  return 0;
}
