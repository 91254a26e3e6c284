// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>
#include <attend/attention/backends.h>
#include <attend/attention/detail/calls.h>
#include <attend/attention/detail/check_problem.h>
#include <attend/attention/detail/dropout.h>
#include <attend/attention/detail/option_mask.h>
#include <attend/attention/reference.h>
#include <attend/attention/variant.h>
#include <attend/version.h>

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Switches autocast off. All casts of autocast happen when a problem is made. A backend chooses its own dtypes.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

/// Throws c10::ValueError if a score_mod or mask_mod has read outside of a tensor for a score that is allowed. Searches
/// for such a read only if there is a sign of one: a NaN in the output, or the mark that an IntegerView leaves. After a
/// given object has run on a GPU, it does not search, since the program would have to wait for the GPU.
inline void check_reads(const Problem& problem, Backend backend, const at::Tensor& output) {
  const auto is_whole = [](const at::Tensor& tensor) { return !tensor.is_floating_point(); };
  const std::vector<at::Tensor>& tensors = problem.variant_tensors;
  if (tensors.empty() || (backend == Backend::kGiven && !output.is_cpu())) return;
  const bool has_nan = output.numel() > 0 && output.detach().select(3, 0).isnan().any().item<bool>();
  const bool leaves_no_mark = backend == Backend::kReference && std::any_of(tensors.begin(), tensors.end(), is_whole);
  if (has_nan || leaves_no_mark || problem.variant->has_seen_outside())
    problem.variant->check_reads(
        {problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()}, tensors,
        KeyLengths(problem.key_lengths), OptionMask(problem));
}

ATTEND_INLINE Problem attention_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const AttentionOptions& options, Purpose purpose) {
  return checked_problem(query, key, &value, options, purpose);
}

ATTEND_INLINE AttentionResult run(Problem problem, Backend asked_for) {
  check_has_data(problem);
  const WithoutAutocast without_autocast;
  const AttentionBackend& backend = choose(problem, asked_for);
  if (problem.dropout > 0.0) problem.dropout_seed = draw_dropout_seed(problem.query);
  const AttentionResult result = backend.run(problem);
  if (problem.variant != nullptr) check_reads(problem, backend.name(), result.output);
  return {as_given(result.output, problem), as_given(result.log_sum_exp, problem)};
}

ATTEND_INLINE Explanation explain(const Problem& problem, Backend asked_for) {
  std::string why_not_faster;
  const AttentionBackend& backend = choose(problem, asked_for, &why_not_faster);
  return {backend.name(), why_not_faster, backend.copies(problem), backend.how(problem)};
}

ATTEND_INLINE AttentionResult attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const AttentionOptions& options, bool with_lse) {
  Problem problem = attention_problem(query, key, value, options);
  problem.needs_log_sum_exp = with_lse;
  return run(std::move(problem), options.backend());
}

ATTEND_INLINE at::Tensor attention_weights(const at::Tensor& query, const at::Tensor& key,
                                           const AttentionOptions& options) {
  const Problem problem = scores_problem(query, key, options);
  check_has_data(problem);
  const WithoutAutocast without_autocast;
  return as_given(Reference::weights(problem), problem);
}

ATTEND_INLINE Explanation explain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  const AttentionOptions& options, bool with_lse) {
  Problem problem = attention_problem(query, key, value, options, Purpose::kExplain);
  problem.needs_log_sum_exp = with_lse;
  return explain(problem, options.backend());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
