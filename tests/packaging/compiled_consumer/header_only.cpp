// SPDX-License-Identifier: MIT
#include "consumer.h"

#include <attend/attention.h>

at::Tensor causal_by_header_only(const at::Tensor& x) {
  return attend::attention(x, x, x, attend::AttentionOptions().is_causal(true));
}
