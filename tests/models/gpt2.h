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

#include <cstdint>
#include <vector>

namespace attend::test {

struct Gpt2Options {
  std::int64_t vocab_size, max_length, embed_dim, num_layers, num_heads;
};

/// x + attention(norm(x)), then + feed-forward(norm(…)).
class Gpt2LayerImpl : public torch::nn::Module {
 public:
  explicit Gpt2LayerImpl(const Gpt2Options& options)
      : attn(register_module(
            "attn",
            MultiheadAttention(
                MultiheadAttentionOptions(options.embed_dim, options.num_heads).is_causal(true).batch_first(true)))),
        mlp(register_module(
            "mlp", FeedForward(FeedForwardOptions(options.embed_dim, 4 * options.embed_dim).activation(kGELUTanh)))),
        ln_1(register_module("ln_1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim})))),
        ln_2(register_module("ln_2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim})))) {}

  torch::Tensor forward(const torch::Tensor& x, const MultiheadAttentionCall& call) {
    const torch::Tensor attended = x + attn->self_attention(ln_1(x), call);
    return attended + mlp(ln_2(attended));
  }

 private:
  MultiheadAttention attn;
  FeedForward mlp;
  torch::nn::LayerNorm ln_1, ln_2;
};
TORCH_MODULE(Gpt2Layer);

/// GPT2Model of Hugging Face's transformers.
class Gpt2Impl : public torch::nn::Module {
 public:
  explicit Gpt2Impl(const Gpt2Options& options)
      : wte(register_module("wte", torch::nn::Embedding(options.vocab_size, options.embed_dim))),
        wpe(register_module("wpe", torch::nn::Embedding(options.max_length, options.embed_dim))),
        h(register_module("h", torch::nn::ModuleList())),
        ln_f(register_module("ln_f", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.embed_dim})))) {
    for (std::int64_t i = 0; i < options.num_layers; ++i) h->push_back(Gpt2Layer(options));
  }

  /// ids: int64 (N, L). With a cache they are the next tokens.
  States forward(const torch::Tensor& ids, const MultiheadAttentionCall& call = {}) {
    const torch::Tensor positions =
        call.cache() != nullptr ? call.cache()->positions(ids.size(1)) : torch::arange(ids.size(1));
    return states_of_layers<Gpt2LayerImpl>(h, ln_f, wte(ids) + wpe(positions), call);
  }

  /// The matrices of Hugging Face's Conv1D are transposed.
  static std::vector<Rename> rules() {
    return {Rename::transpose("\\.c_(attn|proj|fc)\\.weight$"), Rename::pattern("attn\\.c_attn\\.", "attn.in_proj_"),
            Rename::pattern("attn\\.c_proj\\.", "attn.out_proj."), Rename::pattern("mlp\\.c_fc\\.", "mlp.linear1."),
            Rename::pattern("mlp\\.c_proj\\.", "mlp.linear2.")};
  }

 private:
  torch::nn::Embedding wte, wpe;
  torch::nn::ModuleList h;
  torch::nn::LayerNorm ln_f;
};
TORCH_MODULE(Gpt2);

}  // namespace attend::test
