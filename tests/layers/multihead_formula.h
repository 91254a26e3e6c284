// SPDX-License-Identifier: MIT
#pragma once

// MultiheadAttention as a formula in torch's operators, and a learned bias, for the tests of its options.

#include <attend/attention/bias.h>
#include <attend/flex_attention.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/position_bias.h>

#include "support/dense.h"

#include <c10/core/ScalarType.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace attend::test {

/// A bias for each distance from −M to M: the smallest PositionBias.
class DistanceBiasImpl : public torch::nn::Cloneable<DistanceBiasImpl>, public PositionBias {
 public:
  DistanceBiasImpl(std::int64_t heads, std::int64_t farthest) : heads_(heads), farthest_(farthest) { reset(); }
  void reset() override { table = register_parameter("table", torch::randn({heads_, 2 * farthest_ + 1})); }
  std::int64_t num_heads() const override { return heads_; }
  torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const AttentionOptions& options) override {
    return flex_attention(q, k, v, RelativeBias(table), EveryKey{}, options);
  }
  Explanation explain(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                      const AttentionOptions& options) override {
    return explain_flex(q, k, v, RelativeBias(table), EveryKey{}, options);
  }
  torch::Tensor dense(std::int64_t queries, std::int64_t keys) override { return by_formula(table, queries, keys); }

  /// (H, L, S)
  static torch::Tensor by_formula(const torch::Tensor& table, std::int64_t queries, std::int64_t keys) {
    const std::int64_t farthest = table.size(1) / 2;
    const torch::Tensor ahead =
        torch::arange(keys).unsqueeze(0) - (torch::arange(queries) + keys - queries).unsqueeze(1);
    return table.index_select(1, (ahead.clamp(-farthest, farthest) + farthest).flatten())
        .view({table.size(0), queries, keys});
  }

  torch::Tensor table;

 private:
  std::int64_t heads_, farthest_;
};
TORCH_MODULE(DistanceBias);

/// The formula with batch-first tensors, on the parameters of a layer by their names, in the dtype of these.
struct MultiheadFormula {
  const MultiheadAttentionOptions& options;
  std::map<std::string, torch::Tensor> parameters;

  explicit MultiheadFormula(const MultiheadAttention& layer) : options(layer->options) {
    for (const auto& parameter : layer->named_parameters()) parameters[parameter.key()] = parameter.value();
  }

  struct Result {
    torch::Tensor output, weights;  // (N, L, E), (N, H, L, S)
  };

  /// ignored: bool, broadcastable to (N, H, L, S). Positions (L) and (S); by default the last query is at the last key.
  Result operator()(const torch::Tensor& x, const torch::Tensor& memory, const torch::Tensor& ignored = {},
                    const torch::Tensor& positions = {}, const torch::Tensor& key_positions = {}) const {
    const std::int64_t heads = options.num_heads(), length = x.size(1), keys = memory.size(1);
    torch::Tensor q = by_heads(x, 0), k = by_heads(memory, 1), v = by_heads(memory, 2);
    q = rotated(normalized(q, "q_norm"),
                positions.defined() ? positions : torch::arange(keys - length, keys, torch::kDouble));
    k = rotated(normalized(k, "k_norm"), key_positions.defined() ? key_positions : torch::arange(keys, torch::kDouble));
    const DenseScore score = [&](const torch::Tensor& given, const Grid& at, const Tensors&) {
      torch::Tensor scores = given;
      if (options.softcap() > 0.0) scores = options.softcap() * (scores / options.softcap()).tanh();
      if (options.alibi()) scores = scores - slopes(heads).view({heads, 1, 1}).to(x.scalar_type()) * at.ahead.abs();
      if (options.position_bias())
        scores = scores + DistanceBiasImpl::by_formula(parameters.at("position_bias.table"), length, keys);
      return scores;
    };
    const DenseMask allowed = [&](const Grid& at) {
      torch::Tensor result = torch::ones_like(at.ahead, torch::kBool);
      if (options.is_causal()) result = result & (at.ahead <= 0);
      if (options.window().left >= 0) result = result & (at.ahead >= -options.window().left);
      if (options.window().right >= 0) result = result & (at.ahead <= options.window().right);
      return ignored.defined() ? result & ignored.logical_not() : result;
    };
    const double scale = options.scale().factor(q.size(3));
    const torch::Tensor one_hot =
        torch::eye(keys, x.options().requires_grad(false)).expand({x.size(0), k.size(1), keys, keys});
    const torch::Tensor averages = dense({q, k, v}, score, allowed, scale).output;
    return {torch::linear(averages.transpose(1, 2).flatten(2), parameters.at("out_proj.weight"), bias("out_proj.bias")),
            dense({q, k, one_hot}, score, allowed, scale).output};
  }

  /// The slopes of ALiBi, as the paper's code computes them.
  static torch::Tensor slopes(std::int64_t heads) {
    const auto of_power = [](std::int64_t n) {
      const double start = std::pow(2.0, -std::pow(2.0, -(std::log2(static_cast<double>(n)) - 3.0)));
      std::vector<double> result;
      for (std::int64_t i = 0; i < n; ++i) result.push_back(start * std::pow(start, static_cast<double>(i)));
      return torch::tensor(result, torch::kDouble);
    };
    const auto power = static_cast<std::int64_t>(std::pow(2.0, std::floor(std::log2(static_cast<double>(heads)))));
    if (power == heads) return of_power(heads);
    return torch::cat({of_power(power), slopes(2 * power).slice(0, 0, 2 * power, 2).narrow(0, 0, heads - power)});
  }

 private:
  torch::Tensor bias(const std::string& name) const {
    const auto found = parameters.find(name);
    return found == parameters.end() ? torch::Tensor() : found->second;
  }

  /// Part 0, 1 or 2 of query, key and value, (N, heads, length, head_dim).
  torch::Tensor by_heads(const torch::Tensor& x, std::int64_t part) const {
    const std::int64_t head_dim = options.head_dim().value_or(options.embed_dim() / options.num_heads());
    const std::int64_t width = options.num_heads() * head_dim,
                       kv_width = options.num_kv_heads().value_or(options.num_heads()) * head_dim;
    const std::int64_t first = part == 0 ? 0 : width + (part - 1) * kv_width, count = part == 0 ? width : kv_width;
    const std::string letter(1, "qkv"[part]);
    torch::Tensor weight, added = bias(letter + "_proj.bias");
    if (options.separate_projections())
      weight = parameters.at(letter + "_proj.weight");
    else if (const auto found = parameters.find("in_proj_weight"); found != parameters.end())
      weight = found->second.narrow(0, first, count);
    else
      weight = parameters.at(letter + "_proj_weight");
    if (const torch::Tensor packed = bias("in_proj_bias"); packed.defined()) added = packed.narrow(0, first, count);
    return torch::linear(x, weight, added).unflatten(-1, {-1, head_dim}).transpose(1, 2);
  }

  torch::Tensor normalized(const torch::Tensor& heads, const std::string& name) const {
    if (options.qk_norm() == QkNorm::kNone) return heads;
    const torch::Tensor weight = parameters.at(name + ".weight");
    if (options.qk_norm() == QkNorm::kRms)
      return heads / (heads.square().mean(-1, true) + options.qk_norm_eps()).sqrt() * weight;
    const torch::Tensor centred = heads - heads.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + options.qk_norm_eps()).sqrt() * weight +
           parameters.at(name + ".bias");
  }

  /// Turns each pair of numbers, as complex numbers. positions: (L).
  torch::Tensor rotated(const torch::Tensor& heads, const torch::Tensor& positions) const {
    if (!options.rotary()) return heads;
    const std::int64_t width = options.rotary()->rotary_dim().value_or(heads.size(3));
    const bool is_split = options.rotary()->layout() == RotaryLayout::kHalfSplit;
    const torch::Tensor frequencies =
        torch::pow(options.rotary()->theta(), -torch::arange(0, width, 2, torch::kDouble) / static_cast<double>(width));
    const torch::Tensor angles = (positions.to(torch::kDouble).unsqueeze(1) * frequencies);  // (L, R/2)
    const torch::Tensor turning = heads.narrow(3, 0, width);
    const torch::Tensor pairs =
        is_split ? turning.unflatten(3, {2, -1}).transpose(3, 4) : turning.unflatten(3, {-1, 2});
    const torch::Tensor turned =
        torch::view_as_real(torch::view_as_complex(pairs.contiguous()) *
                            torch::complex(angles.cos(), angles.sin()).to(c10::toComplexType(heads.scalar_type())));
    return torch::cat(
        {(is_split ? turned.transpose(3, 4) : turned).flatten(3), heads.narrow(3, width, heads.size(3) - width)}, 3);
  }
};

/// A layer in float64 whose parameters are all random.
inline MultiheadAttention random_layer(const MultiheadAttentionOptions& options) {
  MultiheadAttention layer(options);
  layer->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : layer->parameters()) parameter.normal_(0.0, 0.5);
  return layer;
}

inline MultiheadAttention copy_of(const MultiheadAttention& layer) {
  return MultiheadAttention(std::dynamic_pointer_cast<attend::MultiheadAttentionImpl>(layer->clone()));
}

inline MultiheadAttentionOptions plain() { return MultiheadAttentionOptions(24, 4).batch_first(true); }

struct NamedOptions {
  std::string name;
  MultiheadAttentionOptions value;
};

/// Each option of attend, batch-first unless it says otherwise.
inline std::vector<NamedOptions> each_option() {
  const RotaryEmbeddingOptions rotary(6);
  return {
      {"qkv_bias off", plain().qkv_bias(false)},
      {"out_bias off", plain().out_bias(false)},
      {"qkv_bias on", plain().bias(false).qkv_bias(true)},
      {"out_bias on", plain().bias(false).out_bias(true)},
      {"separate_projections", plain().separate_projections(true)},
      {"separate_projections, grouped", plain().separate_projections(true).num_kv_heads(2).head_dim(8)},
      {"separate_projections without bias", plain().separate_projections(true).qkv_bias(false)},
      {"qk_norm kRms", plain().qk_norm(QkNorm::kRms)},
      {"qk_norm kLayer", plain().qk_norm(QkNorm::kLayer).qk_norm_eps(0.1)},
      {"qk_norm, length first", plain().qk_norm(QkNorm::kRms).batch_first(false)},
      {"softcap", plain().softcap(0.7)},
      {"alibi", plain().alibi(true)},
      {"alibi, 3 heads", MultiheadAttentionOptions(24, 3).batch_first(true).alibi(true)},
      {"rotary", plain().rotary(rotary)},
      {"rotary, interleaved", plain().rotary(RotaryEmbeddingOptions(6).layout(RotaryLayout::kInterleaved))},
      {"rotary, partial", plain().rotary(RotaryEmbeddingOptions(6).rotary_dim(4).theta(100))},
      {"rotary, length first", plain().rotary(rotary).batch_first(false)},
      {"position_bias", plain().position_bias(DistanceBias(4, 3).ptr())},
      {"position_bias, causal", plain().position_bias(DistanceBias(4, 3).ptr()).is_causal(true)},
  };
}

}  // namespace attend::test
