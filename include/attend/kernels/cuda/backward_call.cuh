// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

using attend::detail::smaller;

/// The offsets, in bytes, of the pointers to TensorReads in a score_mod. A kernel replaces them by pointers to the
/// TensorReads of each thread.
struct ReadsPlaces {
  static constexpr int kMost = 8;
  int count = 0;
  int offsets[kMost] = {};
};

/// Finds the pointer `reads` in a score_mod.
///
/// @throws std::length_error if there are more than ReadsPlaces::kMost.
template <class Score>
ReadsPlaces reads_places(const Score& score_mod, const attend::detail::TensorReads* reads) {
  static_assert(std::is_trivially_copyable_v<Score>);
  ReadsPlaces places;
  for (std::size_t offset = 0; offset + sizeof reads <= sizeof(Score); offset += alignof(decltype(reads))) {
    const attend::detail::TensorReads* found;
    std::memcpy(&found, reinterpret_cast<const char*>(&score_mod) + offset, sizeof found);
    if (found != reads) continue;
    if (places.count == ReadsPlaces::kMost)
      throw std::length_error("attend::cuda: a score_mod may hold at most 8 views of one tensor");
    places.offsets[places.count++] = static_cast<int>(offset);
  }
  return places;
}

/// The keys whose gradients the block of a tile writes: `keys`, and the keys of the tile behind key_lengths, which no
/// query attends to. `keys` are the keys of the tile that a query may attend to.
ATTEND_HOST_DEVICE inline KeyRange written_keys(const Call& call, const KeyRange& keys, std::int32_t tile_rows) {
  if (call.num_sequences > 0) return keys;
  return {keys.begin, smaller(keys.begin + tile_rows, call.keys)};
}

/// A gradient that is a sum over many scores.
struct SumJob {
  double* gradient = nullptr;
  std::int64_t size = 0;
  double* partials = nullptr;  // (rows, size): the kernel adds them up in this order. Null: no row is needed
  std::int32_t rows = 0;

  // Of an added mask or of slopes: which of N, H, L and S the gradient has. The others are summed over.
  bool has_batch = false, has_heads = false, has_queries = false, has_keys = false;
  bool is_of_slopes = false;

  std::int32_t workers = 0;  // for a tensor of the score_mod: how many blocks add up its gradient
  ReadsPlaces reads;
};

}  // namespace detail

/// One backward pass as the kernels for a GPU read it. It is trivially copyable.
struct BackwardCall {
  Call forward;                       ///< the call of the forward pass
  ConstTensorView4d output_gradient;  ///< as AttentionGradients::output
  const void* log_sum_exp_gradient;   ///< as AttentionGradients::log_sum_exp
  TensorView4d query_gradient,        ///< written
      key_gradient,                   ///< written
      value_gradient;                 ///< written

  /// The plain kernels' sums of each row, (N, H, L): {largest score, 1 / Σ exp(score − largest), δ}, in the type that
  /// is computed in.
  void* plain_rows;
  /// The tensor-core kernels' sums of each row, (N, H, L): TensorRow.
  void* rows;

  detail::SumJob sum;  ///< the gradient that the kernels of sums.cuh compute
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
