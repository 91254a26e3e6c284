// SPDX-License-Identifier: MIT
//
// The second translation unit: what a header defines twice is seen by the linker.
#include <attend/kernels.h>

#include <vector>

std::vector<float> causal_attention(const std::vector<float>& x, int heads, int rows, int columns) {
  std::vector<float> y(x.size());
  attend::AttentionParams params;
  params.num_heads = params.num_kv_heads = heads;
  params.query_length = params.key_length = rows;
  params.head_dim = params.value_dim = columns;
  params.query = params.key = params.value = attend::contiguous(x.data(), heads, rows, columns);
  attend::kernels::flex_attention_forward(params, attend::Unchanged{}, attend::Causal{},
                                          {.output = attend::contiguous(y.data(), heads, rows, columns)});
  return y;
}
