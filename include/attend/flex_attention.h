// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/backend.h>
#include <attend/attention/bias.h>
#include <attend/attention/binder.h>
#include <attend/attention/block_mask.h>
#include <attend/attention/detail/cpu_variant.h>
#include <attend/attention/flash_mask.h>
#include <attend/attention/materialize.h>
#include <attend/attention/options.h>
#include <attend/attention/relative_grid_bias.h>
#include <attend/attention/sequence_masks.h>
#include <attend/attention/variant.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/neighborhood_mask.h>
#include <attend/score/score_mod.h>
#include <attend/score/shifted_window_mask.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <memory>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// One sentence for each way in which a type can fail to be a score_mod or mask_mod.
template <class Score, class Mask>
constexpr bool check_variant() {
  static_assert(std::is_trivially_copyable_v<Bound<Score>>,
                "attend::flex_attention: a score_mod must be trivially copyable; one that holds tensors needs "
                "`auto bind(attend::Binder& binder) const` (see attend/attention/binder.h)");
  constexpr bool is_mask = !ScoreFunction<Bound<Score>> && MaskFunction<Bound<Score>>;
  static_assert(!is_mask,
                "attend::flex_attention: the fourth argument must be a score_mod, but it is a mask_mod; for a mask "
                "alone pass `attend::Unchanged{}` before it");
  static_assert(is_mask || ScoreFunction<Bound<Score>>,
                "attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, "
                "attend::Coordinate at) const` (see attend/score/score_mod.h)");
  static_assert(std::is_trivially_copyable_v<Bound<Mask>>,
                "attend::flex_attention: a mask_mod must be trivially copyable; one that holds tensors needs "
                "`auto bind(attend::Binder& binder) const` (see attend/attention/binder.h)");
  static_assert(MaskFunction<Bound<Mask>>,
                "attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const` "
                "(see attend/score/mask_mod.h)");
  return ScoreMod<Score> && MaskMod<Mask>;
}

template <class Score, class Mask>
Problem flex_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const Score& score_mod,
                     const Mask& mask_mod, const AttentionOptions& options, Purpose purpose = Purpose::kCompute) {
  Problem problem = attention_problem(query, key, value, options, purpose);
  const auto variant = std::make_shared<TypedVariant<Score, Mask>>(score_mod, mask_mod);
  problem.variant_tensors =
      variant->tensors({problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()},
                       problem.query.device());
  problem.variant = variant;
  problem.cpu_variant = std::make_shared<TypedCpuVariantMaker<Score, Mask>>(variant);
  return problem;
}

}  // namespace detail

/// attention() with a score_mod, a struct that changes each score, and a mask_mod, a struct that says which keys a
/// query may attend to.
///
/// output = softmax(mask(score_mod(score))) v. `score` is scale · q·k, after the options softcap, alibi_slopes and a
/// float attn_mask. A key is attended if mask_mod and the options is_causal, window and a bool attn_mask all allow it.
/// Otherwise its score counts as −∞.
///
/// Both structs are compiled into the kernel, with the derivative of the score. On the CPU no (L, S) tensor is
/// allocated. Exception: the weights may be kept for the backward pass if S ≤ 128, and score_mod is Unchanged or has
/// added_place() (see ScoreMod).
///
/// @param query (N, H, L, D), as in attention().
/// @param key (N, G, S, D), as in attention().
/// @param value (N, G, S, Dv), as in attention().
/// @param score_mod A struct as ScoreMod describes. Pass attend::Unchanged{} to change no score.
/// @param mask_mod A struct as MaskMod describes. Default: EveryKey, which allows every key.
/// @param options As in attention(). In packed batches a Coordinate counts queries and keys through all sequences.
/// @return (N, H, L, Dv), as attention() returns it.
/// @throws c10::Error of the same kinds as attention().
/// @throws c10::ValueError also if a struct reads outside of a tensor, for a score that no mask excludes. Exception: a
/// mask_mod that reads outside of a TensorView gets NaN and no error. A backend object on a GPU throws no such error.
///
/// Gradients: for query, key, value, attn_mask, alibi_slopes, and the tensors that a score_mod reads. They can be
/// differentiated once more. A mask_mod has no gradient.
///
/// On a device other than the CPU the dense formula is computed, and the structs are called on the CPU. Exception: a
/// backend object of attend::cuda::backend() runs kernels with these structs on the GPU.
///
/// If a struct does not fit ScoreMod or MaskMod, the program does not compile. The error message says in one sentence
/// what the struct lacks.
///
/// Differs from PyTorch's flex_attention:
/// - It needs no compiler at run time and no block mask.
/// - It has gradients on the CPU.
/// - It takes the options of attention() as well.
///
/// Source: Dong et al., "Flex Attention: a programming model for generating optimized attention kernels", 2024.
///
/// Example. The struct has a template, so it must be outside of a function:
/// @code
/// struct Tilted {
///   template <class T>
///   ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
///     return score - 0.1f * abs(T(at.query - at.key));
///   }
/// };
/// @endcode
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, Tilted{}, attend::SlidingWindow(256, 0));
/// @endcode
template <class Score, class Mask = EveryKey>
at::Tensor flex_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const Score& score_mod, const Mask& mask_mod = {}, const AttentionOptions& options = {}) {
  if constexpr (detail::check_variant<Score, Mask>())
    return detail::run(detail::flex_problem(query, key, value, score_mod, mask_mod, options), options.backend()).output;
}

/// flex_attention(), together with the log-sum-exp of the scores that the structs have changed and masked.
///
/// @param query As in flex_attention().
/// @param key As in flex_attention().
/// @param value As in flex_attention().
/// @param score_mod As in flex_attention().
/// @param mask_mod As in flex_attention().
/// @param options As in flex_attention().
/// @return The output, (N, H, L, Dv), and the log-sum-exp, (N, H, L). Both may be differentiated.
/// @throws c10::Error of the same kinds as flex_attention().
///
/// @code
/// auto [output, log_sum_exp] = attend::flex_attention_with_lse(q, k, v, attend::Softcap{30}, attend::Causal{});
/// @endcode
template <class Score, class Mask = EveryKey>
AttentionResult flex_attention_with_lse(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const Score& score_mod, const Mask& mask_mod = {},
                                        const AttentionOptions& options = {}) {
  if constexpr (detail::check_variant<Score, Mask>()) {
    detail::Problem problem = detail::flex_problem(query, key, value, score_mod, mask_mod, options);
    problem.needs_log_sum_exp = true;
    return detail::run(problem, options.backend());
  }
}

/// Says which backend flex_attention() uses for these arguments, why not a faster one, and what it copies. Computes
/// nothing.
///
/// @param query As in flex_attention().
/// @param key As in flex_attention().
/// @param value As in flex_attention().
/// @param score_mod As in flex_attention().
/// @param mask_mod As in flex_attention().
/// @param options As in flex_attention().
/// @return The backend and the reasons, as explain() returns them.
/// @throws c10::Error of the same kinds as flex_attention().
///
/// @code
/// std::cout << attend::explain_flex(q, k, v, attend::Unchanged{}, attend::Causal{}) << '\n';
/// @endcode
template <class Score, class Mask = EveryKey>
Explanation explain_flex(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const Score& score_mod, const Mask& mask_mod = {}, const AttentionOptions& options = {}) {
  if constexpr (detail::check_variant<Score, Mask>())
    return detail::explain(
        detail::flex_problem(query, key, value, score_mod, mask_mod, options, detail::Purpose::kExplain),
        options.backend());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
