// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/without_data.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/layers/detail/multihead_options.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <torch/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Query, key and value as attention() takes them.
struct HeadTensors {
  torch::Tensor query, key, value;  // (N, H, L, head_dim), (N, G, S, head_dim) twice
};

/// The linear layers of query, key and value.
struct ProjectionWeights {
  Linear packed;                   // all three, one after the other; undefined if they are separate
  std::array<Linear, 3> separate;  // otherwise
};

/// The projections of MultiheadAttention.
struct MultiheadProjection {
  const MultiheadAttentionOptions& options;
  std::int64_t head_dim;
  ProjectionWeights weights;
  const torch::Tensor &bias_k, &bias_v;
  bool has_data;  // without, the results have no data; see without_data()

  /// Projects query, key and value, and splits them into heads. Tensors that are the same object are read once.
  HeadTensors heads_of(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value) const {
    if (!key.defined()) return {project(query, 0, 1)[0], {}, {}};  // all keys are in the cache
    std::vector<torch::Tensor> parts;
    if (query.is_same(key) && key.is_same(value)) {
      parts = project(query, 0, 3);
    } else {
      parts = project(query, 0, 1);
      const bool is_one = key.is_same(value);
      for (torch::Tensor& part : project(key, 1, is_one ? 2 : 1)) parts.push_back(std::move(part));
      if (!is_one) parts.push_back(project(value, 2, 1)[0]);
    }
    HeadTensors result{parts[0], parts[1], parts[2]};
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

  /// (…, heads · head_dim) to (N, heads, length, head_dim).
  static torch::Tensor by_heads(const torch::Tensor& rows, std::int64_t head_dim, bool batch_first) {
    const torch::Tensor split = rows.unflatten(-1, {-1, head_dim});
    if (split.dim() == 3) return split.transpose(0, 1).unsqueeze(0);
    return batch_first ? split.transpose(1, 2) : split.permute({1, 2, 0, 3});
  }

 private:
  /// The projections of x by the layers `first` … `first + count − 1` of query, key and value.
  std::vector<torch::Tensor> project(const torch::Tensor& x, std::size_t first, std::size_t count) const {
    const std::int64_t kv_heads = num_kv_heads(options), all_heads[] = {options.num_heads(), kv_heads, kv_heads};
    std::vector<torch::Tensor> parts;
    if (!weights.packed.weight.defined()) {
      parts = linear(x, {weights.separate.begin() + first, weights.separate.begin() + first + count});
      for (torch::Tensor& part : parts) part = by_heads(part, head_dim, options.batch_first());
      return parts;
    }
    const torch::IntArrayRef heads(all_heads + first, count);
    std::int64_t begin = 0, rows = 0;
    for (std::size_t i = 0; i < first; ++i) begin += all_heads[i] * head_dim;
    for (const std::int64_t each : heads) rows += each * head_dim;
    const auto part_of = [&](const torch::Tensor& tensor) {
      return tensor.defined() && count < 3 ? tensor.narrow(0, begin, rows) : tensor;
    };
    const torch::Tensor all = by_heads(linear(x, {{part_of(weights.packed.weight), part_of(weights.packed.bias)}})[0],
                                       head_dim, options.batch_first());
    return count == 1 ? std::vector{all} : all.split_with_sizes(heads, 1);
  }

  std::vector<torch::Tensor> linear(const torch::Tensor& x, const std::vector<Linear>& layers) const {
    if (has_data) return FusedLinear::run(x, layers, options.backend());
    std::vector<torch::Tensor> results;
    for (const Linear& layer : layers) results.push_back(linear_without_data(x, layer.weight, layer.bias));
    return results;
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
