// SPDX-License-Identifier: MIT
// expect: attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, attend::
#include <attend/flex_attention.h>

struct OfFloat {
  float operator()(float score, attend::Coordinate) const { return score; }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, OfFloat()); }
