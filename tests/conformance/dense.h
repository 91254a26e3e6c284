// SPDX-License-Identifier: MIT
#pragma once

// Attention in torch's dense operations, in the dtype of the inputs. No code of attend computes here; only its option
// structs are read.

#include <attend/attention/options.h>

#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace conformance {

using Tensors = std::vector<torch::Tensor>;

inline constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

/// Which keys a query may attend to, and how far a key is from the query's position: (L, S) each.
struct Geometry {
  torch::Tensor allowed;   // bool
  torch::Tensor distance;  // float64, query position − key
};

/// Computed pair by pair. A batch that is not packed is one sequence.
inline Geometry geometry_of(std::int64_t length, std::int64_t keys, const attend::AttentionOptions& options,
                            std::vector<std::int64_t> query_offsets, std::vector<std::int64_t> key_offsets) {
  if (query_offsets.empty()) {
    query_offsets = {0, length};
    key_offsets = {0, keys};
  }
  Geometry geometry{torch::zeros({length, keys}, torch::kBool), torch::zeros({length, keys}, torch::kDouble)};
  auto allowed = geometry.allowed.accessor<bool, 2>();
  auto distances = geometry.distance.accessor<double, 2>();
  for (std::size_t b = 0; b + 1 < query_offsets.size(); ++b) {
    const std::int64_t more = (key_offsets[b + 1] - key_offsets[b]) - (query_offsets[b + 1] - query_offsets[b]);
    for (std::int64_t i = query_offsets[b]; i < query_offsets[b + 1]; ++i) {
      for (std::int64_t j = key_offsets[b]; j < key_offsets[b + 1]; ++j) {
        const std::int64_t distance = (i - query_offsets[b] + more) - (j - key_offsets[b]);
        const attend::Window window = options.window();
        allowed[i][j] = (!options.is_causal() || distance >= 0) && (window.left < 0 || distance <= window.left) &&
                        (window.right < 0 || -distance <= window.right);
        distances[i][j] = static_cast<double>(distance);
      }
    }
  }
  return geometry;
}

/// The tensors of one call, all of one dtype except a bool mask.
struct Inputs {
  torch::Tensor query, key, value;  // (N, H, L, D), (N, G, S, D), (N, G, S, Dv)
  torch::Tensor mask, slopes;       // may be undefined
};

/// The results of the dense formula.
struct DenseResult {
  torch::Tensor output;       // (N, H, L, Dv)
  torch::Tensor log_sum_exp;  // (N, H, L)
  torch::Tensor weights;      // (N, H, L, S), before dropout
};

/// Changes scores (N, H, L, S) after the options, as the score_mod of flex_attention() does.
using ChangeOfScores = std::function<torch::Tensor(const torch::Tensor&)>;

/// The dense formula. `options` gives the numbers, `inputs` the tensors, and `keep` the weights that dropout keeps.
inline DenseResult dense_attention(const Inputs& inputs, const attend::AttentionOptions& options,
                                   const Geometry& geometry, const torch::Tensor& keep = {},
                                   const ChangeOfScores& change = {}) {
  const torch::Tensor &query = inputs.query, &key = inputs.key, &value = inputs.value;
  const std::int64_t N = query.size(0), H = query.size(1), G = key.size(1), L = query.size(2), S = key.size(2);
  const std::int64_t group = G == 0 ? 0 : H / G;
  const torch::Tensor by_group = query.reshape({N, G, group, L, query.size(3)});
  torch::Tensor scores = torch::matmul(by_group, key.unsqueeze(2).transpose(3, 4)).reshape({N, H, L, S});
  scores = scores * options.scale().factor(query.size(3));
  if (options.softcap() > 0.0) scores = torch::tanh(scores / options.softcap()) * options.softcap();
  if (inputs.slopes.defined())
    scores = scores - inputs.slopes.reshape({-1, H, 1, 1}) * geometry.distance.abs().to(scores.scalar_type());
  torch::Tensor allowed = geometry.allowed.expand({N, H, L, S});
  if (inputs.mask.defined() && inputs.mask.scalar_type() == torch::kBool) {
    allowed = allowed.logical_and(inputs.mask);
  } else if (inputs.mask.defined()) {
    const torch::Tensor is_never = inputs.mask.isneginf();
    allowed = allowed.logical_and(is_never.logical_not());
    scores = scores + inputs.mask.masked_fill(is_never, 0.0);
  }
  if (change) scores = change(scores);

  // A query that may attend to nothing gives zeros. Its scores stay finite until its weights are set to 0.
  const torch::Tensor is_empty = allowed.any(3, /*keepdim=*/true).logical_not();  // (N, H, L, 1)
  const torch::Tensor masked = scores.masked_fill(allowed.logical_or(is_empty).logical_not(), kNegativeInfinity);
  DenseResult result;
  result.weights = torch::softmax(masked, 3).masked_fill(is_empty, 0.0);
  if (S == 0)
    result.log_sum_exp = torch::full({N, H, L}, kNegativeInfinity, scores.options());
  else
    result.log_sum_exp = torch::logsumexp(masked, 3).masked_fill(is_empty.squeeze(3), kNegativeInfinity);
  torch::Tensor kept = result.weights;
  if (keep.defined()) kept = kept * keep.to(kept.scalar_type()) / (1.0 - options.dropout());
  result.output =
      torch::matmul(kept.reshape({N, G, group, L, S}), value.unsqueeze(2)).reshape({N, H, L, value.size(3)});
  return result;
}

}  // namespace conformance
