// SPDX-License-Identifier: MIT
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace attend::test {

/// The fields of an attend::Coordinate for all scores (N, H, L, S) at once, as tensors that broadcast. With it a
/// score_mod or mask_mod is written in torch's operators. It uses no code of the library.
struct Grid {
  torch::Tensor batch, head, query, key;  // (N, 1, 1, 1), (H, 1, 1), (L, 1), (S)
  torch::Tensor position;                 // (L, 1); of the query: the last one is aligned with the last key
  torch::Tensor ahead;                    // (L, S); key − query position

  Grid(std::int64_t batch_size, std::int64_t heads, std::int64_t queries, std::int64_t keys,
       at::ScalarType dtype = torch::kDouble)
      : batch(torch::arange(batch_size, dtype).view({batch_size, 1, 1, 1})),
        head(torch::arange(heads, dtype).view({heads, 1, 1})),
        query(torch::arange(queries, dtype).view({queries, 1})),
        key(torch::arange(keys, dtype)),
        position(query + (keys - queries)),
        ahead(key - position) {}
};

}  // namespace attend::test
