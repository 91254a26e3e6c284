// SPDX-License-Identifier: MIT
#include "consumer.h"

#include <attend/attention.h>

at::Tensor causal_in_a_library(const at::Tensor& x) {
  return attend::attention(x, x, x, attend::AttentionOptions().is_causal(true));
}
