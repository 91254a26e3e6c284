// SPDX-License-Identifier: MIT
// expect: attend::kernels: a mask_mod must be trivially copyable and have `bool operator()(attend::Coordinate at)
// const`
#include <attend/kernels.h>

struct NotBool {
  int operator()(attend::Coordinate at) const { return at.key; }
};

void call(const attend::AttentionParams& params, const attend::AttentionOutputs& outputs) {
  attend::kernels::flex_attention_forward(params, attend::Unchanged{}, NotBool{}, outputs);
}
