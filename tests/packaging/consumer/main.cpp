// SPDX-License-Identifier: MIT
#include <attend/attend.h>
#include <attend/io.h>
#include <attend/training.h>

#include <iostream>

torch::Tensor apply(attend::SelfAttention1d layer, const torch::Tensor& x);

int main() {
  attend::SelfAttention1d layer(attend::SelfAttention1dOptions(8, 8, 8));
  const torch::Tensor y = apply(layer, torch::rand({2, 8, 16}));
  std::cout << y.sizes() << '\n';
  if (y.sizes() != torch::IntArrayRef({2, 8, 16})) {
    return 1;
  }
  try {
    attend::load_safetensors("no such file");
    return 1;
  } catch (const attend::FileError& error) {
    std::cout << error.what() << '\n';
  }
  try {
    apply(layer, torch::rand({2, 4, 16}));
  } catch (const c10::ValueError& error) {
    std::cout << error.what_without_backtrace() << '\n';
    return 0;
  }
  return 1;  // four channels were accepted where eight are needed
}
