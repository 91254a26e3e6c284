// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/attention/variant.h>
#include <attend/detail/torch/check_dense.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/score_mod.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Evaluates a mask_mod for all queries and keys. Use it for tests and pictures.
///
/// @param mask_mod A struct as MaskMod describes. Its tensors must be on the CPU.
/// @param sizes The sizes {N, H, L, S}.
/// @return bool (N, H, L, S) on the CPU, true = attend.
/// @throws c10::ValueError for a negative size, and for tensors of the mask_mod that do not fit the sizes.
///
/// @code
/// torch::Tensor allowed = attend::materialize(attend::Causal{}, {1, 1, 8, 8})[0][0];  // (8, 8)
/// @endcode
template <MaskMod Mask>
at::Tensor materialize(const Mask& mask_mod, const AttentionSizes& sizes) {
  TORCH_CHECK_VALUE(sizes.batch_size >= 0 && sizes.num_heads >= 0 && sizes.query_length >= 0 && sizes.key_length >= 0,
                    "attend::materialize: sizes must not be negative, got (", sizes.batch_size, ", ", sizes.num_heads,
                    ", ", sizes.query_length, ", ", sizes.key_length, ")");
  detail::TypedVariant<Unchanged, Mask> variant({}, mask_mod);
  return variant.mask(sizes, variant.tensors(sizes, c10::kCPU), /*key_lengths=*/{});
}

/// Applies a score_mod to a tensor of scores. Use it for tests and pictures.
///
/// @param score_mod A struct as ScoreMod describes. Its tensors must be on the device of the scores.
/// @param scores (N, H, L, S), float32 or float64.
/// @return (N, H, L, S), of the same dtype. It can be differentiated twice, with respect to the scores and the tensors
/// that the score_mod reads.
/// @throws c10::ValueError for scores that are not 4-d, and for tensors of the score_mod that do not fit them.
/// @throws c10::TypeError for another dtype.
///
/// @code
/// torch::Tensor bias = attend::materialize(attend::Alibi(slopes), torch::zeros({1, 8, 64, 64}));
/// @endcode
template <ScoreMod Score>
at::Tensor materialize(const Score& score_mod, const at::Tensor& scores) {
  if (scores.defined()) detail::check_dense("attend::materialize", "scores", scores);
  TORCH_CHECK_VALUE(scores.defined() && scores.dim() == 4, "attend::materialize: scores must be 4-d (N, H, L, S), got ",
                    scores.defined() ? c10::str(scores.sizes()) : "an undefined tensor");
  TORCH_CHECK_VALUE(!scores.is_meta(), "attend::materialize: scores must have data, got a tensor on the device meta");
  TORCH_CHECK_TYPE(scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble,
                   "attend::materialize: scores must be float32 or float64, got ", scores.scalar_type());
  detail::TypedVariant<Score, EveryKey> variant(score_mod, {});
  return variant.change(scores, variant.tensors(detail::sizes_of(scores), scores.device()), /*key_lengths=*/{});
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
