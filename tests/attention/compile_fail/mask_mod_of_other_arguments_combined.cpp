// SPDX-License-Identifier: MIT
// expect: attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const`
#include <attend/flex_attention.h>

struct OfTwoNumbers {
  bool operator()(int query, int key) const { return query >= key; }
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), OfTwoNumbers() & attend::Causal());
}
