// SPDX-License-Identifier: MIT
// expect: attend: `keys` of a mask_mod must be `attend::KeyRange keys(attend::QueryBlock block) const`
#include <attend/flex_attention.h>

struct FirstKeys {
  bool operator()(attend::Coordinate at) const { return at.key < 8; }
  attend::KeyRange keys(attend::QueryBlock) { return {0, 8}; }  // not const
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), FirstKeys() & attend::Causal());
}
