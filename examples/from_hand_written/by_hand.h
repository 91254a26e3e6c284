// SPDX-License-Identifier: MIT
#pragma once

// Three attention modules in plain LibTorch, as C++ projects write them. with_attend.h has the same with attend's
// parts.

#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace by_hand {

/// 1. A base caller: attention in a window of a long signal, with rotary embeddings. x is (N, L, width).
struct WindowedAttentionImpl : torch::nn::Module {
  WindowedAttentionImpl(std::int64_t width, std::int64_t heads_, std::int64_t left_, std::int64_t right_)
      : heads(heads_), left(left_), right(right_) {
    const std::int64_t head_dim = width / heads, max_length = 4096;
    qkv = register_module("qkv", torch::nn::Linear(torch::nn::LinearOptions(width, 3 * width).bias(false)));
    out = register_module("out", torch::nn::Linear(width, width));
    const torch::Tensor pairs = torch::arange(0, head_dim, 2, torch::kDouble) / static_cast<double>(head_dim);
    const torch::Tensor angles =
        torch::outer(torch::arange(max_length, torch::kDouble), pairs.mul(-std::log(1e4)).exp());
    cos = register_buffer("cos", angles.cos().to(torch::kFloat));
    sin = register_buffer("sin", angles.sin().to(torch::kFloat));
  }

  torch::Tensor rotated(const torch::Tensor& x) {
    const std::vector<torch::Tensor> halves = x.chunk(2, 3);
    const torch::Tensor c = cos.slice(0, 0, x.size(2)), s = sin.slice(0, 0, x.size(2));
    return torch::cat({halves[0] * c - halves[1] * s, halves[0] * s + halves[1] * c}, 3);
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto parts = qkv(x).view({x.size(0), x.size(1), 3, heads, -1}).permute({2, 0, 3, 1, 4}).unbind();
    const torch::Tensor position = torch::arange(x.size(1), torch::dtype(torch::kLong).device(x.device()));
    const torch::Tensor distance = position - position.unsqueeze(1);
    const torch::Tensor mask = distance.ge(-left).logical_and(distance.le(right));  // (L, L)
    const torch::Tensor y = at::scaled_dot_product_attention(rotated(parts[0]), rotated(parts[1]), parts[2], mask);
    return out(y.transpose(1, 2).flatten(2));
  }

  std::int64_t heads, left, right;
  torch::nn::Linear qkv{nullptr}, out{nullptr};
  torch::Tensor cos, sin;
};
TORCH_MODULE(WindowedAttention);

/// 2. Swin: attention in shifted windows of an image, with a learned table. x is (N, size, size, width).
struct ShiftedWindowsImpl : torch::nn::Module {
  ShiftedWindowsImpl(std::int64_t width, std::int64_t heads_, std::int64_t size_, std::int64_t window_,
                     std::int64_t shift_)
      : heads(heads_), size(size_), window(window_), shift(shift_) {
    qkv = register_module("qkv", torch::nn::Linear(width, 3 * width));
    out = register_module("out", torch::nn::Linear(width, width));
    table = register_parameter("table", torch::randn({(2 * window - 1) * (2 * window - 1), heads}) * 0.02);
    const torch::Tensor position = torch::arange(window * window);
    const auto offsets = [&](const torch::Tensor& x) { return x.unsqueeze(1) - x + (window - 1); };
    // Not a buffer: to(dtype) would convert it.
    index = (offsets(position.div(window, "floor")) * (2 * window - 1) + offsets(position.remainder(window))).flatten();
    using torch::indexing::Slice;
    const std::vector<Slice> cuts{Slice(0, -window), Slice(-window, -shift), Slice(-shift, torch::indexing::None)};
    torch::Tensor regions = torch::zeros({1, size, size, 1});
    float number = 0;
    for (const Slice& rows : cuts)
      for (const Slice& columns : cuts) regions.index_put_({0, rows, columns}, number++);
    const torch::Tensor region = cut(regions).squeeze(2);  // (windows, positions)
    mask =
        register_buffer("mask", region.unsqueeze(1).ne(region.unsqueeze(2)).to(torch::kFloat).mul(-100).unsqueeze(1));
  }

  torch::Tensor cut(const torch::Tensor& x) {
    const std::int64_t count = size / window;
    return x.view({x.size(0), count, window, count, window, x.size(3)})
        .permute({0, 1, 3, 2, 4, 5})
        .reshape({-1, window * window, x.size(3)});
  }

  torch::Tensor joined(const torch::Tensor& windows) {
    const std::int64_t count = size / window;
    return windows.view({-1, count, count, window, window, windows.size(2)})
        .permute({0, 1, 3, 2, 4, 5})
        .reshape({-1, size, size, windows.size(2)});
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor windows = cut(x.roll({-shift, -shift}, {1, 2}));
    const std::int64_t positions = window * window;
    const auto parts =
        qkv(windows).view({-1, positions, 3, heads, x.size(3) / heads}).permute({2, 0, 3, 1, 4}).unbind();
    const double scale = 1 / std::sqrt(static_cast<double>(x.size(3) / heads));
    torch::Tensor scores = (parts[0] * scale).matmul(parts[1].mT());
    scores = scores + table.index_select(0, index).view({positions, positions, heads}).permute({2, 0, 1});
    scores = (scores.unflatten(0, {-1, mask.size(0)}) + mask).flatten(0, 1);
    const torch::Tensor y = scores.softmax(-1).matmul(parts[2]);
    return joined(out(y.transpose(1, 2).flatten(2))).roll({shift, shift}, {1, 2});
  }

  std::int64_t heads, size, window, shift;
  torch::nn::Linear qkv{nullptr}, out{nullptr};
  torch::Tensor table, index, mask;
};
TORCH_MODULE(ShiftedWindows);

/// 3. A feature matcher: two images attend to each other, with the same projection for queries and keys. Padded points
/// of x1 (N, L, width) and x2 (N, S, width) are false in the masks (N, L) and (N, S).
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
    const torch::Tensor scores = qk1.matmul(qk2.mT()) / std::sqrt(static_cast<double>(qk1.size(3)));
    const double never = -std::numeric_limits<double>::infinity();
    const auto from = [&](const torch::Tensor& s, const torch::Tensor& is_point, const torch::Tensor& v) {
      const torch::Tensor masked = s.masked_fill(is_point.logical_not().unsqueeze(1).unsqueeze(1), never);
      return out(masked.softmax(-1).nan_to_num().matmul(v).transpose(1, 2).flatten(2));
    };
    return {from(scores, is_point2, by_heads(to_v(x2))), from(scores.mT(), is_point1, by_heads(to_v(x1)))};
  }

  std::int64_t heads;
  torch::nn::Linear to_qk{nullptr}, to_v{nullptr}, out{nullptr};
};
TORCH_MODULE(CrossAttention);

}  // namespace by_hand
