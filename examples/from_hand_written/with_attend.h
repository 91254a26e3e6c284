// SPDX-License-Identifier: MIT
#pragma once

// The three modules of by_hand.h with attend's parts. The parameters have the same names, so the weights load.

#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/layers/relative_position_bias.h>
#include <attend/layers/window_partition.h>
#include <attend/positions/rotary.h>

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace with_attend {

/// 1. A base caller.
struct WindowedAttentionImpl : torch::nn::Module {
  WindowedAttentionImpl(std::int64_t width, std::int64_t heads_, std::int64_t left, std::int64_t right)
      : heads(heads_), options(attend::AttentionOptions().window({left, right})) {
    qkv = register_module("qkv", torch::nn::Linear(torch::nn::LinearOptions(width, 3 * width).bias(false)));
    out = register_module("out", torch::nn::Linear(width, width));
    rotary = register_module("rotary", attend::RotaryEmbedding(width / heads));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto parts = qkv(x).unflatten(2, {3, heads, -1}).permute({2, 0, 3, 1, 4}).unbind();
    const torch::Tensor y = attend::attention(rotary(parts[0]), rotary(parts[1]), parts[2], options);
    return out(y.transpose(1, 2).flatten(2));
  }

  std::int64_t heads;
  attend::AttentionOptions options;
  torch::nn::Linear qkv{nullptr}, out{nullptr};
  attend::RotaryEmbedding rotary{nullptr};
};
TORCH_MODULE(WindowedAttention);

/// 2. Swin.
struct ShiftedWindowsImpl : torch::nn::Module {
  ShiftedWindowsImpl(std::int64_t width, std::int64_t heads_, std::int64_t size_, std::int64_t window_,
                     std::int64_t shift_)
      : heads(heads_), shift(shift_), size{size_, size_}, window{window_, window_} {
    qkv = register_module("qkv", torch::nn::Linear(width, 3 * width));
    out = register_module("out", torch::nn::Linear(width, width));
    bias = register_module("bias", attend::RelativePositionBias(heads, window));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor windows = attend::window_partition(x.roll({-shift, -shift}, {1, 2}), window);
    const auto parts = qkv(windows).unflatten(2, {3, heads, -1}).permute({2, 0, 3, 1, 4}).unbind();
    const torch::Tensor y = attend::flex_attention(parts[0], parts[1], parts[2], bias->score_mod(),
                                                   attend::ShiftedWindowMask(size, window, {shift, shift}));
    return attend::window_reverse(out(y.transpose(1, 2).flatten(2)), window, size).roll({shift, shift}, {1, 2});
  }

  std::int64_t heads, shift;
  std::vector<std::int64_t> size, window;
  torch::nn::Linear qkv{nullptr}, out{nullptr};
  attend::RelativePositionBias bias{nullptr};
};
TORCH_MODULE(ShiftedWindows);

/// 3. A feature matcher.
struct CrossAttentionImpl : torch::nn::Module {
  CrossAttentionImpl(std::int64_t width, std::int64_t heads_) : heads(heads_) {
    to_qk = register_module("to_qk", torch::nn::Linear(width, width));
    to_v = register_module("to_v", torch::nn::Linear(width, width));
    out = register_module("out", torch::nn::Linear(width, width));
  }

  torch::Tensor by_heads(const torch::Tensor& x) { return x.unflatten(2, {heads, -1}).transpose(1, 2); }

  std::pair<torch::Tensor, torch::Tensor> forward(const torch::Tensor& x1, const torch::Tensor& x2,
                                                  const torch::Tensor& is_point1, const torch::Tensor& is_point2) {
    const torch::Tensor qk1 = by_heads(to_qk(x1)), qk2 = by_heads(to_qk(x2));
    const auto from = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& is_point,
                          const torch::Tensor& x) {
      const auto options = attend::AttentionOptions().attn_mask(is_point.unsqueeze(1).unsqueeze(1));
      return out(attend::attention(q, k, by_heads(to_v(x)), options).transpose(1, 2).flatten(2));
    };
    return {from(qk1, qk2, is_point2, x2), from(qk2, qk1, is_point1, x1)};
  }

  std::int64_t heads;
  torch::nn::Linear to_qk{nullptr}, to_v{nullptr}, out{nullptr};
};
TORCH_MODULE(CrossAttention);

}  // namespace with_attend
