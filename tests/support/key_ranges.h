// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/attention/materialize.h>
#include <attend/score/mask_cover.h>

#include <doctest/doctest.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace attend::test {

/// Calls action(view) with the struct that a kernel would call.
template <class Mask, class Action>
void with_bound(const Mask& mask, const AttentionSizes& sizes, const Action& action) {
  Binder collecting(sizes, torch::kCPU);
  attend::detail::bound(mask, collecting);
  std::vector<torch::Tensor> tensors;
  for (const torch::Tensor& tensor : collecting.tensors()) tensors.push_back(tensor.to(torch::kInt).contiguous());
  Binder binder(sizes, tensors);
  action(attend::detail::bound(mask, binder));
}

/// Checks, for random blocks of queries, that keys() contains every allowed key. If `is_tight`, also checks that the
/// range begins and ends with an allowed key. Checks cover() for random blocks of scores.
template <class Mask>
void check_key_ranges(const Mask& mask, const AttentionSizes& sizes, bool is_tight, std::mt19937& random) {
  const torch::Tensor allowed = materialize(mask, sizes);  // (N, H, L, S)
  const auto is_allowed = allowed.accessor<bool, 4>();
  const auto queries = static_cast<std::int32_t>(sizes.query_length),
             keys = static_cast<std::int32_t>(sizes.key_length);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(n));
  };
  with_bound(mask, sizes, [&](const auto& view) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      QueryBlock block{below(sizes.batch_size), below(sizes.num_heads), below(queries), 0, queries, keys};
      block.query_end = block.query_begin + 1 + below(queries - block.query_begin);
      std::int32_t first = keys, end = 0;  // of the allowed keys
      for (std::int32_t i = block.query_begin; i < block.query_end; ++i)
        for (std::int32_t j = 0; j < keys; ++j)
          if (is_allowed[block.batch][block.head][i][j]) {
            first = std::min(first, j);
            end = std::max(end, j + 1);
          }
      const KeyRange range = attend::detail::key_range(view, block);
      if (keys > 0) {
        KeyRange some{below(keys), 0};
        some.end = some.begin + 1 + below(keys - some.begin);
        const torch::Tensor within = allowed[block.batch][block.head]
                                         .slice(0, block.query_begin, block.query_end)
                                         .slice(1, some.begin, some.end);
        const MaskCover cover = attend::detail::mask_cover(view, block, some);
        if (cover == MaskCover::kEmpty) CHECK(!within.any().item<bool>());
        if (cover == MaskCover::kFull) CHECK(within.all().item<bool>());
      }
      CAPTURE(block.batch);
      CAPTURE(block.query_begin);
      CAPTURE(block.query_end);
      CAPTURE(queries);
      CAPTURE(keys);
      CAPTURE(range.begin);
      CAPTURE(range.end);
      if (first < end) {
        CHECK(range.begin <= first);
        CHECK(range.end >= end);
      }
      if (!is_tight) continue;
      const std::int32_t range_begin = std::max(range.begin, 0), range_end = std::min(range.end, keys);
      CHECK(std::max(range_end - range_begin, 0) == std::max(end - first, 0));
    }
  });
}

}  // namespace attend::test
