// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/cpu.h>
#include <attend/attention/detail/option_mask.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/modification.h>
#include <attend/attention/options.h>
#include <attend/attention/preference.h>
#include <attend/attention/reference.h>
#include <attend/attention/sdpa.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// One backend, as the choice sees it.
struct BackendEntry {
  Backend backend;
  bool (*can_run)(const Problem&, std::string* reason);  // if not, with a sentence that says why, unless that is null
  std::string (*copies)(const Problem&);
  std::string (*how)(const Problem&);
  AttentionResult (*run)(const Problem&);
};

template <class B>
inline constexpr BackendEntry kEntry{B::kBackend, &B::can_run, &B::copies, &B::how, &B::run};

/// All backends, the fastest first. The last one can do everything.
inline constexpr BackendEntry kBackends[] = {kEntry<Cpu>, kEntry<Sdpa>, kEntry<Reference>};

/// The backend for a call. Adds to `why_not_faster`, unless that is null, why not one of those before it. Throws
/// c10::NotImplementedError if a backend asked for by name cannot run.
inline const BackendEntry& choose(const Problem& problem, Backend asked_for, std::string* why_not_faster = nullptr) {
  const Backend wanted = asked_for == Backend::kAuto ? BackendGuard::current() : asked_for;
  bool sdpa_can_run = false;
  for (const BackendEntry& entry : kBackends) {
    if (wanted == entry.backend) {
      if (entry.can_run(problem, nullptr)) return entry;
      std::string reason;
      entry.can_run(problem, &reason);
      TORCH_CHECK_NOT_IMPLEMENTED(false, "attend::attention: cannot use the backend asked for. ", reason);
    }
    if (wanted != Backend::kAuto) continue;
    std::string reason;
    std::string* const sentence = why_not_faster == nullptr ? nullptr : &reason;
    if (sdpa_can_run || entry.can_run(problem, sentence)) {
      sdpa_can_run = entry.backend == Backend::kCpu && is_sdpa_faster(problem, sentence);
      if (!sdpa_can_run) return entry;
    }
    if (sentence != nullptr) *why_not_faster += (why_not_faster->empty() ? "" : "; ") + reason;
  }
  TORCH_CHECK_VALUE(false, "attend::attention: there is no ", c10::str(wanted));
}

/// @throws c10::ValueError if a score_mod or mask_mod read outside of a tensor for a score that is allowed. Looks for
/// it where the result shows that it may be so: a TensorView gives NaN there, and an IntegerView leaves a mark.
inline void check_reads(const Problem& problem, Backend backend, const at::Tensor& output) {
  const auto is_whole = [](const at::Tensor& tensor) { return !tensor.is_floating_point(); };
  const std::vector<at::Tensor>& tensors = problem.modification_tensors;
  if (tensors.empty()) return;
  const bool has_nan = output.numel() > 0 && output.detach().select(3, 0).isnan().any().item<bool>();
  const bool leaves_no_mark = backend == Backend::kReference && std::any_of(tensors.begin(), tensors.end(), is_whole);
  if (has_nan || leaves_no_mark || problem.modification->has_seen_outside())
    problem.modification->check_reads(
        {problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()}, tensors,
        OptionMask(problem));
}

inline AttentionResult run(Problem problem, Backend asked_for) {
  check_has_data(problem);
  const WithoutAutocast without_autocast;
  const BackendEntry& entry = choose(problem, asked_for);
  if (problem.dropout > 0.0) problem.dropout_seed = draw_dropout_seed(problem.query);
  const AttentionResult result = entry.run(problem);
  if (problem.modification != nullptr) check_reads(problem, entry.backend, result.output);
  return {as_given(result.output, problem), as_given(result.log_sum_exp, problem)};
}

inline Explanation explain(const Problem& problem, Backend asked_for) {
  std::string why_not_faster;
  const BackendEntry& entry = choose(problem, asked_for, &why_not_faster);
  return {entry.backend, why_not_faster, entry.copies(problem), entry.how(problem)};
}

}  // namespace detail

/// Attention: each query's output is an average of the values, weighted by how well it matches each key.
///
/// output = softmax(scale · q·kᵀ) v for every batch entry and head, with what AttentionOptions adds to the scores,
/// rules out and drops; query head h reads key and value head h·G/H, so that G < H is grouped-query and G = 1
/// multi-query attention. The softmax is computed in float32, and in float64 for float64. A query that may attend to
/// nothing, or S = 0, gives zeros and zero gradients.
///
/// Shapes: query (N, H, L, D), key (N, G, S, D), value (N, G, S, Dv) → (N, H, L, Dv). N, L and S may be 0; any strides.
/// All three may also be 3-d, (H, L, D), or 2-d, (L, D): missing sizes are 1, and the output has as many dimensions as
/// query. Batch sizes and heads of 1 are broadcast without a copy, as in torch, those of query too.
///
/// Dtypes: float64, float32, bfloat16, float16, all the same; under autocast they are cast first, float64 excepted.
///
/// Memory: on the CPU the output's rows lie in memory in the order of the query's rows, whatever the backend, as in
/// torch; in the order (N, H, L) if the last dimension of query is strided. On other devices ATen's kernels choose.
///
/// Gradients: for query, key, value, and an attn_mask or alibi_slopes that needs one; on the CPU of any order.
///
/// Differs from torch's scaled_dot_product_attention: the causal diagonal ends at the last key for every L and S, a
/// mask may come together with is_causal on every device, and no dense fall-back is taken unnoticed: see explain().
///
/// Throws c10::ValueError, c10::TypeError for wrong shapes, dtypes, devices and options, and c10::TypeError for tensors
/// that are not dense: sparse, nested, mkldnn, quantized. Throws c10::NotImplementedError if a
/// backend asked for by name cannot do what is asked, with the reason.
///
/// Source: Vaswani et al., "Attention is all you need", 2017; grouped heads: Ainslie et al., "GQA", 2023.
///
/// Example:
/// @code
/// torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true));
/// @endcode
inline at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionOptions& options = {}) {
  return detail::run(detail::attention_problem(query, key, value, options), options.backend()).output;
}

/// attention(), and with it the logarithm of the sum of each row's exponentials, which merging and losses need. Shapes,
/// options and errors as in attention(); both results may be differentiated. Fewer backends can do it: explain() with
/// with_lse = true tells.
///
/// Example, two halves of the keys, merged:
/// @code
/// auto [y1, lse1] = attend::attention_with_lse(q, k1, v1);
/// auto [y2, lse2] = attend::attention_with_lse(q, k2, v2);
/// torch::Tensor share = torch::sigmoid(lse1 - lse2).unsqueeze(3);  // (N, H, L, 1); NaN where both are −∞
/// torch::Tensor y = share * y1 + (1 - share) * y2;
/// @endcode
inline AttentionResult attention_with_lse(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                          const AttentionOptions& options = {}) {
  detail::Problem problem = detail::attention_problem(query, key, value, options);
  problem.needs_log_sum_exp = true;
  return detail::run(problem, options.backend());
}

/// The weights of attention(), by the dense way: it allocates the (N, H, L, S) tensor that the fused kernels avoid.
/// For looking at a map, not for computing with it. Options and errors as in attention(), but that dropout and the
/// backend are not used.
///
/// Shapes: query (N, H, L, D), key (N, G, S, D) → (N, H, L, S). Rows sum to 1, or to 0 where nothing may be attended.
inline at::Tensor attention_weights(const at::Tensor& query, const at::Tensor& key,
                                    const AttentionOptions& options = {}) {
  const detail::Problem problem = detail::scores_problem(query, key, options);
  detail::check_has_data(problem);
  const detail::WithoutAutocast without_autocast;
  return detail::as_given(detail::Reference::weights(problem), problem);
}

/// Which backend attention() takes for these arguments, why not a faster one, and what it copies; with_lse asks the
/// same for attention_with_lse(). Computes nothing. Shapes, options and errors as in attention(): it throws for a
/// backend asked for by name that cannot run.
///
/// Example:
/// @code
/// attend::Explanation plan = attend::explain(q, k, v);  // plan.backend == attend::Backend::kCpu
/// @endcode
inline Explanation explain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& options = {}, bool with_lse = false) {
  detail::Problem problem = detail::attention_problem(query, key, value, options, detail::Purpose::kExplain);
  problem.needs_log_sum_exp = with_lse;
  return detail::explain(problem, options.backend());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
