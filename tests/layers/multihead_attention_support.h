// SPDX-License-Identifier: MIT
#pragma once

// What the tests of MultiheadAttention share.

#include <attend/layers/multihead_attention.h>

#include "support/layers.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace attend::test {

using MultiheadResults = std::tuple<torch::Tensor, torch::Tensor>;

inline const torch::Tensor& output_of(const MultiheadResults& results) { return std::get<0>(results); }
inline const torch::Tensor& weights_of(const MultiheadResults& results) { return std::get<1>(results); }

/// Randomizes torch's parameters and copies them into `ours`.
inline void share_parameters(torch::nn::MultiheadAttention& torchs, MultiheadAttention& ours) {
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> parameters;
  for (auto& parameter : torchs->named_parameters()) {
    parameter->normal_();
    parameters[parameter.key()] = parameter.value();
  }
  copy_parameters(parameters, "", *ours);
}

/// A call that either module can run.
struct MultiheadCall {
  torch::Tensor query, key, value;
  torch::Tensor key_padding_mask = {}, attn_mask = {};
  bool need_weights = true, average_attn_weights = true;
  bool is_causal = false;  // the argument, which only attend's module has

  template <class Module>
  MultiheadResults run(Module& module) const {
    if constexpr (std::is_same_v<Module, MultiheadAttention>)
      return module->forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                             is_causal);
    else
      return module->forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights);
  }

  /// The same call with its own leaves. Arguments that were one tensor stay one tensor.
  MultiheadCall with_leaves() const {
    MultiheadCall call = *this;
    call.query = query.detach().clone().requires_grad_();
    call.key = key.is_same(query) ? call.query : key.detach().clone().requires_grad_();
    call.value = value.is_same(key) ? call.key : value.detach().clone().requires_grad_();
    if (attn_mask.defined() && attn_mask.is_floating_point()) call.attn_mask = attn_mask.clone().requires_grad_();
    return call;
  }

  std::vector<torch::Tensor> gradients() const {
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& tensor : {query, key, value, attn_mask})
      if (tensor.defined() && tensor.requires_grad()) gradients.push_back(tensor.grad());
    return gradients;
  }
};

/// A weighted sum of all results of a call, with the same weights for the same sizes.
inline torch::Tensor weighted_sum(const MultiheadResults& results) {
  const auto weighted = [](const torch::Tensor& tensor) {
    return (tensor * torch::arange(1, tensor.numel() + 1, tensor.options()).view_as(tensor).cos()).sum();
  };
  const torch::Tensor sum = weighted(output_of(results));
  return weights_of(results).defined() ? sum + weighted(weights_of(results)) : sum;
}

/// A padding mask (N, S), true = ignore. Batch entry n ignores its last 2n keys.
inline torch::Tensor padding(std::int64_t batch, std::int64_t keys) {
  return torch::arange(keys).unsqueeze(0) >= (keys - 2 * torch::arange(batch)).unsqueeze(1);
}

/// The mask as a float mask: −∞ where it is true.
inline torch::Tensor added(const torch::Tensor& ignored, torch::Dtype dtype) {
  return torch::zeros(ignored.sizes(), dtype).masked_fill(ignored, -std::numeric_limits<double>::infinity());
}

}  // namespace attend::test
