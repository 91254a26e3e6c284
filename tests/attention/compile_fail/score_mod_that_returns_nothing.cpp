// SPDX-License-Identifier: MIT
// expect: attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, attend::
#include <attend/flex_attention.h>

struct ChangesInPlace {
  template <class T>
  void operator()(T& score, attend::Coordinate) const {
    score = score + score;
  }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, ChangesInPlace()); }
