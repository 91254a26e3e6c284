// SPDX-License-Identifier: MIT
#pragma once

#include "configuration.h"

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace attend::test {

/// The results of a call, by name; the gradients are "query", "key", and so on.
using Results = std::map<std::string, std::vector<double>>;

/// What forward(outputs) and backward(outputs, gradients) compute, in T. They write into tensors that
/// `output_tensor(sizes)` makes. Checks that they write nowhere else. `also_without_saved`: adds the results of a
/// forward pass that saves nothing.
template <class T, class OutputTensor, class Forward, class Backward>
Results results_of(CallMemory& call, const OutputTensor& output_tensor, const std::vector<std::int64_t>& tensor_sizes,
                   std::int64_t saved_bytes, bool also_without_saved, const Forward& forward,
                   const Backward& backward) {
  const AttentionParams& p = call.params;
  const std::int64_t N = p.batch_size, H = p.num_heads, G = p.num_kv_heads, L = p.query_length, S = p.key_length;
  Tensor output = output_tensor(Sizes{N, H, L, p.value_dim}), query = output_tensor(Sizes{N, H, L, p.head_dim}),
         key = output_tensor(Sizes{N, G, S, p.head_dim}), value = output_tensor(Sizes{N, G, S, p.value_dim});
  Tensor log_sum_exp(call.computed(), {N, H, L, 1});
  std::vector<T> saved(static_cast<std::size_t>(saved_bytes) / sizeof(T) + 1, T(-77));  // the last one must stay
  const AttentionOutputs outputs{output.view(), log_sum_exp.view().data, saved.data(), saved_bytes};
  forward(outputs);

  Results results{{"output", output.values()}, {"log_sum_exp", log_sum_exp.values()}};
  if (also_without_saved) {  // it may take another way
    Tensor output_alone = output_tensor(Sizes{N, H, L, p.value_dim});
    forward(AttentionOutputs{output_alone.view(), log_sum_exp.view().data});
    results["output, nothing saved"] = output_alone.values();
    results["log_sum_exp, nothing saved"] = log_sum_exp.values();
    CHECK(output_alone.is_kept_around());
  }
  const auto sum_for = [&](const std::string& name, bool is_wanted, std::int64_t size) -> SummedGradient {
    if (!is_wanted) return {};
    std::vector<double>& sum = results[name];
    sum.resize(static_cast<std::size_t>(size), -77);
    return {sum.data(), size};
  };
  AttentionGradients gradients;
  gradients.output = call.output_gradient.view();
  gradients.log_sum_exp = call.log_sum_exp_gradient.view().data;
  gradients.query = query.view();
  gradients.key = key.view();
  gradients.value = value.view();
  const bool is_added = p.mask_type == MaskType::kAdded || p.mask_type == MaskType::kAddedBFloat16;
  gradients.attn_mask = sum_for("mask", is_added, call.mask_gradient_size());
  gradients.alibi_slopes = sum_for("slopes", p.alibi_slopes != nullptr, p.alibi_strides[0] == 0 ? H : N * H);
  int k = 0;
  for (const std::int64_t size : tensor_sizes)
    gradients.score_tensors.push_back(sum_for("tensor" + std::to_string(k++), true, size));
  backward(outputs, gradients);
  results["query"] = query.values();
  results["key"] = key.values();
  results["value"] = value.values();
  for (const Tensor* written : {&output, &query, &key, &value}) CHECK(written->is_kept_around());
  CHECK(saved.back() == T(-77));
  return results;
}

}  // namespace attend::test
