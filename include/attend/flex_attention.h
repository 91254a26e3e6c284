// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/backend.h>
#include <attend/attention/bias.h>
#include <attend/attention/binder.h>
#include <attend/attention/mask_mod.h>
#include <attend/attention/materialize.h>
#include <attend/attention/modification.h>
#include <attend/attention/options.h>
#include <attend/attention/score_mod.h>
#include <attend/attention/sequence_masks.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <memory>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// One sentence for each way in which a type can fail to be a score_mod or mask_mod.
template <class Score, class Mask>
constexpr bool check_modification() {
  static_assert(std::is_trivially_copyable_v<Bound<Score>>,
                "attend::flex_attention: a score_mod must be trivially copyable; one that holds tensors needs "
                "`auto bind(attend::Binder& binder) const` (see attend/attention/binder.h)");
  static_assert(ScoreFunction<Bound<Score>>,
                "attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, "
                "attend::Coordinate at) const` (see attend/attention/score_mod.h)");
  static_assert(std::is_trivially_copyable_v<Bound<Mask>>,
                "attend::flex_attention: a mask_mod must be trivially copyable; one that holds tensors needs "
                "`auto bind(attend::Binder& binder) const` (see attend/attention/binder.h)");
  static_assert(MaskFunction<Bound<Mask>>,
                "attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const` "
                "(see attend/attention/mask_mod.h)");
  return ScoreMod<Score> && MaskMod<Mask>;
}

template <class Score, class Mask>
Problem flex_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const Score& score_mod,
                     const Mask& mask_mod, const AttentionOptions& options, Purpose purpose = Purpose::kCompute) {
  Problem problem = attention_problem(query, key, value, options, purpose);
  const auto modification = std::make_shared<ModificationBy<Score, Mask>>(score_mod, mask_mod);
  problem.modification_tensors =
      modification->tensors({problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()},
                            problem.query.device());
  problem.modification = modification;
  return problem;
}

}  // namespace detail

/// attention() with a score of your own: a struct that changes each score, and one that says which keys a query may
/// attend to. Both are compiled into the kernel, with the derivative of the score; no tensor of L × S
/// is made, but, where a mask_mod alone meets 128 keys or fewer, one of the weights for the backward pass.
///
/// output = softmax(mask(score_mod(score))) v, where score is that of attention() with the options' softcap, ALiBi and
/// float attn_mask in it; where mask_mod, or the options' is_causal, window or bool attn_mask, says no, it counts as
/// −∞. In packed batches a Coordinate counts queries and keys through all sequences.
///
/// Gradients: for query, key, value, all tensors of the options, and those that a score_mod holds; twice.
///
/// Shapes, dtypes and errors as in attention(); a struct of another form than score_mod.h and mask_mod.h describe does
/// not compile. On other devices than the CPU the dense formula is computed, and the struct called on the CPU.
///
/// Differs from PyTorch's flex_attention: needs no compiler at run time, has gradients on the CPU, needs no block mask,
/// and there may be options besides.
///
/// Source: Dong et al., "Flex Attention: a programming model for generating optimized attention kernels", 2024.
///
/// Example, a struct with a template stands outside of functions:
/// @code
/// struct Tilted {
///   template <class T>
///   ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
///     return score - 0.1f * abs(T(at.query - at.key));
///   }
/// };
/// torch::Tensor y = attend::flex_attention(q, k, v, Tilted{}, attend::SlidingWindow(256, 0));
/// @endcode
template <class Score, class Mask = EveryKey>
at::Tensor flex_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const Score& score_mod, const Mask& mask_mod = {}, const AttentionOptions& options = {}) {
  if constexpr (detail::check_modification<Score, Mask>())
    return detail::run(detail::flex_problem(query, key, value, score_mod, mask_mod, options), options.backend()).output;
}

/// flex_attention() with the log-sum-exp of the changed scores, as attention_with_lse().
template <class Score, class Mask = EveryKey>
AttentionResult flex_attention_with_lse(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const Score& score_mod, const Mask& mask_mod = {},
                                        const AttentionOptions& options = {}) {
  if constexpr (detail::check_modification<Score, Mask>()) {
    detail::Problem problem = detail::flex_problem(query, key, value, score_mod, mask_mod, options);
    problem.needs_log_sum_exp = true;
    return detail::run(problem, options.backend());
  }
}

/// What explain() tells, of a call of flex_attention().
template <class Score, class Mask = EveryKey>
Explanation explain_flex(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const Score& score_mod, const Mask& mask_mod = {}, const AttentionOptions& options = {}) {
  if constexpr (detail::check_modification<Score, Mask>())
    return detail::explain(
        detail::flex_problem(query, key, value, score_mod, mask_mod, options, detail::Purpose::kExplain),
        options.backend());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
