// SPDX-License-Identifier: MIT
//
// Calls only attention(), and so compiles in seconds.
#include <ATen/ops/ones.h>
#include <attend/attention.h>

#include <iostream>

int main() {
  const at::Tensor x = at::ones({1, 2, 16, 8});
  const at::Tensor y = attend::attention(x, x, x);
  std::cout << attend::explain(x, x, x) << ' ' << y.sizes() << '\n';
  return y.allclose(x) ? 0 : 1;
}
