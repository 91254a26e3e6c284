// SPDX-License-Identifier: MIT
// expect: attend::kernels: a score_mod must be trivially copyable and have `template <class T> T operator()(T score,
// attend::Coordinate at) const`
#include <attend/kernels.h>

struct OnlyFloat {
  float operator()(float score, attend::Coordinate) const { return score; }
};

void call(const attend::AttentionParams& params, const attend::AttentionOutputs& outputs) {
  attend::kernels::flex_attention_forward(params, OnlyFloat{}, attend::EveryKey{}, outputs);
}
