// SPDX-License-Identifier: MIT

// None of these must compile. compile_fail_test.py looks for the error above each namespace.

#include <attend/kernels.h>

// clang-format off

// attend::kernels: a mask_mod must be trivially copyable and have `bool operator()(attend::Coordinate at) const`
namespace mask_mod {
struct NotBool {
  int operator()(attend::Coordinate at) const { return at.key; }
};

void call(const attend::AttentionParams& params, const attend::AttentionOutputs& outputs) {
  attend::kernels::flex_attention_forward(params, attend::Unchanged{}, NotBool{}, outputs);
}
}  // namespace mask_mod

// attend::kernels: a score_mod must be trivially copyable and have `template <class T> T operator()(T score, attend::Coordinate at) const`
namespace score_mod {
struct OnlyFloat {
  float operator()(float score, attend::Coordinate) const { return score; }
};

void call(const attend::AttentionParams& params, const attend::AttentionOutputs& outputs) {
  attend::kernels::flex_attention_forward(params, OnlyFloat{}, attend::EveryKey{}, outputs);
}
}  // namespace score_mod
