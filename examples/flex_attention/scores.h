// SPDX-License-Identifier: MIT
#pragma once

// The scores and masks of docs/flex_attention.md. main.cpp writes them as tables; tests/docs/flex_attention_test.cpp
// compares them with torch's operators.

#include <attend/flex_attention.h>

#include <torch/optim/adam.h>
#include <torch/types.h>

#include <cstdint>

/// 1. A score that falls with the distance of the key. The slopes are those of ALiBi for eight heads:
/// 1/2, 1/4, … 1/256.
struct DistancePenalty {
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score - abs(T(at.query_position() - at.key)) / (2 << at.head);
  }
};

/// 2. A mask: the key at the position of the query, and `reach` keys on either side.
struct Near {
  std::int32_t reach;

  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
    const std::int32_t distance = at.key - at.query_position();
    return -reach <= distance && distance <= reach;
  }
  ATTEND_HOST_DEVICE attend::KeyRange keys(attend::QueryBlock block) const {
    return {block.first_position() - reach, block.last_position() + reach + 1};
  }
};

/// 3. A mask: the first keys, which every query attends to.
struct FirstKeys {
  std::int32_t count;

  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return at.key < count; }
  ATTEND_HOST_DEVICE attend::KeyRange keys(attend::QueryBlock) const { return {0, count}; }
};

/// A mask with holes: a query attends to the keys of its own chunk of the sequence.
struct Chunks {
  std::int32_t size;

  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return at.query / size == at.key / size; }
  ATTEND_HOST_DEVICE attend::MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const {
    const std::int32_t first = queries.query_begin / size, last = (queries.query_end - 1) / size;
    const std::int32_t first_key = keys.begin / size, last_key = (keys.end - 1) / size;
    if (last < first_key || last_key < first) return attend::MaskCover::kEmpty;
    return first == last && first_key == last_key ? attend::MaskCover::kFull : attend::MaskCover::kPartial;
  }
};

/// 4. A learned score. The positions are the pixels of an image, row by row. Each offset from one pixel to another has
/// a learned value, as in the Swin Transformer (Liu et al., 2021).
struct GridBias {
  torch::Tensor table;  // (H, 2 · rows − 1, 2 · columns − 1); may require a gradient

  struct View {
    attend::TensorView table;
    std::int32_t rows, columns;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      const std::int32_t down = at.key / columns - at.query / columns;
      const std::int32_t right = at.key % columns - at.query % columns;
      return score + table.read<T>(at.head, down + rows - 1, right + columns - 1);
    }
  };

  View bind(attend::Binder& binder) const {
    const attend::AttentionSizes& sizes = binder.sizes();
    const std::int64_t rows = (table.size(1) + 1) / 2, columns = (table.size(2) + 1) / 2, pixels = rows * columns;
    TORCH_CHECK_VALUE(table.size(0) == sizes.num_heads && pixels == sizes.query_length && pixels == sizes.key_length,
                      "GridBias: a table ", table.sizes(), " does not fit ", sizes.num_heads, " heads, ",
                      sizes.query_length, " queries and ", sizes.key_length, " keys");
    return {binder.values(table), static_cast<std::int32_t>(rows), static_cast<std::int32_t>(columns)};
  }
};

/// A table for two heads, trained on random images to copy neighbours: head 0 the pixel on the left, head 1 the pixel
/// above. Queries and keys are zero, so the table alone determines the attention.
inline torch::Tensor learn_neighbours(std::int64_t rows, std::int64_t columns, int steps) {
  torch::Tensor table = torch::zeros({2, 2 * rows - 1, 2 * columns - 1}).requires_grad_();
  torch::optim::Adam optimizer({table}, torch::optim::AdamOptions(0.2));
  const torch::Tensor zeros = torch::zeros({64, 2, rows * columns, 1});
  for (int step = 0; step < steps; ++step) {
    torch::Tensor image = torch::randn({64, 2, rows, columns});
    torch::Tensor y = attend::flex_attention(zeros, zeros, image.view_as(zeros), GridBias{table}).view_as(image);
    torch::Tensor left = y.select(1, 0).slice(2, 1) - image.select(1, 0).slice(2, 0, -1);
    torch::Tensor above = y.select(1, 1).slice(1, 1) - image.select(1, 1).slice(1, 0, -1);
    optimizer.zero_grad();
    (left.square().mean() + above.square().mean()).backward();
    optimizer.step();
  }
  return table.detach();
}
