// SPDX-License-Identifier: MIT
// expect: the fourth argument must be a score_mod, but it is a mask_mod
#include <attend/flex_attention.h>

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, attend::Causal()); }
