// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/support/configuration.h"
#include "kernels/support/memory.h"
#include "support/cuda_global_memory.h"

#include <attend/kernels/attention_params.h>

#include <cstdint>
#include <string>
#include <vector>

namespace attend::test {

/// Allows kernels to access the entries of a tensor, and nothing around them.
inline void add_tensor(GlobalMemory& memory, Tensor& tensor, bool is_output, const std::string& name) {
  const TensorView4d view = tensor.view();
  const std::int64_t size = tensor.number_bytes();
  const bool has_rows = view.strides[3] == 1;
  Sizes sizes = tensor.sizes();
  const std::int64_t bytes = size * (has_rows ? sizes[3] : 1);
  if (has_rows) sizes[3] = 1;
  Tensor::for_each(sizes, [&](auto n, auto h, auto i, auto d) {
    char* const entry = static_cast<char*>(view.data) +
                        size * (n * view.strides[0] + h * view.strides[1] + i * view.strides[2] + d * view.strides[3]);
    is_output ? memory.add_output(entry, bytes, name) : memory.add_input(entry, bytes, name);
  });
}

/// Allows kernels to read the tables of a rotary embedding.
inline void add_rotary(GlobalMemory& memory, CallMemory& call) {
  if (call.params.rotary_dim == 0) return;
  add_tensor(memory, call.query_cos, /*is_output=*/false, "query_rotary.cos");
  add_tensor(memory, call.query_sin, /*is_output=*/false, "query_rotary.sin");
  add_tensor(memory, call.key_cos, /*is_output=*/false, "key_rotary.cos");
  add_tensor(memory, call.key_sin, /*is_output=*/false, "key_rotary.sin");
}

/// Allows kernels to read numbers.
template <class Number>
void add_input(GlobalMemory& memory, const std::vector<Number>& numbers, const std::string& name) {
  if (!numbers.empty())
    memory.add_input(numbers.data(), static_cast<std::int64_t>(numbers.size() * sizeof(Number)), name);
}

}  // namespace attend::test
