// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/without_data.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Query, key and value as attention() takes them.
struct HeadTensors {
  torch::Tensor query, key, value;  // (N, H, L, head_dim), (N, G, S, head_dim) twice
};

/// The projections of MultiheadAttention. The weights are members of the layer with the same names.
struct MultiheadProjection {
  const MultiheadAttentionOptions& options;
  std::int64_t head_dim;
  const torch::Tensor &in_proj_weight, &q_proj_weight, &k_proj_weight, &v_proj_weight, &in_proj_bias, &bias_k, &bias_v;
  bool has_data;  // without, the results have no data; see without_data()

  /// Projects query, key and value, and splits them into heads. If all three are one tensor, one product computes them;
  /// if key and value are one tensor, one product computes these two.
  HeadTensors heads_of(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value) const {
    const std::int64_t heads = options.num_heads(), kv_heads = options.num_kv_heads().value_or(heads);
    const std::int64_t width = heads * head_dim, kv_width = kv_heads * head_dim;
    HeadTensors result;
    if (in_proj_weight.defined() && query.is_same(key) && key.is_same(value)) {
      const auto parts =
          by_heads(linear(query, in_proj_weight, in_proj_bias)).split_with_sizes({heads, kv_heads, kv_heads}, 1);
      result = {parts[0], parts[1], parts[2]};
    } else if (in_proj_weight.defined() && key.is_same(value)) {
      const auto weights = in_proj_weight.split_with_sizes({width, 2 * kv_width});
      const auto biases = split_bias({width, 2 * kv_width});
      const auto parts = by_heads(linear(key, weights[1], biases[1])).split_with_sizes({kv_heads, kv_heads}, 1);
      result = {by_heads(linear(query, weights[0], biases[0])), parts[0], parts[1]};
    } else {
      const auto weights = in_proj_weight.defined() ? in_proj_weight.split_with_sizes({width, kv_width, kv_width})
                                                    : std::vector{q_proj_weight, k_proj_weight, v_proj_weight};
      const auto biases = split_bias({width, kv_width, kv_width});
      result = {by_heads(linear(query, weights[0], biases[0])), by_heads(linear(key, weights[1], biases[1])),
                by_heads(linear(value, weights[2], biases[2]))};
    }
    if (options.add_bias_kv()) {
      append(result.key, bias_k);
      append(result.value, bias_v);
    }
    if (options.add_zero_attn()) {
      append(result.key, {});
      append(result.value, {});
    }
    return result;
  }

 private:
  torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const {
    return has_data ? FusedLinear::run(x, {{weight, bias}}, options.backend())[0]
                    : linear_without_data(x, weight, bias);
  }

  /// (…, heads · head_dim) to (N, heads, length, head_dim).
  torch::Tensor by_heads(const torch::Tensor& rows) const {
    const torch::Tensor split = rows.unflatten(-1, {-1, head_dim});
    if (split.dim() == 3) return split.transpose(0, 1).unsqueeze(0);
    return options.batch_first() ? split.transpose(1, 2) : split.permute({1, 2, 0, 3});
  }

  std::vector<torch::Tensor> split_bias(torch::IntArrayRef sizes) const {
    return options.bias() ? in_proj_bias.split_with_sizes(sizes) : std::vector<torch::Tensor>(sizes.size());
  }

  /// Appends one row to each head of (N, G, S, head_dim): `given` (1, 1, G · head_dim), or zeros if it is undefined.
  void append(torch::Tensor& tensor, const torch::Tensor& given) const {
    const std::int64_t batch = tensor.size(0), heads = tensor.size(1), length = tensor.size(2);
    if (!has_data) {
      tensor = without_data({batch, heads, length + 1, head_dim}, tensor.options(),
                            tensor.requires_grad() || (given.defined() && given.requires_grad()));
      return;
    }
    const torch::Tensor row = given.defined() ? given.view({1, heads, 1, head_dim}).to(tensor.dtype())
                                              : torch::zeros({1, heads, 1, head_dim}, tensor.options());
    tensor = torch::cat({tensor, row.expand({batch, -1, -1, -1})}, 2);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
