// SPDX-License-Identifier: MIT
#pragma once

// The dense formula of attention in torch's operators, which the tests of every backend compare with. It uses no code
// of the library except the struct of the result.

#include <attend/attention/backend.h>

#include "support/grid.h"

#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

namespace attend::test {

using Tensors = std::vector<torch::Tensor>;

/// Changes scores (N, H, L, S), given their coordinates and the learned tensors.
using DenseScore = std::function<torch::Tensor(const torch::Tensor& scores, const Grid& at, const Tensors& learned)>;
/// The allowed scores: bool, broadcastable to (N, H, L, S).
using DenseMask = std::function<torch::Tensor(const Grid& at)>;

inline torch::Tensor same(const torch::Tensor& scores, const Grid&, const Tensors&) { return scores; }
inline torch::Tensor everywhere(const Grid& at) { return torch::ones_like(at.ahead, torch::kBool); }
inline torch::Tensor causal(const Grid& at) { return at.ahead <= 0; }
inline DenseMask window(std::int64_t left, std::int64_t right) {
  return [=](const Grid& at) { return at.ahead.ge(-left).logical_and(at.ahead <= right); };
}
/// A mask that is given as a tensor, bool.
inline DenseMask allowed_by(const torch::Tensor& allowed) {
  return [=](const Grid&) { return allowed; };
}

/// The dense formula in the dtype of its arguments. `inputs`: query (N, H, L, D), key (N, G, S, D), value (N, G, S, Dv)
/// and the learned tensors. The scale is 1/√D by default. A query that may attend to nothing gives zeros and −∞.
inline AttentionResult dense(const Tensors& inputs, const DenseScore& score = same,
                             const DenseMask& allowed = everywhere, std::optional<double> scale = std::nullopt) {
  const torch::Tensor& query = inputs[0];
  const auto dtype = query.scalar_type();
  const std::int64_t queries_per_key = query.size(1) / inputs[1].size(1);
  const torch::Tensor key = inputs[1].repeat_interleave(queries_per_key, 1);
  const torch::Tensor value = inputs[2].repeat_interleave(queries_per_key, 1);
  // Distances are at least float32, because bfloat16 cannot represent all integers above 256.
  const Grid at(query.size(0), query.size(1), query.size(2), key.size(2),
                dtype == torch::kDouble ? torch::kDouble : torch::kFloat);
  const torch::Tensor scores =
      scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(3)))) * query.matmul(key.transpose(2, 3));
  const torch::Tensor changed = score(scores, at, Tensors(inputs.begin() + 3, inputs.end())).to(dtype);
  const torch::Tensor ruled_out = allowed(at).logical_not().expand(scores.sizes());  // (N, H, L, S)
  // A large finite number instead of −∞, so that an empty row does not become NaN.
  const double never = dtype == torch::kDouble ? -1e300 : dtype == torch::kHalf ? -65504.0 : -3e38;
  const torch::Tensor masked = changed.masked_fill(ruled_out, never);
  return {masked.softmax(-1).masked_fill(ruled_out, 0.0).matmul(value),
          masked.logsumexp(-1).masked_fill(ruled_out.all(-1), -std::numeric_limits<double>::infinity())};
}

}  // namespace attend::test
