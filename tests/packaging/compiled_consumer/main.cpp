// SPDX-License-Identifier: MIT
#include "consumer.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/rand.h>
#include <attend/attention.h>

#include <iostream>

int main() {
  const at::Tensor x = at::rand({1, 2, 80, 8});
  const attend::AttentionOptions options = attend::AttentionOptions().is_causal(true);
  std::cout << attend::explain(x, x, x, options) << '\n';
  const at::Tensor expected = attend::attention_weights(x, x, options).matmul(x);
  for (const auto function : {causal_by_options, causal_by_flex, causal_in_a_library, causal_by_header_only}) {
    const at::Tensor input = x.detach().requires_grad_();
    const at::Tensor y = function(input);
    y.sum().backward();
    if (!at::allclose(y, expected, 1e-5, 1e-6) || !input.grad().defined()) return 1;
  }
  return 0;
}
