// SPDX-License-Identifier: MIT
#include <attend/layers/window_partition.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <vector>

using attend::window_partition;
using attend::window_reverse;
using attend::test::Refused;

TEST_CASE("window_partition, window_reverse: they cut row by row and are inverses, in 1 to 3 dimensions") {
  const torch::Tensor image = torch::arange(2 * 4 * 6).view({2, 4, 6, 1});
  const torch::Tensor windows = window_partition(image, {2, 3});
  CHECK(windows.sizes() == torch::IntArrayRef{8, 6, 1});
  CHECK(windows[0].flatten().equal(torch::tensor({0, 1, 2, 6, 7, 8}, torch::kLong)));
  CHECK(windows[1].flatten().equal(torch::tensor({3, 4, 5, 9, 10, 11}, torch::kLong)));
  CHECK(windows[2].flatten().equal(torch::tensor({12, 13, 14, 18, 19, 20}, torch::kLong)));
  CHECK(windows[4][0].item<std::int64_t>() == 24);
  CHECK(window_reverse(windows, {2, 3}, {4, 6}).equal(image));
  const torch::Tensor signal = torch::randn({2, 6, 5}), volume = torch::randn({3, 4, 6, 2, 5});
  CHECK(window_partition(signal, {3}).equal(signal.reshape({4, 3, 5})));
  CHECK(window_reverse(window_partition(signal, {3}), {3}, {6}).equal(signal));
  CHECK(window_partition(volume, {2, 3, 1}).sizes() == torch::IntArrayRef{3 * 8, 6, 5});
  CHECK(window_partition(volume, {2, 3, 1})[5].equal(
      volume[0].slice(0, 2, 4).slice(1, 0, 3).slice(2, 1, 2).reshape({6, 5})));
  CHECK(window_reverse(window_partition(volume, {2, 3, 1}), {2, 3, 1}, {4, 6, 2}).equal(volume));
  const torch::Tensor empty = torch::zeros({0, 4, 6, 5});
  CHECK(window_partition(empty, {2, 3}).sizes() == torch::IntArrayRef{0, 6, 5});
  CHECK(window_reverse(window_partition(empty, {2, 3}), {2, 3}, {4, 6}).sizes() == empty.sizes());
}

TEST_CASE("window_partition, window_reverse: the gradients are those of a permutation") {
  const torch::Tensor x = torch::randn({2, 4, 6, 3}).requires_grad_(), weight = torch::randn({8, 6, 3});
  (window_partition(x, {2, 3}) * weight).sum().backward();
  CHECK(x.grad().equal(window_reverse(weight, {2, 3}, {4, 6})));
}

TEST_CASE("window_partition, window_reverse: sizes that do not fit are refused") {
  const torch::Tensor x = torch::randn({2, 4, 6, 3});
  const Refused cases[] = {
      {"attend::window_partition: x must be a tensor, got an undefined one", false, [] { window_partition({}, {2}); }},
      {"attend::window_partition: x must be (N, length, C), (N, height, width, C) or (N, depth, height, width, C), got "
       "[4, 6]",
       false,
       [] {
         window_partition(torch::randn({4, 6}), {2});
       }},
      {"attend::window_partition: window_size [2] must have as many numbers as the signal has dimensions, got [4, 6]",
       false, [&] { window_partition(x, {2}); }},
      {"attend::window_partition: window_size must have 1 to 3 numbers, got []", false,
       [&] { window_partition(x, {}); }},
      {"attend::window_partition: the signal [4, 6] must be divisible by window_size [2, 4]", false,
       [&] {
         window_partition(x, {2, 4});
       }},
      {"attend::window_partition: the signal [4, 6] must be divisible by window_size [0, 3]", false,
       [&] {
         window_partition(x, {0, 3});
       }},
      {"attend::window_partition: x must be dense, got the layout Sparse", true,
       [&] {
         window_partition(x.to_sparse(), {2, 3});
       }},
      {"attend::window_reverse: windows must be (N · 4, 6, C), got [8, 5, 3]", false,
       [] {
         window_reverse(torch::randn({8, 5, 3}), {2, 3}, {4, 6});
       }},
      {"attend::window_reverse: windows must be (N · 4, 6, C), got [7, 6, 3]", false,
       [] {
         window_reverse(torch::randn({7, 6, 3}), {2, 3}, {4, 6});
       }},
      {"attend::window_reverse: the signal [4, 5] must be divisible by window_size [2, 3]", false,
       [] {
         window_reverse(torch::randn({8, 6, 3}), {2, 3}, {4, 5});
       }},
  };
  for (const Refused& c : cases) c.check();
}
