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

#include <cstdint>
#include <vector>

namespace attend::test {

struct LlamaOptions {
  std::int64_t vocab_size, embed_dim, num_layers, num_heads, num_kv_heads, hidden_dim;
  RotaryEmbeddingOptions rotary;
  double eps = 1e-6;
};

/// x + attention(norm(x)), then + feed-forward(norm(…)).
class LlamaLayerImpl : public torch::nn::Module {
 public:
  explicit LlamaLayerImpl(const LlamaOptions& options)
      : self_attn(register_module("self_attn",
                                  MultiheadAttention(MultiheadAttentionOptions(options.embed_dim, options.num_heads)
                                                         .num_kv_heads(options.num_kv_heads)
                                                         .bias(false)
                                                         .separate_projections(true)
                                                         .rotary(options.rotary)
                                                         .is_causal(true)
                                                         .batch_first(true)))),
        mlp(register_module("mlp", FeedForward(FeedForwardOptions(options.embed_dim, options.hidden_dim)
                                                   .activation(kSiLU)
                                                   .gated(true)
                                                   .bias(false)
                                                   .names(FeedForwardNames::kLlama)))),
        input_layernorm(
            register_module("input_layernorm", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))),
        post_attention_layernorm(
            register_module("post_attention_layernorm", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))) {}

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = x + self_attn->self_attention(input_layernorm(x), call);
    return attended + mlp(post_attention_layernorm(attended));
  }

 private:
  MultiheadAttention self_attn;
  FeedForward mlp;
  RMSNorm input_layernorm, post_attention_layernorm;
};
TORCH_MODULE(LlamaLayer);

/// LlamaModel of Hugging Face's transformers.
class LlamaImpl : public torch::nn::Module {
 public:
  explicit LlamaImpl(const LlamaOptions& options)
      : embed_tokens(register_module("embed_tokens", torch::nn::Embedding(options.vocab_size, options.embed_dim))),
        layers(register_module("layers", torch::nn::ModuleList())),
        norm(register_module("norm", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))) {
    for (std::int64_t i = 0; i < options.num_layers; ++i) layers->push_back(LlamaLayer(options));
  }

  /// ids: int64 (N, L).
  States forward(const torch::Tensor& ids, const MultiheadAttentionCall& call = {}) {
    return states_of_layers<LlamaLayerImpl>(layers, norm, embed_tokens(ids), call);
  }

  static std::vector<Rename> rules() { return {Rename::pattern("\\.o_proj\\.", ".out_proj.")}; }

 private:
  torch::nn::Embedding embed_tokens;
  torch::nn::ModuleList layers;
  RMSNorm norm;
};
TORCH_MODULE(Llama);

}  // namespace attend::test
