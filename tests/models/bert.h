// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/feed_forward.h>
#include <attend/layers/multihead_attention.h>

#include "models/model.h"

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::test {

struct BertOptions {
  std::int64_t vocab_size, max_length, token_types, embed_dim, num_layers, num_heads, hidden_dim;
  double eps = 1e-12;
};

/// norm(x + attention(x)), then norm(… + feed-forward(…)).
class BertLayerImpl : public torch::nn::Module {
 public:
  explicit BertLayerImpl(const BertOptions& options)
      : attention(register_module(
            "attention",
            MultiheadAttention(MultiheadAttentionOptions(options.embed_dim, options.num_heads).batch_first(true)))),
        feed_forward(register_module(
            "feed_forward",
            FeedForward(FeedForwardOptions(options.embed_dim, options.hidden_dim).activation(torch::kGELU)))),
        norm1(register_module("norm1",
                              torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))),
        norm2(register_module(
            "norm2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))) {}

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = norm1(x + attention->self_attention(x, call));
    return norm2(attended + feed_forward(attended));
  }

 private:
  MultiheadAttention attention;
  FeedForward feed_forward;
  torch::nn::LayerNorm norm1, norm2;
};
TORCH_MODULE(BertLayer);

/// BertModel of Hugging Face's transformers, without its pooling layer.
class BertImpl : public torch::nn::Module {
 public:
  explicit BertImpl(const BertOptions& options)
      : word_embeddings(
            register_module("word_embeddings", torch::nn::Embedding(options.vocab_size, options.embed_dim))),
        position_embeddings(
            register_module("position_embeddings", torch::nn::Embedding(options.max_length, options.embed_dim))),
        token_type_embeddings(
            register_module("token_type_embeddings", torch::nn::Embedding(options.token_types, options.embed_dim))),
        norm(register_module("norm",
                             torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))),
        layers(register_module("layers", torch::nn::ModuleList())) {
    for (std::int64_t i = 0; i < options.num_layers; ++i) layers->push_back(BertLayer(options));
  }

  /// ids and token_types: int64 (N, L); ignored: bool (N, L), true for padding.
  States forward(const torch::Tensor& ids, const torch::Tensor& token_types, const torch::Tensor& ignored) {
    torch::Tensor x = norm(word_embeddings(ids) + token_type_embeddings(token_types) +
                           position_embeddings(torch::arange(ids.size(1))));
    States states{x};
    for (std::size_t i = 0; i < layers->size(); ++i)
      states.push_back(
          layers->at<BertLayerImpl>(i).forward(states.back(), MultiheadAttentionCall().key_padding_mask(ignored)));
    return states;
  }

  static std::vector<Rename> rules() {
    return {Rename::pattern("^embeddings\\.LayerNorm\\.", "norm."),
            Rename::pattern("^embeddings\\.", ""),
            Rename::pattern("^encoder\\.layer\\.", "layers."),
            Rename::merge({"\\.self\\.query\\.(weight|bias)$", "\\.self\\.key\\.(weight|bias)$",
                           "\\.self\\.value\\.(weight|bias)$"},
                          ".in_proj_$1"),
            Rename::pattern("\\.attention\\.output\\.dense\\.", ".attention.out_proj."),
            Rename::pattern("\\.attention\\.output\\.LayerNorm\\.", ".norm1."),
            Rename::pattern("\\.intermediate\\.dense\\.", ".feed_forward.linear1."),
            Rename::pattern("\\.output\\.dense\\.", ".feed_forward.linear2."),
            Rename::pattern("\\.output\\.LayerNorm\\.", ".norm2.")};
  }

 private:
  torch::nn::Embedding word_embeddings, position_embeddings, token_type_embeddings;
  torch::nn::LayerNorm norm;
  torch::nn::ModuleList layers;
};
TORCH_MODULE(Bert);

}  // namespace attend::test
