// SPDX-License-Identifier: MIT

// BERT, an encoder of texts.
//
// Source: J. Devlin et al., BERT (2019), https://arxiv.org/abs/1810.04805. Names of tensors: BertModel of Hugging Face.
#pragma once

#include <attend/attend.h>
#include <attend/io.h>

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

/// The sizes of a model, which its config.json holds.
struct BertOptions {
  std::int64_t vocab_size = 30522, max_position_embeddings = 512, type_vocab_size = 2;
  std::int64_t hidden_size = 768, num_hidden_layers = 12, num_attention_heads = 12, intermediate_size = 3072;
  double layer_norm_eps = 1e-12;
};

/// Texts of different lengths one after the other, without padding.
struct PackedTexts {
  torch::Tensor ids;        // (T), the tokens of all texts
  torch::Tensor positions;  // (T), from 0 in each text
  torch::Tensor offsets;    // (N + 1), int32: text n has the tokens offsets[n] … offsets[n + 1] − 1
};

/// The sum of a vector for each word, each position and the type of the text, then the layers of a transformer.
struct BertImpl : torch::nn::Module {
  explicit BertImpl(const BertOptions& options) {
    const std::int64_t width = options.hidden_size;
    const auto layer = attend::TransformerEncoderLayerOptions(width, options.num_attention_heads)
                           .dim_feedforward(options.intermediate_size)
                           .activation(torch::kGELU)
                           .layer_norm_eps(options.layer_norm_eps);
    words = register_module("words", torch::nn::Embedding(options.vocab_size, width));
    positions = register_module("positions", torch::nn::Embedding(options.max_position_embeddings, width));
    types = register_module("types", torch::nn::Embedding(options.type_vocab_size, width));
    norm = register_module("norm", attend::LayerNorm(attend::LayerNormOptions({width}).eps(options.layer_norm_eps)));
    for (std::int64_t i = 0; i < options.num_hidden_layers; ++i)
      layers->push_back(attend::TransformerEncoderLayer(layer));
    register_module("layers", layers);
  }

  /// The vectors of all tokens (T, E).
  torch::Tensor forward(const PackedTexts& texts) {
    const auto call = attend::MultiheadAttentionCall().query_offsets(texts.offsets);
    torch::Tensor x = norm(words(texts.ids) + positions(texts.positions) + types->weight[0]);
    for (const auto& layer : *layers) x = layer->as<attend::TransformerEncoderLayer>()->forward_with(x, call);
    return x;
  }

  torch::nn::Embedding words{nullptr}, positions{nullptr}, types{nullptr};
  attend::LayerNorm norm{nullptr};
  torch::nn::ModuleList layers;
};
TORCH_MODULE(Bert);

/// The rules that turn the names of Hugging Face's BertModel into those of Bert.
inline std::vector<attend::Rename> bert_names() {
  using attend::Rename;
  return {
      Rename::drop("^embeddings\\.position_ids$|^pooler\\."),
      Rename::pattern("^embeddings\\.word_embeddings\\.", "words."),
      Rename::pattern("^embeddings\\.position_embeddings\\.", "positions."),
      Rename::pattern("^embeddings\\.token_type_embeddings\\.", "types."),
      Rename::pattern("^embeddings\\.LayerNorm\\.", "norm."),
      Rename::pattern("^encoder\\.layer\\.", "layers."),
      Rename::merge({"self\\.query\\.(weight|bias)$", "self\\.key\\.(weight|bias)$", "self\\.value\\.(weight|bias)$"},
                    "in_proj_$1"),
      Rename::pattern("attention\\.in_proj_", "self_attn.in_proj_"),
      Rename::pattern("attention\\.output\\.dense\\.", "self_attn.out_proj."),
      Rename::pattern("attention\\.output\\.LayerNorm\\.", "norm1."),
      Rename::pattern("intermediate\\.dense\\.", "linear1."),
      Rename::pattern("output\\.dense\\.", "linear2."),
      Rename::pattern("output\\.LayerNorm\\.", "norm2."),
  };
}
