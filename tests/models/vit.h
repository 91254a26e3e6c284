// SPDX-License-Identifier: MIT
#pragma once

#include <attend/layers/feed_forward.h>
#include <attend/layers/multihead_attention.h>

#include "models/model.h"

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

namespace attend::test {

struct VitOptions {
  std::int64_t image_size, patch_size, channels, embed_dim, num_layers, num_heads, hidden_dim;
  double eps = 1e-12;
};

/// x + attention(norm(x)), then + feed-forward(norm(…)).
class VitLayerImpl : public torch::nn::Module {
 public:
  explicit VitLayerImpl(const VitOptions& options)
      : attention(register_module(
            "attention",
            MultiheadAttention(MultiheadAttentionOptions(options.embed_dim, options.num_heads).batch_first(true)))),
        mlp(register_module(
            "mlp", FeedForward(FeedForwardOptions(options.embed_dim, options.hidden_dim).activation(torch::kGELU)))),
        layernorm_before(
            register_module("layernorm_before",
                            torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))),
        layernorm_after(
            register_module("layernorm_after",
                            torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))) {}

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = x + attention->self_attention(layernorm_before(x), call);
    return attended + mlp(layernorm_after(attended));
  }

 private:
  MultiheadAttention attention;
  FeedForward mlp;
  torch::nn::LayerNorm layernorm_before, layernorm_after;
};
TORCH_MODULE(VitLayer);

/// ViTModel of Hugging Face's transformers, without its pooling layer.
class VitImpl : public torch::nn::Module {
 public:
  explicit VitImpl(const VitOptions& options)
      : projection(register_module(
            "projection",
            torch::nn::Conv2d(torch::nn::Conv2dOptions(options.channels, options.embed_dim, options.patch_size)
                                  .stride(options.patch_size)))),
        layers(register_module("layers", torch::nn::ModuleList())),
        layernorm(register_module(
            "layernorm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim}).eps(options.eps)))) {
    const std::int64_t side = options.image_size / options.patch_size;
    cls_token = register_parameter("cls_token", torch::zeros({1, 1, options.embed_dim}));
    position_embeddings =
        register_parameter("position_embeddings", torch::zeros({1, side * side + 1, options.embed_dim}));
    for (std::int64_t i = 0; i < options.num_layers; ++i) layers->push_back(VitLayer(options));
  }

  /// images: (N, channels, image_size, image_size).
  States forward(const torch::Tensor& images) {
    const torch::Tensor patches = projection(images).flatten(2).transpose(1, 2);  // (N, patches, E)
    const torch::Tensor x = torch::cat({cls_token.expand({images.size(0), -1, -1}), patches}, 1) + position_embeddings;
    return states_of_layers<VitLayerImpl>(layers, layernorm, x, {});
  }

  static std::vector<Rename> rules() {
    return {Rename::pattern("^embeddings\\.(patch_embeddings\\.)?", ""),
            Rename::pattern("^encoder\\.layer\\.", "layers."),
            Rename::merge({"\\.attention\\.query\\.(weight|bias)$", "\\.attention\\.key\\.(weight|bias)$",
                           "\\.attention\\.value\\.(weight|bias)$"},
                          ".in_proj_$1"),
            Rename::pattern("\\.attention\\.output\\.dense\\.", ".attention.out_proj."),
            Rename::pattern("\\.intermediate\\.dense\\.", ".mlp.linear1."),
            Rename::pattern("\\.output\\.dense\\.", ".mlp.linear2.")};
  }

 private:
  torch::nn::Conv2d projection;
  torch::nn::ModuleList layers;
  torch::nn::LayerNorm layernorm;
  torch::Tensor cls_token, position_embeddings;
};
TORCH_MODULE(Vit);

}  // namespace attend::test
