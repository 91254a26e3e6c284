// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/feed_forward.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/rms_norm.h>
#include <attend/layers/t5_position_bias.h>

#include "models/model.h"

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

namespace attend::test {

struct T5EncoderOptions {
  std::int64_t vocab_size, embed_dim, num_layers, num_heads, head_dim, hidden_dim, buckets, max_distance;
  bool gated;  // tanh-GELU with a gate, as in T5 1.1, otherwise ReLU
  double eps = 1e-6;
};

/// x + attention(norm(x)), then + feed-forward(norm(…)). Scores are not scaled.
class T5LayerImpl : public torch::nn::Module {
 public:
  explicit T5LayerImpl(const T5EncoderOptions& options)
      : attention(register_module("attention",
                                  MultiheadAttention(MultiheadAttentionOptions(options.embed_dim, options.num_heads)
                                                         .head_dim(options.head_dim)
                                                         .bias(false)
                                                         .separate_projections(true)
                                                         .scale(1.0)
                                                         .batch_first(true)))),
        feed_forward(register_module(
            "feed_forward",
            FeedForward(FeedForwardOptions(options.embed_dim, options.hidden_dim)
                            .activation(options.gated ? Activation(kGELUTanh) : Activation(torch::kReLU))
                            .gated(options.gated)
                            .bias(false)
                            .names(options.gated ? FeedForwardNames::kLlama : FeedForwardNames::kTorch)))),
        norm1(register_module("norm1", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))),
        norm2(register_module("norm2", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))) {}

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = x + attention->self_attention(norm1(x), call);
    return attended + feed_forward(norm2(attended));
  }

 private:
  MultiheadAttention attention;
  FeedForward feed_forward;
  RMSNorm norm1, norm2;
};
TORCH_MODULE(T5Layer);

/// T5EncoderModel of Hugging Face's transformers. All layers have the same relative position bias.
class T5EncoderImpl : public torch::nn::Module {
 public:
  explicit T5EncoderImpl(const T5EncoderOptions& options)
      : shared(register_module("shared", torch::nn::Embedding(options.vocab_size, options.embed_dim))),
        position_bias(register_module("position_bias", T5PositionBias(T5PositionBiasOptions(options.num_heads)
                                                                          .num_buckets(options.buckets)
                                                                          .max_distance(options.max_distance)))),
        layers(register_module("layers", torch::nn::ModuleList())),
        norm(register_module("norm", RMSNorm(RMSNormOptions(options.embed_dim).eps(options.eps)))) {
    for (std::int64_t i = 0; i < options.num_layers; ++i) layers->push_back(T5Layer(options));
  }

  /// ids: int64 (N, L); ignored: bool (N, L), true for padding.
  States forward(const torch::Tensor& ids, const torch::Tensor& ignored) {
    return states_of_layers<T5LayerImpl>(
        layers, norm, shared(ids),
        MultiheadAttentionCall().key_padding_mask(ignored).position_bias(position_bias.get()));
  }

  static std::vector<Rename> rules(bool gated) {
    std::vector<Rename> rules = {
        Rename::pattern("^.*\\.relative_attention_bias\\.", "position_bias."),
        Rename::pattern("^encoder\\.final_layer_norm\\.", "norm."),
        Rename::pattern("^encoder\\.block\\.", "layers."),
        Rename::pattern("\\.layer\\.0\\.SelfAttention\\.(q|k|v)\\.", ".attention.$1_proj."),
        Rename::pattern("\\.layer\\.0\\.SelfAttention\\.o\\.", ".attention.out_proj."),
        Rename::pattern("\\.layer\\.0\\.layer_norm\\.", ".norm1."),
        Rename::pattern("\\.layer\\.1\\.layer_norm\\.", ".norm2."),
    };
    if (gated) {
      rules.push_back(Rename::pattern("\\.layer\\.1\\.DenseReluDense\\.wi_0\\.", ".feed_forward.gate_proj."));
      rules.push_back(Rename::pattern("\\.layer\\.1\\.DenseReluDense\\.wi_1\\.", ".feed_forward.up_proj."));
      rules.push_back(Rename::pattern("\\.layer\\.1\\.DenseReluDense\\.wo\\.", ".feed_forward.down_proj."));
    } else {
      rules.push_back(Rename::pattern("\\.layer\\.1\\.DenseReluDense\\.wi\\.", ".feed_forward.linear1."));
      rules.push_back(Rename::pattern("\\.layer\\.1\\.DenseReluDense\\.wo\\.", ".feed_forward.linear2."));
    }
    return rules;
  }

 private:
  torch::nn::Embedding shared;
  T5PositionBias position_bias;
  torch::nn::ModuleList layers;
  RMSNorm norm;
};
TORCH_MODULE(T5Encoder);

}  // namespace attend::test
