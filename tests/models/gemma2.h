// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/feed_forward.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/rms_norm.h>

#include "models/model.h"

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace attend::test {

struct Gemma2Options {
  std::int64_t vocab_size, embed_dim, num_layers, num_heads, num_kv_heads, head_dim, hidden_dim;
  double query_pre_attn_scalar, softcap;
  std::int64_t sliding_window;  // of every second layer, beginning with the first
  double eps = 1e-6;
};

/// x + norm(attention(norm(x))), then + norm(feed-forward(norm(…))).
class Gemma2LayerImpl : public torch::nn::Module {
 public:
  Gemma2LayerImpl(const Gemma2Options& options, bool is_sliding)
      : self_attn(register_module("self_attn",
                                  MultiheadAttention(MultiheadAttentionOptions(options.embed_dim, options.num_heads)
                                                         .num_kv_heads(options.num_kv_heads)
                                                         .head_dim(options.head_dim)
                                                         .bias(false)
                                                         .separate_projections(true)
                                                         .rotary(RotaryEmbeddingOptions(options.head_dim))
                                                         .scale(1.0 / std::sqrt(options.query_pre_attn_scalar))
                                                         .softcap(options.softcap)
                                                         .is_causal(true)
                                                         .window({is_sliding ? options.sliding_window - 1 : -1, -1})
                                                         .batch_first(true)))),
        mlp(register_module("mlp", FeedForward(FeedForwardOptions(options.embed_dim, options.hidden_dim)
                                                   .activation(kGELUTanh)
                                                   .gated(true)
                                                   .bias(false)
                                                   .names(FeedForwardNames::kLlama)))) {
    const auto norm = [&](const char* name) {
      return register_module(name, RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)));
    };
    input_layernorm = norm("input_layernorm");
    post_attention_layernorm = norm("post_attention_layernorm");
    pre_feedforward_layernorm = norm("pre_feedforward_layernorm");
    post_feedforward_layernorm = norm("post_feedforward_layernorm");
  }

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = x + post_attention_layernorm(self_attn->self_attention(input_layernorm(x), call));
    return attended + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(attended)));
  }

 private:
  MultiheadAttention self_attn;
  FeedForward mlp;
  RMSNorm input_layernorm{nullptr}, post_attention_layernorm{nullptr}, pre_feedforward_layernorm{nullptr},
      post_feedforward_layernorm{nullptr};
};
TORCH_MODULE(Gemma2Layer);

/// Gemma2Model of Hugging Face's transformers.
class Gemma2Impl : public torch::nn::Module {
 public:
  explicit Gemma2Impl(const Gemma2Options& options)
      : embed_scale(std::sqrt(static_cast<double>(options.embed_dim))),
        embed_tokens(register_module("embed_tokens", torch::nn::Embedding(options.vocab_size, options.embed_dim))),
        layers(register_module("layers", torch::nn::ModuleList())),
        norm(register_module("norm", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))) {
    for (std::int64_t i = 0; i < options.num_layers; ++i)
      layers->push_back(Gemma2Layer(options, /*is_sliding=*/i % 2 == 0));
  }

  /// ids: int64 (N, L).
  States forward(const torch::Tensor& ids, const MultiheadAttentionCall& call = {}) {
    return states_of_layers<Gemma2LayerImpl>(layers, norm, embed_scale * embed_tokens(ids), call);
  }

  static std::vector<Rename> rules() { return {Rename::pattern("\\.o_proj\\.", ".out_proj.")}; }

  /// Gemma's norms multiply by 1 + weight.
  void add_one_to_norms() {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : named_parameters())
      if (parameter.key().ends_with("norm.weight")) parameter.value() += 1.0;
  }

 private:
  double embed_scale;
  torch::nn::Embedding embed_tokens;
  torch::nn::ModuleList layers;
  RMSNorm norm;
};
TORCH_MODULE(Gemma2);

}  // namespace attend::test
