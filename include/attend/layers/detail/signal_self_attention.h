// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/options.h>
#include <attend/detail/torch/checks.h>
#include <attend/detail/torch/without_data.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The checks of the options that SelfAttention1d and SelfAttention2d share.
template <class Options>
void check_self_attention_options(const char* name, const Options& options) {
  check_positive(name, "in_channels", options.in_channels());
  check_positive(name, "out_channels", options.out_channels());
  check_positive(name, "key_channels", options.key_channels());
  check_positive(name, "num_heads", options.num_heads());
  TORCH_CHECK_VALUE(options.key_channels() % options.num_heads() == 0, name, ": key_channels (", options.key_channels(),
                    ") must be divisible by num_heads (", options.num_heads(), ")");
  TORCH_CHECK_VALUE(options.out_channels() % options.num_heads() == 0, name, ": out_channels (", options.out_channels(),
                    ") must be divisible by num_heads (", options.num_heads(), ")");
}

/// Self-attention of rows (N, L, in_channels): the part that SelfAttention1d and SelfAttention2d share. The weights of
/// the projections are (channels, in_channels).
struct SignalSelfAttention {
  torch::Tensor query, key, value;
  std::int64_t num_heads;
  AttentionOptions options;

  /// (N, L, in_channels) to (N, L, out_channels).
  torch::Tensor output(const torch::Tensor& rows) const {
    const std::vector<torch::Tensor> heads = projected(rows, {query, key, value});
    return attend::attention(heads[0], heads[1], heads[2], options).transpose(1, 2).flatten(2);
  }

  /// (N, L, in_channels) to (N, num_heads, L, L).
  torch::Tensor weights(const torch::Tensor& rows) const {
    const std::vector<torch::Tensor> heads = projected(rows, {query, key});
    return attend::attention_weights(heads[0], heads[1], options);
  }

  Explanation explain(const torch::Tensor& rows) const {
    std::vector<torch::Tensor> heads;
    for (const torch::Tensor& weight : {query, key, value})
      heads.push_back(by_heads(linear_without_data(rows, weight)));
    return attend::explain(heads[0], heads[1], heads[2], options);
  }

 private:
  /// Computes matrix products of the rows, not convolutions. In the results the channels of a position are adjacent, so
  /// the fused kernels read them without a copy.
  std::vector<torch::Tensor> projected(const torch::Tensor& rows, const std::vector<torch::Tensor>& weights) const {
    std::vector<Linear> linear;
    for (const torch::Tensor& weight : weights) linear.push_back({weight, {}});
    std::vector<torch::Tensor> results = FusedLinear::run(rows.contiguous(), linear, options.backend());
    for (torch::Tensor& result : results) result = by_heads(result);
    return results;
  }

  /// (N, L, channels) to (N, H, L, channels / H).
  torch::Tensor by_heads(const torch::Tensor& rows) const { return rows.unflatten(2, {num_heads, -1}).transpose(1, 2); }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
