// SPDX-License-Identifier: MIT
//
// Uses a header of attend, and functions of LibTorch's libraries.
#include <ATen/ops/ones.h>
#include <attend/attention/backend.h>

#include <iostream>

int main() {
  const attend::BackendGuard guard(attend::Backend::kReference);
  const at::Tensor x = at::ones({2, 3});
  std::cout << attend::BackendGuard::current() << ' ' << x.sizes() << '\n';
  return attend::BackendGuard::current() == attend::Backend::kReference && x.numel() == 6 ? 0 : 1;
}
