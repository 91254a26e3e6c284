// SPDX-License-Identifier: MIT

// How fast is the windowed attention of the Swin Transformer, forward and backward, in its first stage (Swin-T: 56 × 56
// positions, 3 heads of 32 channels, windows of 7 × 7, shifted by 3, a learned table)? float32, on the CPU.
//
// attend:  flex_attention with RelativePositionBias and ShiftedWindowMask
// dense:   the formula of the source in torch's operators: scores, table, mask, softmax, values
// sdpa:    torch's scaled_dot_product_attention with table and mask as a float attn_mask
//
// All three take queries, keys and values (N · 64, 3, 49, 32), with the positions before the heads in memory, as a
// projection writes them. They give the gradients of them and of the table. With --windows the three are slices of the
// projected windows (N · 64, 49, 3 · 96), and the gradient is that of the windows: this adds the same copies to all
// three. The results are compared before anything is timed. They run in turn in every round. Prints CSV: the medians of
// the rounds in milliseconds, and the medians of the ratios of the rounds.

#include <attend/flex_attention.h>
#include <attend/layers/relative_position_bias.h>
#include <attend/layers/window_partition.h>

#include "support/program.h"

#include <ATen/Parallel.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: swin [options]\n"
    "  --batch N     images (default: 8)\n"
    "  --rounds N    rounds; the result is their median (default: 15)\n"
    "  --threads N   threads (default: chosen by LibTorch)\n"
    "  --plain       without the shift and its mask\n"
    "  --windows     query, key and value are parts of one tensor, whose gradient is computed\n";

constexpr std::int64_t kSize = 56, kWindow = 7, kShift = 3, kHeads = 3, kHeadDim = 32, kPositions = kWindow * kWindow;

/// The mask of the source: −100 between positions that were no neighbours before the roll. (windows, 1, 49, 49)
torch::Tensor shift_mask() {
  using torch::indexing::Slice;
  torch::Tensor regions = torch::zeros({1, kSize, kSize, 1});
  const std::array cuts{Slice(0, -kWindow), Slice(-kWindow, -kShift), Slice(-kShift, torch::indexing::None)};
  float number = 0;
  for (const Slice& rows : cuts)
    for (const Slice& columns : cuts) regions.index_put_({0, rows, columns}, number++);
  const torch::Tensor windows = attend::window_partition(regions, {kWindow, kWindow}).squeeze(2);
  return windows.unsqueeze(1).ne(windows.unsqueeze(2)).to(torch::kFloat).mul(-100).unsqueeze(1);
}

/// The entry of the table for each query and key of a window: (49 · 49)
torch::Tensor table_index() {
  const torch::Tensor position = torch::arange(kPositions);
  const auto offsets = [](const torch::Tensor& x) { return x.unsqueeze(1) - x.unsqueeze(0) + (kWindow - 1); };
  return (offsets(position.div(kWindow, "floor")) * (2 * kWindow - 1) + offsets(position.remainder(kWindow))).flatten();
}

struct Peer {
  const char* name;
  std::function<torch::Tensor(const std::vector<torch::Tensor>& heads, const torch::Tensor& table)> forward;
};

int run(const std::vector<std::string>& arguments) {
  std::int64_t batch = 8, rounds = 15, threads = 0;
  bool is_shifted = true, has_windows = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--help") {
      std::cout << kUsage;
      return 0;
    }
    if (arguments[i] == "--plain" || arguments[i] == "--windows") {
      (arguments[i] == "--plain" ? is_shifted : has_windows) = arguments[i] == "--windows";
      continue;
    }
    if (i + 1 == arguments.size()) throw std::invalid_argument("unknown option or missing value: " + arguments[i]);
    const std::int64_t value = benchmark::positive(arguments[i + 1]);
    if (arguments[i] == "--batch")
      batch = value;
    else if (arguments[i] == "--rounds")
      rounds = value;
    else if (arguments[i] == "--threads")
      threads = value;
    else
      throw std::invalid_argument("unknown option " + arguments[i]);
    ++i;
  }
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  torch::manual_seed(1);

  const std::vector<std::int64_t> window{kWindow, kWindow};
  attend::RelativePositionBias bias(kHeads, window);
  torch::nn::init::normal_(bias->relative_position_bias_table);
  const torch::Tensor table = bias->relative_position_bias_table;
  const std::int64_t shift = is_shifted ? kShift : 0;
  const attend::ShiftedWindowMask mask_mod({kSize, kSize}, window, {shift, shift});
  const torch::Tensor mask = shift_mask(), index = table_index();
  const std::int64_t windows = mask.size(0);
  const auto dense_bias = [=](const torch::Tensor& entries) {
    return entries.index_select(0, index).view({kPositions, kPositions, kHeads}).permute({2, 0, 1});
  };
  const std::vector<Peer> peers{
      {"attend",
       [&](const std::vector<torch::Tensor>& heads, const torch::Tensor&) {
         return is_shifted ? attend::flex_attention(heads[0], heads[1], heads[2], bias->score_mod(), mask_mod)
                           : attend::flex_attention(heads[0], heads[1], heads[2], bias->score_mod());
       }},
      {"dense",
       [&](const std::vector<torch::Tensor>& heads, const torch::Tensor& entries) {
         torch::Tensor scores = (heads[0] * (1 / std::sqrt(static_cast<double>(kHeadDim)))).matmul(heads[1].mT());
         scores = scores + dense_bias(entries).unsqueeze(0);
         if (is_shifted) scores = (scores.unflatten(0, {-1, windows}) + mask).flatten(0, 1);
         return scores.softmax(-1).matmul(heads[2]);
       }},
      {"sdpa", [&](const std::vector<torch::Tensor>& heads, const torch::Tensor& entries) {
         torch::Tensor added = dense_bias(entries).unsqueeze(0);
         if (is_shifted) added = (added + mask).repeat({heads[0].size(0) / windows, 1, 1, 1});
         return at::scaled_dot_product_attention(heads[0], heads[1], heads[2], added);
       }}};

  const torch::Tensor projected = torch::randn({batch * windows, kPositions, 3, kHeads, kHeadDim});
  const torch::Tensor weight = torch::randn({batch * windows, kPositions, kHeads, kHeadDim}).transpose(1, 2);
  std::vector<torch::Tensor> given;
  for (const torch::Tensor& part : has_windows ? std::vector{projected} : projected.unbind(2))
    given.push_back(part.contiguous().requires_grad_());
  /// The output, and the gradients of the table and of what is given.
  const auto step = [&](const Peer& peer) {
    table.mutable_grad() = torch::Tensor();
    for (const torch::Tensor& leaf : given) leaf.mutable_grad() = torch::Tensor();
    std::vector<torch::Tensor> heads;
    for (const torch::Tensor& part : has_windows ? given[0].unbind(2) : given) heads.push_back(part.transpose(1, 2));
    const torch::Tensor y = peer.forward(heads, table);
    y.backward(weight);
    std::vector<torch::Tensor> results{y.detach(), table.grad()};
    for (const torch::Tensor& leaf : given) results.push_back(leaf.grad());
    return results;
  };
  const std::vector<torch::Tensor> expected = step(peers[0]);
  for (const Peer& peer : peers) {
    const std::vector<torch::Tensor> results = step(peer);
    for (std::size_t i = 0; i < results.size(); ++i)
      if (!torch::allclose(results[i], expected[i], 1e-3, 1e-4 * expected[i].abs().max().item<double>()))
        throw std::runtime_error(std::string(peer.name) + " gives another result");
  }

  std::vector<std::vector<double>> times(peers.size());
  for (std::int64_t round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < peers.size(); ++i) {
      const std::size_t k = (i + static_cast<std::size_t>(round)) % peers.size();
      const auto begin = std::chrono::steady_clock::now();
      step(peers[k]);
      times[k].push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  std::cout << "peer,batch,threads,shifted,windows,milliseconds,times_as_long_as_attend\n";
  for (std::size_t k = 0; k < peers.size(); ++k) {
    std::vector<double> ratios;
    for (std::size_t round = 0; round < times[k].size(); ++round) ratios.push_back(times[k][round] / times[0][round]);
    std::cout << peers[k].name << ',' << batch << ',' << at::get_num_threads() << ',' << is_shifted << ','
              << has_windows << ',' << median(times[k]) << ',' << median(ratios) << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "swin: " << error.what() << '\n' << kUsage;
    return 2;
  }
}
