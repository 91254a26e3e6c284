// SPDX-License-Identifier: MIT
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace attend::test {

/// The numbers of an attend::Coordinate for all scores (N, H, L, S) at once, as tensors that broadcast: what a
/// score_mod or mask_mod says, written with torch's operators. No code of the library is in it.
struct Grid {
  torch::Tensor batch, head, query, key;  // (N, 1, 1, 1), (H, 1, 1), (L, 1), (S)
  torch::Tensor position;                 // (L, 1); of the query among the keys: the last query stands at the last key
  torch::Tensor ahead;                    // (L, S); how far the key lies ahead of the query

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
