// SPDX-License-Identifier: MIT
// expect: attend::flex_attention: a mask_mod must be trivially copyable; one that holds tensors needs `auto bind
#include <attend/flex_attention.h>

struct Padding {
  at::Tensor lengths;

  bool operator()(attend::Coordinate) const { return true; }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, attend::Unchanged(), Padding{x}); }
