// SPDX-License-Identifier: MIT
// expect: attend::flex_attention: a score_mod must be trivially copyable; one that holds tensors needs `auto bind
#include <attend/flex_attention.h>

struct HeadBias {
  at::Tensor bias;

  template <class T>
  T operator()(T score, attend::Coordinate) const {
    return score;
  }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, HeadBias{x}); }
